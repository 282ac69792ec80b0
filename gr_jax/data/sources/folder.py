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

from gr_jax import files
from gr_jax.data import image
from gr_jax.data.sources.base import IMAGENET_MEAN, IMAGENET_STD, Source
from gr_jax.errors import UserError
from gr_jax.scenario import DatasetProperties

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

# File in the folder of the pictures that lists those known to be decodable.
_LOOKED_AT = ".gr_jax-pictures.json"

ON_BAD_IMAGE = ("fail", "skip")

_LAYOUT = ("expected train/<class>/*.jpg and test/<class>/*.jpg (also .png, .webp), or --config.folder.train_list and "
           "--config.folder.test_list")

# (path as the user wrote it, class name), in the data set's order.
_Rows = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class FolderSplit:
  """Pictures on disk; see base.Split.

  Attributes:
    root: folder that ids are relative to.
    labels: [images] int64.
    ids: [images] POSIX paths, relative to the root, or absolute if outside it.
  """
  root: pathlib.Path
  labels: np.ndarray
  ids: list[str]

  @functools.cached_property
  def _files(self) -> list[tuple[int, int]]:
    """Bytes and modification time in ns of each file; (-1, 0) for a missing one, which is reported when read."""
    stamps = []
    for path in self.ids:
      try:
        status = (self.root / path).stat()
        stamps.append((status.st_size, status.st_mtime_ns))
      except OSError:
        stamps.append((-1, 0))
    return stamps

  @property
  def fingerprint(self) -> str:
    """Hash of the files' names, sizes and modification times."""
    return self._fingerprint

  # Under another name, because type checkers do not accept a cached property where `base.Split` has a property.
  @functools.cached_property
  def _fingerprint(self) -> str:
    digest = hashlib.sha256()
    for path, (size, changed) in zip(self.ids, self._files):
      digest.update(f"{path} {size} {changed}\0".encode())
    return digest.hexdigest()

  def identity(self, row: int) -> str:
    """Id and size in bytes of the file, which a copy preserves; see base.Split."""
    return f"{self.ids[row]} {self._files[row][0]}"

  def encoded(self, row: int) -> bytes:
    """The file; see base.Split."""
    return self._read(row, pathlib.Path.read_bytes)

  def size(self, row: int) -> tuple[int, int]:
    """Height and width; see base.Split."""
    return self._read(row, image.upright_size)

  def image(self, row: int) -> np.ndarray:
    """The decoded picture, [height, width, 3] uint8."""
    return self._read(row, image.decode)

  def _read(self, row: int, how: Callable[[pathlib.Path], Any]) -> Any:
    path = self.root / self.ids[row]
    try:
      return how(path)
    except (FileNotFoundError, image.BadPicture) as error:
      raise UserError(f"picture {path} cannot be read ({error}); replace it, or skip such pictures with "
                      f"--config.folder.on_bad_image=skip") from error
    except OSError as error:
      raise UserError(_out_of_reach(path, error)) from error


def _out_of_reach(path: pathlib.Path, error: OSError) -> str:
  return (f"picture {path} cannot be read ({error.strerror}); fix the disk, network folder or permissions, then rerun "
          f"the command")


