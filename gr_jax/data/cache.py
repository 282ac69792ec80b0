"""The picture cache: pictures of mixed sizes are decoded once, by several processes, into one memory-mapped array.

An entry is a folder. Its name contains the format's version and a key: the SHA-256 of everything that determines the
content (data set, files, ids in order, view, size). It is built under another name and renamed when complete, so a
kill leaves no incomplete entry; a lock, released when its process ends, prevents a second job from building the same
entry. On opening, the record, the shapes, the two small arrays (SHA-256) and the CRC-32 of up to 64 pictures are
checked. Checking all pictures would mean reading the whole file.

Boxes are drawn in the geometry of the original picture. Their edges are multiplied by stored side over original side,
per axis, and the fractional box is resized from the stored square, which undoes the squeezing. The cost is sharpness
where a box is smaller than the view. On crops at 224 pixels from scikit-learn's two photographs (427 x 640 and their
375 x 500 corners, 160 drawn boxes) the mean difference to the crop of the original was 3.8 grey levels at a stored
side of 256, 2.8 at 320, 2.1 at 384, 1.7 at 448; on crops of ten photographs, sides of 300 to 600, some enlarged, 2.1,
1.4, 1.0 and 0.8 (`python tests/strip.py FILE.png`, which also draws them; 2026-11-21). 28,000 pictures take 5.5, 8.6,
12.4 and 16.9 GB (10^9 bytes). The 224-pixel configs store 320.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gr_jax import files
from gr_jax.data import image, workers
from gr_jax.data.sources.base import Split
from gr_jax.errors import UserError

# Part of the name of every entry: increase it if the same key would stand for other bytes.
FORMAT = 1
_AT_ONCE = 16
_CHECKED = 64
# Bytes for the record and the two small arrays.
_MARGIN = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class View(NamedTuple):
  """What is stored of a picture: all of it "squeezed" into a square, its central "crop", or only its "size"."""
  kind: str
  side: int


class Cached(NamedTuple):
  """Pictures of an entry: images [images, side, side, channels] uint8, memory-mapped ([images, 0, 0, channels] if only
  sizes are stored); sizes [images, 2] int32, height and width of the originals."""
  images: np.ndarray
  sizes: np.ndarray


def fitted(picture: np.ndarray, view: View) -> np.ndarray:
  """The view "squeezed" or "crop" of a picture."""
  return {"squeezed": image.squeeze, "crop": image.central_crop}[view.kind](picture, view.side)


def folders(cache_dir: str | None, data_folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
  """Folders for entries, in the order in which they are tried.

  Args:
    cache_dir: the user's choice; None: beside the data or, if that cannot be written, in the user's cache folder.
    data_folder: of the data set.
  """
  if cache_dir is not None:
    return (pathlib.Path(cache_dir).expanduser().absolute(),)
  user_cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
  return data_folder / "gr_jax_cache", user_cache / "gr_jax" / "pictures"


def entry_name(name: str, split: Split, rows: Sequence[int], view: View) -> str:
  """The name of an entry, with the format's version and the key."""
  content = hashlib.sha256(json.dumps([name, split.fingerprint, *view, len(rows)]).encode())
  for row in rows:
    content.update(split.ids[row].encode() + b"\0")
  return f"{name}-{view.kind}{view.side}-v{FORMAT}-{content.hexdigest()[:32]}"


def load(split: Split, rows: Sequence[int], view: View, *, name: str, channels: int, places: Sequence[pathlib.Path],
         progress: Callable, say: Callable[[str], None], timeout: float) -> Cached:
  """Opens the entry of these pictures; builds it if it is missing.

  Args:
    split: source of the pictures; must pickle, since worker processes open it too.
    rows: of the split, in the order of the result.
    view: what is stored.
    name: of the data set.
    channels: of a picture.
    places: see `folders`.
    progress: wraps the iteration over decoded pictures while an entry is built.
    say: receives log lines.
    timeout: see workers.results.

  Raises:
    UserError: no folder can be written, the disk is full, a picture or an entry is damaged, a process died or hangs.
  """
  entry = entry_name(name, split, rows, view)
  shape = (len(rows), *((0, 0) if view.kind == "size" else (view.side,) * 2), channels)
  for place in places:
    if (place / entry).is_dir():
      return _open(place / entry, shape)
  place = writable(places)
  with locked(place / f"{entry}.lock", say):
    # Another job may have built it during the wait.
    if not (place / entry).is_dir():
      _build(split, rows, view, folder=place / entry, shape=shape, progress=progress, say=say, timeout=timeout)
  return _open(place / entry, shape)


def writable(places: Sequence[pathlib.Path]) -> pathlib.Path:
  """The first of these folders that can be written, created if missing; raises UserError if there is none."""
  errors = []
  for place in places:
    try:
      place.mkdir(parents=True, exist_ok=True)
      if os.access(place, os.W_OK | os.X_OK):
        return place
      errors.append(f"{place} cannot be written")
    except OSError as error:
      errors.append(str(error))
  raise UserError(f"no folder for the picture cache ({'; '.join(errors)}); set one with --config.cache_dir, or "
                  f"decode at every start with --config.cache_dir=off")


