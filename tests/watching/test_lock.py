"""Who holds a lock is seen without taking it."""

import os
import pathlib
import subprocess
import sys

import pytest
import runs

from gr_jax import files
from gr_jax.watching import lock

HOLD = """
import sys, pathlib
from gr_jax import files
with files.locked(pathlib.Path(sys.argv[1]), lambda: None):
  print("held", flush=True)
  sys.stdin.readline()
"""


def refuse():
  raise AssertionError("it is taken")


@pytest.mark.skipif(not pathlib.Path("/proc/locks").exists(), reason="this system does not list its locks")
def test_the_process_that_holds_a_lock(tmp_path):
  path = tmp_path / ".lock"
  assert lock.state(path) == lock.Lock(False)
  with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], env=runs.environment(), text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == "held\n"
    assert lock.state(path) == lock.Lock(True, process.pid)
    process.communicate("\n")
  assert lock.state(path) == lock.Lock(False)


def test_looking_does_not_take_the_lock(tmp_path, monkeypatch):
  path = tmp_path / ".lock"
  path.touch()
  before = os.stat(path)
  monkeypatch.setattr("fcntl.flock", None)
  lock.state(path)
  monkeypatch.undo()
  with files.locked(path, refuse):
    lock.state(path)
  assert os.stat(path).st_ino == before.st_ino


def test_where_the_system_lists_no_locks(tmp_path):
  (tmp_path / ".lock").touch()
  assert lock.state(tmp_path / ".lock", table=tmp_path / "none") == lock.Lock(None)


def test_lines_of_the_table(tmp_path):
  path = tmp_path / ".lock"
  path.touch()
  file, table = path.stat(), tmp_path / "locks"
  where = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
  for line, expected in ((f"1: FLOCK  ADVISORY  WRITE 77 {where} 0 EOF", lock.Lock(True, 77)),
                         (f"1: -> FLOCK  ADVISORY  WRITE 77 {where} 0 EOF", lock.Lock(False)),
                         (f"1: FLOCK  ADVISORY  WRITE 77 {where}1 0 EOF", lock.Lock(False)),
                         (f"1: LEASE  ACTIVE    READ 77 {where} 0 EOF", lock.Lock(False)),
                         (f"1: FLOCK  ADVISORY  WRITE 0 {where} 0 EOF", lock.Lock(True, None))):
    table.write_text(f"2: POSIX  ADVISORY  READ 5 00:01:9 0 EOF\n{line}\n")
    assert lock.state(path, table=table) == expected, line