def load(root: str | None, *, train_list: str | None, test_list: str | None, test_fraction: float, test_seed: int,
         on_bad_image: str, progress: Callable = lambda items, **_: items) -> Source:
  """The pictures in a folder, or in two list files, as a data set.

  Args:
    root: folder with train/<class>/* and test/<class>/*, or the folder that paths in list files are relative to.
    train_list, test_list: files with lines `path label`; the label is the last word, a name or an integer; empty lines
      and those starting with # are ignored. Their own paths are relative to the root too.
    test_fraction: above 0: this share of each class's training pictures, at least one, becomes the test set.
    test_seed: chooses these pictures, by the order of a hash of (seed, path).
    on_bad_image: "fail": the first unreadable picture that is needed ends the run; "skip": all pictures are checked
      before the draw, and unreadable ones are left out.
    progress: wraps the iteration over pictures while they are checked.

  Raises:
    UserError: the folder or list is missing or empty, a line of a list is invalid, a picture is missing or repeated, a
      class has no training or test pictures, there are two test sets or none.
  """
  if root is None:
    raise UserError(f"--config.data_dir is missing; set it to the folder of your pictures: {_LAYOUT}")
  base = pathlib.Path(root).expanduser().absolute()
  if not base.is_dir():
    raise UserError(f"--config.data_dir is {root}, which is not a folder; {_LAYOUT}")
  notes: list[str] = []
  train = _read_list(base, train_list) if train_list else _scan(base, "train", notes)
  has_test = test_list is not None or (train_list is None and (base / "test").is_dir())
  if has_test and test_fraction:
    raise UserError(f"folder.test_fraction is {test_fraction}, but there is a test set ({test_list or base / 'test'}); "
                    f"set --config.folder.test_fraction=0, or remove the test set")
  if not has_test and not test_fraction:
    lacking = "no --config.folder.test_list" if train_list else f"no {base / 'test'}, no --config.folder.test_list"
    raise UserError(f"there is no test set: {lacking}; provide one, or take a share of each class with "
                    f"--config.folder.test_fraction=0.2")
  test = (_read_list(base, test_list) if test_list else _scan(base, "test", notes)) if has_test else []
  _check_apart(base, train, test)
  skipped: tuple[str, ...] = ()
  if on_bad_image == "skip":
    skipped = _bad_ones(base, [path for path, _ in (*train, *test)], progress)
    train, test = (_without(rows, set(skipped)) for rows in (train, test))
    if skipped:
      notes.append(f"{len(skipped)} unreadable pictures skipped, such as {skipped[0]}")
  if not has_test:
    train, test = _share(train, test_fraction, test_seed)
    notes.append(f"test set: {len(test)} pictures, {100 * test_fraction:g} % of each class, chosen by a hash of (seed "
                 f"{test_seed}, path)")
  names = _class_names(train, test, numbered=train_list is not None)
  label = {name: number for number, name in enumerate(names)}

  def split(rows: _Rows) -> FolderSplit:
    return FolderSplit(base, np.asarray([label[name] for _, name in rows], np.int64), [path for path, _ in rows])

  return Source(name="folder", class_names=names, train=split(train), test=split(test), properties=DatasetProperties(),
                mean=IMAGENET_MEAN, std=IMAGENET_STD, uniform=False, notes=tuple(notes), skipped=skipped)


def _scan(base: pathlib.Path, part: str, notes: list[str]) -> _Rows:
  """The pictures in base/part/<class>/, classes and files sorted by name."""
  folder = base / part
  classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")) \
      if folder.is_dir() else []
  if not classes:
    raise UserError(f"{folder} contains no class folders; {_LAYOUT}")
  rows, others = [], []
  for path in classes:
    inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    for file in inside:
      try:
        file.as_posix().encode()
      except UnicodeEncodeError as error:
        raise UserError(f"the file name {file.as_posix()!r} is not valid UTF-8; rename the file") from error
    pictures = [file for file in inside if file.suffix.lower() in SUFFIXES]
    others += [file for file in inside if file.suffix.lower() not in SUFFIXES]
    if not pictures:
      raise UserError(f"class {path.name!r} has no picture ({', '.join(SUFFIXES)}) in {path}; add some, or remove "
                      f"the folder")
    rows += [(file.relative_to(base).as_posix(), path.name) for file in pictures]
  if others:
    notes.append(f"{len(others)} entries in {part}/ skipped (unknown extension), such as "
                 f"{others[0].relative_to(base).as_posix()}")
  return rows


def _read_list(base: pathlib.Path, name: str) -> _Rows:
  """The rows of a list file, in its order; every picture must exist."""
  path = base / pathlib.Path(name).expanduser()
  try:
    # With or without a byte order mark.
    lines = path.read_text("utf-8-sig").splitlines()
  except OSError as error:
    raise UserError(f"the list {path} cannot be read ({error.strerror}); use a path relative to --config.data_dir, or "
                    f"an absolute one") from error
  except UnicodeDecodeError as error:
    raise UserError(f"the list {path} is not UTF-8 text ({error}); save it as UTF-8") from error
  rows, seen, missing = [], {}, []
  for number, line in enumerate(lines, start=1):
    if not line.strip() or line.lstrip().startswith("#"):
      continue
    words = line.rsplit(maxsplit=1)
    if len(words) != 2:
      raise UserError(f"line {number} of {name} is {line!r}; it must be a path and a label")
    file = base / words[0].strip()
    real = _real(file)
    if real in seen:
      raise UserError(f"line {number} of {name} repeats {words[0]} from line {seen[real]}; remove one of them")
    seen[real] = number
    if not file.is_file():
      missing.append((number, file))
    # Relative inside the root, so that the id does not depend on where the root is.
    rows.append((file.relative_to(base).as_posix() if file.is_relative_to(base) else file.as_posix(), words[1]))
  if missing:
    number, file = missing[0]
    raise UserError(f"{len(missing)} pictures of {name} do not exist, the first in line {number}: {file}; paths must "
                    f"be relative to --config.data_dir={base}, or absolute")
  if not rows:
    raise UserError(f"the list {name} is empty; add lines with a path and a label")
  return rows


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
  return os.path.realpath(folder)


