"""Commits of real checkouts; what stands beside a result."""

import datetime
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import runs

from gr_jax import origin
from gr_jax.devices import convolution_library


def git(folder, *arguments):
  return subprocess.run(["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e", *arguments], check=True,
                        capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
  """A checkout of one commit with one file: (that file, the commit)."""
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
  # Neither tracked nor ignored.
  (file.parent / "notes.txt").write_text("n")
  assert origin.commit(file) == first


@pytest.mark.parametrize("staged", [False, True])
def test_changes_are_named(checkout, staged):
  file, first = checkout
  (file.parent.parent / "more.txt").write_text("more")
  git(file.parent, "add", file.parent.parent / "more.txt")
  if not staged:
    git(file.parent, "commit", "--message=second")
    file.write_text("2\n")
  head = git(file.parent, "rev-parse", "HEAD")
  assert origin.commit(file) == f"{head} with changes" and (head == first) == staged


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


def test_the_processor_has_the_name_that_the_system_tells(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 7})
  monkeypatch.setattr(convolution_library, "CPUINFO", tmp_path / "cpuinfo")
  (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Processor @ 2 GHz\nprocessor\t: 1\n")
  assert origin.processor() == "A Processor @ 2 GHz, 3 cores"
  # As on ARM, which names no model.
  (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
  assert re.fullmatch(r"[\w .-]+, 3 cores", origin.processor())


def test_versions_of_this_checkout():
  known = origin.versions("gpu")
  assert known["gr_jax"] and "convolutions" not in known
  # The suite may also be run on an installed package, or from an archive.
  here = pathlib.Path(origin.__file__).is_relative_to(runs.ROOT) and (runs.ROOT / ".git").exists()
  assert known.get("commit", "none").split(" ")[0] == (git(runs.ROOT, "rev-parse", "HEAD") if here else "none")


def test_the_date_is_of_utc():
  before = datetime.datetime.now(datetime.UTC).date()
  assert before <= datetime.date.fromisoformat(origin.today()) <= datetime.datetime.now(datetime.UTC).date()
