"""Labels and ids of a large split, kept in a file: to collect them, every record has to be read with its picture.

The file's name holds the format's version and a key, the SHA-256 of what identifies the split. At each opening some
records are read and compared; a file that does not fit them, or is damaged, is made again.
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
# Part of the name of every file: raise it whenever the same key would mean another content.
FORMAT = 1
_COMPARED = 16


class Index(NamedTuple):
  """Records of a split in their order: labels [records] int64; ids [records] bytes of fixed width (NumPy's S)."""
  labels: np.ndarray
  ids: np.ndarray


def load(read: Callable[[Sequence[int]], Index], count: int, key: str, *, name: str,
         places: Sequence[pathlib.Path], say: Callable[[str], None]) -> Index:
  """The index of a split: from its file, or read from every record and kept for the next start.

  Args:
    read: the index of some records.
    count: of all records.
    key: identifies the split.
    name: of the split, for the file's name.
    places: folders, see cache.folders. Where none can be written the index is not kept, and that is said.
    say: takes a line for the log.

  Raises:
    UserError: of `read`.
  """
  file = f"{name}-index-v{FORMAT}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
  for place in places:
    found = _opened(place / file, read, count)
    if found is not None:
      return found
  try:
    place = cache.writable(places)
  except UserError as error:
    say(f"labels and ids of {count} records are read again at every start: {error}")
    return read(range(count))
  with cache.locked(place / f"{file}.lock", say):
    # Another job may have written it while this one waited.
    found = _opened(place / file, read, count)
    if found is None:
      say(f"reading labels and ids of {count} records once, into {place / file}")
      found = read(range(count))
      _write(place / file, found, say)
  return found


def _opened(path: pathlib.Path, read: Callable[[Sequence[int]], Index], count: int) -> Index | None:
  """The content of a file that fits the records; None where it is missing, damaged, or of other records."""
  try:
    with open(path, "rb") as file, np.load(file) as arrays:
      found = Index(arrays["labels"], arrays["ids"])
  # Of a file that is missing, cut short, or changed: the archive keeps a checksum of each array.
  except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
    return None
  if len(found.labels) != count or len(found.ids) != count:
    return None
  rows = np.unique(np.linspace(0, count - 1, min(_COMPARED, count)).astype(int))
  there = read(rows.tolist())
  same = np.array_equal(there.labels, found.labels[rows]) and there.ids.tolist() == found.ids[rows].tolist()
  return found if same else None


def _write(path: pathlib.Path, index: Index, say: Callable[[str], None]) -> None:
  """Under another name first, so that a kill in the middle leaves nothing that is taken for an index."""
  partial = path.with_name(f"{path.name}.partial")
  try:
    with open(partial, "wb") as file:
      np.savez(file, labels=index.labels, ids=index.ids)
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)
  except OSError as error:
    # A full disk: the run itself does not need the file.
    partial.unlink(missing_ok=True)
    say(f"labels and ids could not be kept in {path} ({error}); they are read again at the next start")
