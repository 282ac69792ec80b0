"""Who holds the lock of a run, read from the kernel's table.

Nothing is locked for it: a probe that takes the lock, even for an instant, would refuse a run that starts just then.
"""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple


class Lock(NamedTuple):
  """Whether a process of this machine holds a lock, and which; `held` is None where that cannot be seen."""
  held: bool | None
  process: int | None = None


def state(path: pathlib.Path, *, table: pathlib.Path = pathlib.Path("/proc/locks")) -> Lock:
  """The state of a lock that files.locked takes.

  Args:
    path: of the lock file.
    table: the kernel's list of locks.
  """
  try:
    file = path.stat()
  except FileNotFoundError:
    return Lock(False)
  except OSError:
    return Lock(None)
  try:
    lines = table.read_text().splitlines()
  except OSError:
    return Lock(None)
  device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
  for line in lines:
    # NUMBER: FLOCK ADVISORY WRITE PROCESS MAJOR:MINOR:INODE START END; waiting ones have -> after the number.
    words = line.split()
    if len(words) < 6 or words[1] == "->" or words[1] not in ("FLOCK", "POSIX", "OFDLCK"):
      continue
    where, _, inode = words[5].rpartition(":")
    process = int(words[4])
    # Some file systems show another device here than to stat.
    if inode == str(file.st_ino) and (where == device or _has_open(process, path)):
      return Lock(True, process if process > 0 else None)
  return Lock(False)


def _has_open(process: int, path: pathlib.Path) -> bool:
  try:
    return any(os.path.realpath(link) == os.path.realpath(path)
               for link in pathlib.Path(f"/proc/{process}/fd").iterdir())
  except OSError:
    return False
