"""From a picture file, or an array, to what the network takes: as in the run's evaluation."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from gr_jax.data import image
from gr_jax.data.sources import folder
from gr_jax.errors import UserError


class Form(NamedTuple):
  """What the network takes: [side, side, channels] uint8.

  Attributes:
    side, channels: as above.
    uniform: whether the run's pictures all have this side and are used unchanged; else evaluation resizes the short
      side and takes the central crop (docs/method.md section 6).
  """
  side: int
  channels: int
  uniform: bool


class Listing(NamedTuple):
  """Picture files to read, in order, and (path, reason) of what cannot be used."""
  files: list[pathlib.Path]
  unusable: list[tuple[pathlib.Path, str]]


def find(paths: Sequence[str | pathlib.Path]) -> Listing:
  """The files among `paths`, and the pictures in folders among them, sorted by name; folders inside are searched too.

  In a folder, files count as pictures by their extension; a file that is named is always read.
  """
  listing = Listing([], [])
  for path in map(pathlib.Path, paths):
    if path.is_dir():
      inside = sorted(file for file in path.rglob("*") if _is_picture(file, path))
      listing.files.extend(inside)
      if not inside:
        listing.unusable.append((path, f"the folder has no picture ({', '.join(folder.SUFFIXES)})"))
    elif path.exists():
      listing.files.append(path)
    else:
      listing.unusable.append((path, "no such file or folder"))
  return listing


def _is_picture(file: pathlib.Path, inside: pathlib.Path) -> bool:
  hidden = any(part.startswith(".") for part in file.relative_to(inside).parts)
  return file.suffix.lower() in folder.SUFFIXES and not hidden and file.is_file()


def read(path: pathlib.Path, form: Form) -> np.ndarray:
  """The view of a picture file, [side, side, channels] uint8; see `of_array` and data.image.decode.

  Raises:
    UserError: the file cannot be read or is no picture; the message names it.
  """
  try:
    return of_array(image.decode(path), form)
  except image.BadPicture as error:
    raise UserError(f"{path}: no picture, or damaged ({error})") from error
  except OSError as error:
    raise UserError(f"{path}: {error.strerror or error}") from error


def of_array(picture: np.ndarray, form: Form) -> np.ndarray:
  """The view of a decoded picture.

  Pictures of mixed sizes: the central crop of evaluation. If the run's pictures all have one size, a picture of that
  size stays as it is, and of any other the central square is resized to it.

  Args:
    picture: [height, width], or [height, width, channels] with 1, 3 or 4 channels (the last one, alpha, is dropped);
      uint8.
    form: of the view.

  Returns:
    [side, side, channels] uint8.

  Raises:
    UserError: another shape or dtype.
  """
  picture = np.asarray(picture)
  if picture.ndim == 2:
    picture = picture[..., None]
  if picture.ndim != 3 or picture.shape[-1] not in (1, 3, 4) or picture.dtype != np.uint8 or 0 in picture.shape:
    raise UserError(f"a picture is an array {list(picture.shape)} of {picture.dtype}; it must be [height, width] or "
                    f"[height, width, channels] of uint8, with 1, 3 or 4 channels")
  colours = np.repeat(picture, 3, axis=2) if picture.shape[-1] == 1 else picture[..., :3]
  if not form.uniform:
    colours = image.central_crop(np.ascontiguousarray(colours), form.side)
  elif colours.shape[:2] != (form.side, form.side):
    colours = image.squeeze(_central_square(colours), form.side)
  if form.channels == 1:
    # Of equal channels, Pillow's luminance is exactly their value.
    return np.asarray(PIL.Image.fromarray(np.ascontiguousarray(colours)).convert("L"))[..., None]
  return colours


def _central_square(picture: np.ndarray) -> np.ndarray:
  height, width = picture.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return np.ascontiguousarray(picture[top:top + side, left:left + side])
