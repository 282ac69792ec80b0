"""Files that a kill cannot leave half written, and locks that a kill lets go of."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator


def replace(path: pathlib.Path, text: str) -> None:
  """Writes a file in one move that outlasts a power cut.

  Raises:
    OSError: it cannot be written; the file from before, if any, is untouched.
  """
  # Processes that write the same file do not meet in the temporary one.
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("w") as file:
      file.write(text)
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
  """Holds a lock file. It stays afterwards: removing it would let two jobs in.

  Args:
    path: of the lock file.
    taken: called where another job holds the lock; it raises, or returns to wait.

  Raises:
    OSError: the file cannot be opened or locked, as in some network folders.
  """
  with open(path, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      taken()
      fcntl.flock(file, fcntl.LOCK_EX)
    yield
