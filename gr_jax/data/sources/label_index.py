"""Index file with the labels and ids of a large split, because collecting them means reading every record.

The file name contains the format's version and a key, the SHA-256 of what identifies the split. On opening, some
records are read and compared; if the file does not match or is damaged, it is built again.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gr_jax.data import cache
from gr_jax.errors import UserError

# Splits with more bytes than this are indexed; smaller ones are read in seconds.
FROM_BYTES = 2**30
# Part of the name of every file: increase it if the same key would stand for other content.
FORMAT = 1
_COMPARED = 16


class Index(NamedTuple):
  """Records of a split in order: labels [records] int64; ids [records] bytes of fixed width (NumPy's S)."""
  labels: np.ndarray
  ids: np.ndarray


def load(read: Callable[[Sequence[int]], Index], count: int, key: str, *, name: str,
         places: Sequence[pathlib.Path], say: Callable[[str], None]) -> Index:
  """The index of a split, from its file or from every record; then it is saved for the next start.

  Args:
    read: returns the index of some records.
    count: number of records.
    key: identifies the split.
    name: of the split, for the file name.
    places: folders, see cache.folders. If none can be written, the index is not saved, and the log says so.
    say: receives log lines.

  Raises:
    UserError: from `read`.
  """
  file = f"{name}-index-v{FORMAT}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
  for place in places:
    index = _opened(place / file, read, count)
    if index is not None:
      return index
  try:
    place = cache.writable(places)
  except UserError as error:
    say(f"labels and ids of {count} records are read again at every start: {error}")
    return read(range(count))
  with cache.locked(place / f"{file}.lock", say):
    # Another job may have written it during the wait.
    index = _opened(place / file, read, count)
    if index is None:
      say(f"reading labels and ids of {count} records once, into {place / file}")
      index = read(range(count))
      _write(place / file, index, say)
  return index


def _opened(path: pathlib.Path, read: Callable[[Sequence[int]], Index], count: int) -> Index | None:
  """The content of a file that matches the records; None if it is missing, damaged, or of other records."""
  try:
    with open(path, "rb") as file, np.load(file) as arrays:
      index = Index(arrays["labels"], arrays["ids"])
  # The file is missing, truncated or changed; the archive has a checksum of each array.
  except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
    return None
  if len(index.labels) != count or len(index.ids) != count:
    return None
  rows = np.unique(np.linspace(0, count - 1, min(_COMPARED, count)).astype(int))
  there = read(rows.tolist())
  same = np.array_equal(there.labels, index.labels[rows]) and there.ids.tolist() == index.ids[rows].tolist()
  return index if same else None


def _write(path: pathlib.Path, index: Index, say: Callable[[str], None]) -> None:
  """Writes the file under another name and renames it, so that a kill leaves no incomplete index."""
  partial = path.with_name(f"{path.name}.partial")
  try:
    with open(partial, "wb") as file:
      np.savez(file, labels=index.labels, ids=index.ids)
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)
  except OSError as error:
    # For example a full disk; the run does not need the file.
    partial.unlink(missing_ok=True)
    say(f"labels and ids could not be saved in {path} ({error}); they will be read again at the next start")