def _real(file: pathlib.Path) -> str:
  """The real path of a file, with links resolved."""
  if file.is_symlink():
    return os.path.realpath(file)
  return os.path.join(_real_folder(os.path.dirname(file)), file.name)


def _check_apart(base: pathlib.Path, train: _Rows, test: _Rows) -> None:
  trained_on = {_real(base / path) for path, _ in train}
  both = [path for path, _ in test if _real(base / path) in trained_on]
  if both:
    raise UserError(f"{len(both)} pictures are in both the training and the test set, such as {min(both)}; remove them "
                    f"from one of the two")


def _without(rows: _Rows, skipped: set[str]) -> _Rows:
  """The rows whose picture is not skipped.

  Raises:
    UserError: a class would have no picture left.
  """
  kept = [row for row in rows if row[0] not in skipped]
  lost = sorted({name for _, name in rows} - {name for _, name in kept})
  if lost:
    example = next(path for path, name in rows if name == lost[0])
    raise UserError(f"{len(lost)} classes have no readable picture ({', '.join(lost[:5])}; such as {example}); replace "
                    f"the pictures, or remove these classes")
  return kept


def _class_names(train: _Rows, test: _Rows, *, numbered: bool) -> tuple[str, ...]:
  """Class names in order: integers by value, else by name; `numbered`: integers must be 0, 1, ... without gaps."""
  trained, tested = {name for _, name in train}, {name for _, name in test}
  for only, where, lacking in ((trained - tested, "training", "test"), (tested - trained, "test", "training")):
    if only:
      raise UserError(f"{len(only)} classes have {where} pictures but no {lacking} pictures "
                      f"({', '.join(sorted(only)[:5])}); add some, or remove these classes")
  if not all(name.isdecimal() for name in trained):
    return tuple(sorted(trained))
  names = sorted(trained, key=lambda name: (int(name), name))
  if numbered and [int(name) for name in names] != list(range(len(names))):
    gap = next(number for number, name in enumerate(names) if int(name) != number)
    raise UserError(f"class {gap} has no picture: the labels are integers, so the {len(names)} classes must be 0 to "
                    f"{len(names) - 1}; renumber them, or use names")
  return tuple(names)


def _share(rows: _Rows, fraction: float, seed: int) -> tuple[_Rows, _Rows]:
  """(training rows, test rows), each in the order of `rows`."""
  chosen: set[str] = set()
  by_class: dict[str, list[str]] = {}
  for path, name in rows:
    by_class.setdefault(name, []).append(path)
  for name, paths in sorted(by_class.items()):
    if len(paths) < 2:
      raise UserError(f"class {name!r} has only one picture ({paths[0]}), but needs one for training and one for "
                      f"testing; add some, or remove the class")
    count = min(max(1, round(fraction * len(paths))), len(paths) - 1)
    chosen |= set(sorted(paths, key=lambda path: hashlib.sha256(f"{seed} test {path}".encode()).digest())[:count])
  return [row for row in rows if row[0] not in chosen], [row for row in rows if row[0] in chosen]


def _bad_ones(base: pathlib.Path, paths: Sequence[str], progress: Callable) -> tuple[str, ...]:
  """Paths of pictures that are missing or cannot be decoded.

  The good ones are recorded in a file beside the pictures; bad and changed ones are checked again at every start.

  Raises:
    UserError: an existing file cannot be read. That may be temporary, so the picture must not be skipped.
  """
  known = _read_known(base / _LOOKED_AT)

  def look(path: str) -> tuple[str, list[int] | None]:
    try:
      status = (base / path).stat()
      stamp = [status.st_size, status.st_mtime_ns]
      if known.get(path) != stamp:
        image.decode(base / path)
    except (FileNotFoundError, image.BadPicture):
      return path, None
    except OSError as error:
      raise UserError(_out_of_reach(base / path, error)) from error
    return path, stamp

  # Decoding releases the GIL, so threads use every core.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    looked = dict(progress(pool.map(look, paths), total=len(paths)))
  good = {path: stamp for path, stamp in looked.items() if stamp is not None}
  if good != known:
    # If the folder is read-only, the pictures are checked again at the next start.
    with contextlib.suppress(OSError):
      files.replace(base / _LOOKED_AT, json.dumps(good))
  return tuple(path for path in paths if looked[path] is None)


def _read_known(path: pathlib.Path) -> dict[str, Any]:
  """{path: [bytes, modification time in ns]} of pictures that could be decoded; {} if the file cannot be read."""
  try:
    recorded = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return recorded if isinstance(recorded, dict) else {}