@contextlib.contextmanager
def locked(path: pathlib.Path, say: Callable[[str], None]) -> Iterator[None]:
  """Holds the lock of an entry; waits while another job builds it."""
  waiting = f"another job is decoding the same pictures into {path.parent}; waiting for it"
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(files.locked(path, lambda: say(waiting)))
    except OSError as error:
      raise UserError(f"{path.parent} cannot be locked ({error.strerror}); some network file systems do not support "
                      f"locks: choose another folder with --config.cache_dir") from error
    yield


def _build(split: Split, rows: Sequence[int], view: View, *, folder: pathlib.Path, shape: tuple[int, ...],
           progress: Callable, say: Callable[[str], None], timeout: float) -> None:
  partial = folder.with_name(f"{folder.name}.partial")
  # Left over from a killed job; we hold the lock, so nobody is using it.
  shutil.rmtree(partial, ignore_errors=True)
  needed, free = int(np.prod(shape)) + _MARGIN, shutil.disk_usage(folder.parent).free
  full = (f"{folder.parent} has {free / 1e9:.3f} GB free, but the cache of {len(rows)} pictures needs "
          f"{needed / 1e9:.3f} GB; free disk space, choose another folder with --config.cache_dir, or lower "
          f"--config.stored_size")
  if free < needed:
    raise UserError(full)
  say(f"{'reading the sizes of' if view.kind == 'size' else 'decoding'} {len(rows)} pictures once into {folder} "
      f"({needed / 1e9:.2f} GB) with {workers.count()} processes")
  try:
    partial.mkdir()
    images = partial / "images.npy"
    np.lib.format.open_memmap(images, "w+", np.uint8, shape).flush()
    # Allocates real blocks instead of a sparse file: a full disk is reported here, not as a bus error later.
    with open(images, "r+b") as file:
      os.posix_fallocate(file.fileno(), 0, images.stat().st_size)
    sizes, sums = np.zeros((len(rows), 2), np.int32), np.zeros(len(rows), np.uint32)
    blocks = [[(place, int(rows[place])) for place in range(first, min(first + _AT_ONCE, len(rows)))]
              for first in range(0, len(rows), _AT_ONCE)]
    decoded = workers.results(_fill, blocks, initializer=_begin, initargs=(split, images, view), timeout=timeout)
    with contextlib.closing(decoded):
      for place, size, checksum in progress((one for block in decoded for one in block), total=len(rows)):
        sizes[place], sums[place] = size, checksum
    np.save(partial / "sizes.npy", sizes)
    np.save(partial / "sums.npy", sums)
    record = {"format": FORMAT, "entry": folder.name, "shape": list(shape),
              "small": [_sha256(partial / name) for name in ("sizes.npy", "sums.npy")]}
    (partial / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    for path in partial.iterdir():
      with open(path, "rb") as file:
        os.fsync(file.fileno())
    partial.rename(folder)
  except OSError as error:
    if error.errno in _FULL:
      raise UserError(f"{full} ({error})") from error
    raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


# In a worker process; set once by `_begin`.
_work: tuple[Split, np.ndarray, View]


def _begin(split: Split, images: pathlib.Path, view: View) -> None:
  global _work
  _work = split, np.lib.format.open_memmap(images, "r+"), view


def _fill(block: list[tuple[int, int]]) -> list[tuple[int, tuple[int, int], int]]:
  """Decodes (place, row) pairs into the file; returns (place, original size, CRC-32)."""
  split, images, view = _work
  filled = []
  for place, row in block:
    if view.kind == "size":
      # From the header only: damage in the rest of the file is reported when the picture is streamed.
      size = split.size(row)
    else:
      picture = split.image(row)
      images[place], size = fitted(picture, view), picture.shape[:2]
    filled.append((place, size, zlib.crc32(images[place])))
  return filled


def _open(folder: pathlib.Path, shape: tuple[int, ...]) -> Cached:
  """Opens and checks an entry.

  Raises:
    UserError: it is damaged; the message says to remove it.
  """
  damaged = functools.partial(
      "the cache {} is damaged ({}); remove that folder, then rerun the command to build it again".format, folder)
  try:
    record = json.loads((folder / "record.json").read_text())
    small = [_sha256(folder / name) for name in ("sizes.npy", "sums.npy")]
    sizes, sums = (np.load(folder / name) for name in ("sizes.npy", "sums.npy"))
    # The system cannot map an empty array.
    images = np.load(folder / "images.npy", mmap_mode="r" if np.prod(shape) else None)
    matches = record["entry"] == folder.name and record["small"] == small
  # NumPy parses an array's header as Python, and a damaged one can raise nearly anything.
  except Exception as error:
    raise UserError(damaged(f"{type(error).__name__}: {error}".partition("\n")[0])) from error
  if not matches:
    raise UserError(damaged("its record does not match its arrays"))
  if images.shape != shape or images.dtype != np.uint8 or sizes.shape != (shape[0], 2):
    raise UserError(damaged(f"its images are {images.shape}, not {shape}"))
  for place in np.unique(np.linspace(0, shape[0] - 1, min(_CHECKED, shape[0])).astype(int)):
    if zlib.crc32(images[place]) != sums[place]:
      raise UserError(damaged(f"picture {place} has changed"))
  return Cached(images, sizes)
