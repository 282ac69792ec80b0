"""A user's own pictures: folders of classes, or list files; JPEG, PNG and WebP of any mode."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image

from gr_jax import files
from gr_jax.data.sources.base import IMAGENET_MEAN, IMAGENET_STD, Source
from gr_jax.errors import UserError
from gr_jax.scenario import Facts

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")

# Of ImageNet, which stand for photographs in general.

# Which pictures have been looked at and can be decoded, beside them.
_LOOKED_AT = ".gr_jax-pictures.json"

ON_BAD_IMAGE = ("fail", "skip")

_LAYOUT = ("it takes train/<class>/*.jpg and test/<class>/*.jpg (also .png, .webp), or --config.folder.train_list and "
           "--config.folder.test_list")

# (path as the user wrote it, class name), in the data set's order.
_Rows = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class FolderSplit:
  """Pictures on the disk; see source.Split.

  Attributes:
    root: to which ids are relative.
    labels: [images] int64.
    ids: [images] POSIX paths relative to the root, or absolute ones outside of it.
  """
  root: pathlib.Path
  labels: np.ndarray
  ids: list[str]

  @functools.cached_property
  def _files(self) -> list[tuple[int, int]]:
    """Bytes and time of change in ns of each file; (-1, 0) for a missing one, which is told of when it is read."""
    found = []
    for path in self.ids:
      try:
        status = (self.root / path).stat()
        found.append((status.st_size, status.st_mtime_ns))
      except OSError:
        found.append((-1, 0))
    return found

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of the files' names, sizes and times of change."""
    digest = hashlib.sha256()
    for path, (size, changed) in zip(self.ids, self._files):
      digest.update(f"{path} {size} {changed}\0".encode())
    return digest.hexdigest()

  def identity(self, row: int) -> str:
    """Id and bytes of the file, which a copy of it shares; see source.Split."""
    return f"{self.ids[row]} {self._files[row][0]}"

  def encoded(self, row: int) -> bytes:
    """The file; see source.Split."""
    return self._read(row, pathlib.Path.read_bytes)

  def size(self, row: int) -> tuple[int, int]:
    """Height and width; see source.Split."""
    return self._read(row, upright_size)

  def image(self, row: int) -> np.ndarray:
    """The decoded picture, [height, width, 3] uint8."""
    return self._read(row, decode)

  def _read(self, row: int, how: Callable[[pathlib.Path], Any]) -> Any:
    path = self.root / self.ids[row]
    try:
      return how(path)
    except (FileNotFoundError, BadPicture) as error:
      raise UserError(f"picture {path} cannot be read ({error}); replace it, or leave out such pictures with "
                      f"--config.folder.on_bad_image=skip") from error
    except OSError as error:
      raise UserError(_out_of_reach(path, error)) from error


class BadPicture(Exception):
  """The file can be read, but it is no picture, or a damaged one."""


def _out_of_reach(path: pathlib.Path, error: OSError) -> str:
  return f"picture {path} cannot be read ({error.strerror}); mend that (disk, network folder, rights)"


def _opened(path: pathlib.Path, how: Callable[[PIL.Image.Image], Any]) -> Any:
  try:
    with PIL.Image.open(path, formats=_FORMATS) as picture:
      return how(picture)
  except MemoryError:
    raise
  # For damaged bytes Pillow raises nearly anything: struct.error, KeyError and TypeError have been seen.
  except Exception as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise
    raise BadPicture(str(error) or type(error).__name__) from error


