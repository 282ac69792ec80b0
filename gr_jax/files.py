"""Atomic writes, and locks that are released when the process is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator


def replace(path: pathlib.Path, content: str | bytes) -> None:
  """Replaces a file atomically, safe against a power cut.

  Raises:
    OSError: it cannot be written; an existing file is unchanged.
  """
  # The process id keeps processes that write the same file apart.
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      file.write(content.encode() if isinstance(content, str) else content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)


@contextlib.contextmanager
def locked(path: pathlib.Path, taken: Callable[[], None]) -> Iterator[None]:
  """Holds a lock on a file. The file is not removed: removing it could let in two jobs.

  Args:
    path: of the lock file.
    taken: called if another job holds the lock; either raises, or returns to wait for the lock.

  Raises:
    OSError: the file cannot be opened or locked, as on some network file systems.
  """
  with open(path, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      taken()
      fcntl.flock(file, fcntl.LOCK_EX)
    yield
