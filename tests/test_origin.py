"""Commits of real checkouts; what stands beside a result."""

import datetime
import os
import pathlib
import platform
import shutil
import subprocess
import time

import jax
import pytest

from gr_jax import origin
from gr_jax.devices import processes


def git(folder, *arguments):
  return subprocess.run(["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e", *arguments], check=True,
                        capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A checkout of one commit with a package of one file: (that file, the commit)."""
  # Inside a hook, git's variables name the repository of the hook; a user's settings may demand signatures.
  for name in [name for name in os.environ if name.startswith("GIT_")]:
    monkeypatch.delenv(name)
  monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
  git(tmp_path, "init")
  (tmp_path / "package").mkdir()
  file = tmp_path / "package" / "code.py"
  file.write_text("1\n")
  git(tmp_path, "add", ".")
  git(tmp_path, "commit", "--message=first")
  return file, git(tmp_path, "rev-parse", "HEAD")


def test_the_commit_of_a_clean_checkout(checkout):
  file, first = checkout
  # Outside the package, and its pages.
  (file.parent.parent / "README.md").write_text("n")
  (file.parent / "docs").mkdir()
  (file.parent / "docs" / "page.md").write_text("n")
  assert origin.commit(file) == first


@pytest.mark.parametrize("name", ["code.py", "new.py", "n\udcfcw.py"])
@pytest.mark.parametrize("staged", [False, True])
def test_changes_of_the_package_are_named(checkout, name, staged):
  file, first = checkout
  git(file.parent, "config", "status.showUntrackedFiles", "no")
  git(file.parent, "config", "core.quotePath", "false")
  (file.parent / name).write_text("2\n")
  if staged:
    git(file.parent, "add", name)
  assert origin.commit(file) == f"{first} with changes"


def test_inside_a_hook_of_another_repository(checkout, tmp_path_factory, monkeypatch):
  file, first = checkout
  other = tmp_path_factory.mktemp("other")
  git(other, "init")
  monkeypatch.setenv("GIT_DIR", str(other / ".git"))
  assert origin.commit(file) == first


def test_a_package_installed_inside_another_checkout_has_no_commit(checkout):
  file, _ = checkout
  installed = file.parent / "venv" / "code.py"
  installed.parent.mkdir()
  shutil.copy(file, installed)
  assert origin.commit(installed) is None


def test_without_git_or_a_commit_there_is_none(checkout, tmp_path_factory, monkeypatch):
  new = tmp_path_factory.mktemp("new") / "code.py"
  new.write_text("1\n")
  git(new.parent, "init")
  git(new.parent, "add", ".")
  # Tracked, but never committed.
  assert origin.commit(new) is None
  monkeypatch.setenv("PATH", os.fspath(new.parent))
  assert origin.commit(checkout[0]) is None


def test_git_that_does_not_answer_is_given_up(checkout, monkeypatch):
  file, first = checkout
  command = file.parent / "git"
  command.write_text("#!/bin/sh\nexec sleep 60\n")
  command.chmod(0o755)
  monkeypatch.setattr(origin, "_PATIENCE", 0.2)
  monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")
  assert origin.commit(file) is None


def test_versions_of_this_checkout():
  known = origin.versions("cpu")
  assert known["gr_jax"] == processes.code_version() and known["python"] == platform.python_version()
  # The suite may also be run on an installed package, from an archive, or where git refuses.
  path = pathlib.Path(origin.__file__)
  tracked = subprocess.run(["git", "-C", path.parent, "ls-files", "--error-unmatch", path], check=False,
                           capture_output=True).returncode == 0
  assert known.get("commit", "none").split(" ")[0] == (git(path.parent, "rev-parse", "HEAD") if tracked else "none")


def test_versions_on_other_devices_name_their_driver():
  known = origin.versions("gpu")
  assert known["driver"] == jax.devices()[0].client.platform_version and "convolutions" not in known


def test_devices_are_counted_and_named():
  assert origin.devices(jax.devices()[:3]) == "3 x cpu"
  assert {"date", "versions", "devices", "processor"} == set(origin.describe(jax.devices()[:1]))


@pytest.mark.parametrize("zone", ["<+14>-14", "<-12>12"])
def test_the_date_is_of_utc(monkeypatch, zone):
  """At any time it is another date in one of these zones."""
  with monkeypatch.context() as patched:
    patched.setenv("TZ", zone)
    time.tzset()
    before = datetime.datetime.now(datetime.UTC).date()
    assert before <= datetime.date.fromisoformat(origin.today()) <= datetime.datetime.now(datetime.UTC).date()
  time.tzset()