def decode(path: pathlib.Path) -> np.ndarray:
  """A picture as it is meant to be seen, [height, width, 3] uint8.

  The first frame; turned as its EXIF orientation says; grey is tripled, 16 bit lose their lower half, transparency is
  dropped, what it hid stays.

  Raises:
    BadPicture: it cannot be decoded.
    OSError: the system does not give it.
  """
  def pixels(picture: PIL.Image.Image) -> np.ndarray:
    turn = _TURNS.get(_orientation(picture))
    # Not Pillow's exif_transpose, which also writes the EXIF anew and trips over odd entries.
    turned = picture.transpose(turn) if turn is not None else picture
    if turned.mode.startswith("I"):
      # Pillow would cut all above 255 off.
      return np.repeat((np.asarray(turned).astype(np.uint32) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    whole = turned.convert("RGBA") if turned.mode == "P" and "transparency" in turned.info else turned
    return np.asarray(whole.convert("RGB"))

  return _opened(path, pixels)


def upright_size(path: pathlib.Path) -> tuple[int, int]:
  """Height and width of what `decode` gives: from the header, but for PNG, whose EXIF may come last; raises as
  `decode`."""
  return _opened(path, lambda picture: picture.size if _orientation(picture) in _ON_ITS_SIDE else picture.size[::-1])


def _orientation(picture: PIL.Image.Image) -> Any:
  return picture.getexif().get(PIL.ExifTags.Base.Orientation)


# EXIF orientation -> what makes the picture upright.
_TURNS = {2: PIL.Image.Transpose.FLIP_LEFT_RIGHT, 3: PIL.Image.Transpose.ROTATE_180,
          4: PIL.Image.Transpose.FLIP_TOP_BOTTOM, 5: PIL.Image.Transpose.TRANSPOSE,
          6: PIL.Image.Transpose.ROTATE_270, 7: PIL.Image.Transpose.TRANSVERSE, 8: PIL.Image.Transpose.ROTATE_90}
_ON_ITS_SIDE = (5, 6, 7, 8)


def load(root: str | None, *, train_list: str | None, test_list: str | None, test_fraction: float, test_seed: int,
         on_bad_image: str, progress: Callable = lambda items, **_: items) -> Source:
  """The pictures under a folder, or in two list files, as a data set.

  Args:
    root: with train/<class>/* and test/<class>/*, or what the paths in list files are relative to.
    train_list, test_list: files of lines `path label`; the label is the last word, a name or a whole number; empty
      lines and those that begin with # do not count. Relative to the root, as the paths in them.
    test_fraction: above 0: this share of each class of the training pictures, at least one, is the test set.
    test_seed: which ones, in the order of a hash of (seed, path).
    on_bad_image: "fail": the first picture that is needed and cannot be read ends the run; "skip": every picture is
      looked at before anything is drawn, and those that cannot be read are left out.
    progress: wraps the pictures that are being looked at.

  Raises:
    UserError: no folder or list, nothing in it, a list's line that cannot be read, a missing or repeated picture, a
      class without training or test pictures, two test sets or none.
  """
  if root is None:
    raise UserError(f"--config.data_dir is missing: the folder of your pictures; {_LAYOUT}")
  base = pathlib.Path(root).expanduser().absolute()
  if not base.is_dir():
    raise UserError(f"--config.data_dir is {root}, which is no folder; {_LAYOUT}")
  notes: list[str] = []
  train = _read_list(base, train_list) if train_list else _scan(base, "train", notes)
  has_test = test_list is not None or (train_list is None and (base / "test").is_dir())
  if has_test and test_fraction:
    raise UserError(f"folder.test_fraction is {test_fraction}, but there is a test set ({test_list or base / 'test'}); "
                    f"unset one of them: --config.folder.test_fraction=0")
  if not has_test and not test_fraction:
    lacking = "no --config.folder.test_list" if train_list else f"no {base / 'test'}, no --config.folder.test_list"
    raise UserError(f"there is no test set: {lacking}; give one, or take a share of each class with "
                    f"--config.folder.test_fraction=0.2")
  test = (_read_list(base, test_list) if test_list else _scan(base, "test", notes)) if has_test else []
  _check_apart(base, train, test)
  skipped: tuple[str, ...] = ()
  if on_bad_image == "skip":
    skipped = _bad_ones(base, [path for path, _ in (*train, *test)], progress)
    train, test = (_without(rows, set(skipped)) for rows in (train, test))
    if skipped:
      notes.append(f"{len(skipped)} pictures that cannot be read are left out, such as {skipped[0]}")
  if not has_test:
    train, test = _share(train, test_fraction, test_seed)
    notes.append(f"test set: {len(test)} pictures, {100 * test_fraction:g} % of each class, by a hash of (seed "
                 f"{test_seed}, path)")
  names = _class_names(train, test, numbered=train_list is not None)
  label = {name: number for number, name in enumerate(names)}

  def split(rows: _Rows) -> FolderSplit:
    return FolderSplit(base, np.asarray([label[name] for _, name in rows], np.int64), [path for path, _ in rows])

  return Source(name="folder", class_names=names, train=split(train), test=split(test), facts=Facts(),
                mean=IMAGENET_MEAN, std=IMAGENET_STD, uniform=False, notes=tuple(notes), skipped=skipped)


def _scan(base: pathlib.Path, part: str, notes: list[str]) -> _Rows:
  """The pictures in base/part/<class>/, classes and files by name."""
  folder = base / part
  classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")) \
      if folder.is_dir() else []
  if not classes:
    raise UserError(f"{folder} holds no folder of a class; {_LAYOUT}")
  rows, others = [], []
  for path in classes:
    inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    for file in inside:
      try:
        file.as_posix().encode()
      except UnicodeEncodeError as error:
        raise UserError(f"{file.as_posix()!r} is a name that is no UTF-8; rename it") from error
    found = [file for file in inside if file.suffix.lower() in _SUFFIXES]
    others += [file for file in inside if file.suffix.lower() not in _SUFFIXES]
    if not found:
      raise UserError(f"class {path.name!r} has no picture: none of {', '.join(_SUFFIXES)} in {path}; add some, or "
                      f"remove the folder")
    rows += [(file.relative_to(base).as_posix(), path.name) for file in found]
  if others:
    notes.append(f"{len(others)} entries under {part}/ are no pictures by their names, such as "
                 f"{others[0].relative_to(base).as_posix()}")
  return rows


def _read_list(base: pathlib.Path, name: str) -> _Rows:
  """The rows of a list file, in its order; every picture must be there."""
  path = base / pathlib.Path(name).expanduser()
  try:
    # With or without the mark that some editors put first.
    lines = path.read_text("utf-8-sig").splitlines()
  except OSError as error:
    raise UserError(f"the list {path} cannot be read ({error.strerror}); lists are looked for in --config.data_dir, or "
                    f"give an absolute path") from error
  except UnicodeDecodeError as error:
    raise UserError(f"the list {path} is no text in UTF-8 ({error}); save it as such") from error
  rows, seen, missing = [], {}, []
  for number, line in enumerate(lines, start=1):
    if not line.strip() or line.lstrip().startswith("#"):
      continue
    words = line.rsplit(maxsplit=1)
    if len(words) != 2:
      raise UserError(f"line {number} of {name} is {line!r}; it takes a path and a label")
    file = base / words[0].strip()
    real = _real(file)
    if real in seen:
      raise UserError(f"line {number} of {name} names {words[0]} again, after line {seen[real]}; a picture has one "
                      f"line")
    seen[real] = number
    if not file.is_file():
      missing.append((number, file))
    # Inside the root the id does not depend on where the root is.
    rows.append((file.relative_to(base).as_posix() if file.is_relative_to(base) else file.as_posix(), words[1]))
  if missing:
    number, file = missing[0]
    raise UserError(f"{len(missing)} pictures of {name} are not there, the first in line {number}: {file}; paths are "
                    f"relative to --config.data_dir={base}, or absolute")
  if not rows:
    raise UserError(f"the list {name} names no picture")
  return rows


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
  return os.path.realpath(folder)


def _real(file: pathlib.Path) -> str:
  """Where a file really is, however it is spelt or linked."""
  if file.is_symlink():
    return os.path.realpath(file)
  return os.path.join(_real_folder(os.path.dirname(file)), file.name)


def _check_apart(base: pathlib.Path, train: _Rows, test: _Rows) -> None:
  trained_on = {_real(base / path) for path, _ in train}
  both = [path for path, _ in test if _real(base / path) in trained_on]
  if both:
    raise UserError(f"{len(both)} pictures are in the training and in the test set, such as {min(both)}; a picture "
                    f"that was trained on must not be tested on")


def _without(rows: _Rows, skipped: set[str]) -> _Rows:
  """The rows whose picture is not among the skipped ones.

  Raises:
    UserError: a class would be left without any.
  """
  kept = [row for row in rows if row[0] not in skipped]
  lost = sorted({name for _, name in rows} - {name for _, name in kept})
  if lost:
    example = next(path for path, name in rows if name == lost[0])
    raise UserError(f"{len(lost)} classes have no picture that can be read ({', '.join(lost[:5])}; such as {example}); "
                    f"replace them, or leave these classes out")
  return kept


def _class_names(train: _Rows, test: _Rows, *, numbered: bool) -> tuple[str, ...]:
  """Class names in order: whole numbers by value, else by name; `numbered`: whole numbers have no gap from 0."""
  trained, tested = {name for _, name in train}, {name for _, name in test}
  for only, where, lacking in ((trained - tested, "training", "test"), (tested - trained, "test", "training")):
    if only:
      raise UserError(f"{len(only)} classes have {where} pictures but no {lacking} pictures "
                      f"({', '.join(sorted(only)[:5])}); add some, or leave these classes out")
  if not all(name.isdecimal() for name in trained):
    return tuple(sorted(trained))
  names = sorted(trained, key=lambda name: (int(name), name))
  if numbered and [int(name) for name in names] != list(range(len(names))):
    gap = next(number for number, name in enumerate(names) if int(name) != number)
    raise UserError(f"class {gap} has no picture: the labels are whole numbers, so {len(names)} classes are to be "
                    f"0 to {len(names) - 1}; renumber them, or give names")
  return tuple(names)


def _share(rows: _Rows, fraction: float, seed: int) -> tuple[_Rows, _Rows]:
  """(training rows, test rows), each in the order of `rows`."""
  chosen: set[str] = set()
  by_class: dict[str, list[str]] = {}
  for path, name in rows:
    by_class.setdefault(name, []).append(path)
  for name, own in sorted(by_class.items()):
    if len(own) < 2:
      raise UserError(f"class {name!r} has one picture ({own[0]}), which cannot be trained on and tested on; add some, "
                      f"or leave the class out")
    count = min(max(1, round(fraction * len(own))), len(own) - 1)
    chosen |= set(sorted(own, key=lambda path: hashlib.sha256(f"{seed} test {path}".encode()).digest())[:count])
  return [row for row in rows if row[0] not in chosen], [row for row in rows if row[0] in chosen]


def _bad_ones(base: pathlib.Path, paths: Sequence[str], progress: Callable) -> tuple[str, ...]:
  """Those that are missing or cannot be decoded. The good ones are remembered beside the pictures; a bad one, and a
  file that has changed, is looked at again at every start.

  Raises:
    UserError: the system does not give a picture that is there; that may pass, and must not decide what is learnt.
  """
  known = _read_known(base / _LOOKED_AT)

  def look(path: str) -> tuple[str, list[int] | None]:
    try:
      status = (base / path).stat()
      found = [status.st_size, status.st_mtime_ns]
      if known.get(path) != found:
        decode(base / path)
    except (FileNotFoundError, BadPicture):
      return path, None
    except OSError as error:
      raise UserError(_out_of_reach(base / path, error)) from error
    return path, found

  # Decoding releases the interpreter's lock, so threads use every core.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    looked = dict(progress(pool.map(look, paths), total=len(paths)))
  good = {path: found for path, found in looked.items() if found is not None}
  if good != known:
    # A folder that only others may write to: the pictures are looked at again at the next start.
    with contextlib.suppress(OSError):
      files.replace(base / _LOOKED_AT, json.dumps(good))
  return tuple(path for path in paths if looked[path] is None)


def _read_known(path: pathlib.Path) -> dict[str, Any]:
  """{path: [bytes, modification time in ns]} of pictures that could be decoded; nothing where that cannot be read."""
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
