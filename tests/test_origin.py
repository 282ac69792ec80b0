"""Commits of real checkouts; what stands beside a result."""

import datetime
import os
import pathlib
import platform
import shutil
import subprocess

import pytest
import runs

from gr_jax import origin


@pytest.fixture(autouse=True)
def plain_git(monkeypatch):
  """Inside a hook, git's variables name the repository of the hook; a user's settings may demand signatures."""
  for name in [name for name in os.environ if name.startswith("GIT_")]:
    monkeypatch.delenv(name)
  monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


def git(folder, *arguments):
  return subprocess.run(["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e", *arguments], check=True,
                        capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
  """A checkout of one commit with a package of one file: (that file, the commit)."""
  git(tmp_path, "init")
  (tmp_path / "package").mkdir()
  file = tmp_path / "package" / "code.py"
  file.write_text("1\n")
  git(tmp_path, "add", ".")
  git(tmp_path, "commit", "--message=first")
  origin.commit.cache_clear()
  yield file, git(tmp_path, "rev-parse", "HEAD")
  origin.commit.cache_clear()


def test_the_commit_of_a_clean_checkout(checkout):
  file, first = checkout
  # Outside the package.
  (file.parent.parent / "README.md").write_text("n")
  assert origin.commit(file) == first


@pytest.mark.parametrize("name", ["code.py", "new.py"])
@pytest.mark.parametrize("staged", [False, True])
def test_changes_of_the_package_are_named(checkout, name, staged):
  file, first = checkout
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
  known = origin.versions("gpu")
  assert known["gr_jax"] and known["python"] == platform.python_version() and "convolutions" not in known
  # The suite may also be run on an installed package, or from an archive.
  here = pathlib.Path(origin.__file__).is_relative_to(runs.ROOT) and (runs.ROOT / ".git").exists()
  assert known.get("commit", "none").split(" ")[0] == (git(runs.ROOT, "rev-parse", "HEAD") if here else "none")


def test_the_date_is_of_utc():
  before = datetime.datetime.now(datetime.UTC).date()
  assert before <= datetime.date.fromisoformat(origin.today()) <= datetime.datetime.now(datetime.UTC).date()
