"""Pixels of one picture: decoding, upright and in RGB, squeezing and the central crop."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image

FORMATS = ("JPEG", "PNG", "WEBP")

# Pictures with a larger ratio of long to short side are cut before the central crop.
_LONG = 16

# EXIF orientation -> the transposition that makes the picture upright.
_TURNS = {2: PIL.Image.Transpose.FLIP_LEFT_RIGHT, 3: PIL.Image.Transpose.ROTATE_180,
          4: PIL.Image.Transpose.FLIP_TOP_BOTTOM, 5: PIL.Image.Transpose.TRANSPOSE,
          6: PIL.Image.Transpose.ROTATE_270, 7: PIL.Image.Transpose.TRANSVERSE, 8: PIL.Image.Transpose.ROTATE_90}
_ON_ITS_SIDE = (5, 6, 7, 8)

# Short side before the central crop over side of the crop (docs/method.md section 6: 256 and 224).
RESIZE_OVER_CROP = 256 / 224


class BadPicture(Exception):
  """The file can be read, but is not a picture or is damaged."""


def opened(file: pathlib.Path | io.BytesIO, how: Callable[[PIL.Image.Image], Any],
           formats: tuple[str, ...] | None = None) -> Any:
  """What `how` makes of the picture in a file.

  Args:
    file: path or content.
    how: called with the open picture.
    formats: allowed ones; None: all that Pillow knows.

  Raises:
    BadPicture: it cannot be decoded.
    OSError: the file cannot be read.
  """
  try:
    with PIL.Image.open(file, formats=formats) as picture:
      return how(picture)
  except MemoryError:
    raise
  # On damaged files Pillow can raise nearly anything; struct.error, KeyError and TypeError have been seen.
  except Exception as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise
    raise BadPicture(str(error) or type(error).__name__) from error


def decode(path: pathlib.Path) -> np.ndarray:
  """Decodes a picture to upright RGB, [height, width, 3] uint8.

  Takes the first frame and applies the EXIF orientation. Grey is repeated over the channels, 16-bit values keep their
  upper byte, and the alpha channel is dropped, so transparent pixels show their colour.

  Raises:
    BadPicture: it cannot be decoded.
    OSError: the file cannot be read.
  """
  def pixels(picture: PIL.Image.Image) -> np.ndarray:
    turn = _TURNS.get(_orientation(picture))
    # Not Pillow's exif_transpose, which also rewrites the EXIF data and fails on odd entries.
    turned = picture.transpose(turn) if turn is not None else picture
    if turned.mode.startswith("I"):
      # Pillow would clip values above 255.
      return np.repeat((np.asarray(turned).astype(np.uint32) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    whole = turned.convert("RGBA") if turned.mode == "P" and "transparency" in turned.info else turned
    return np.asarray(whole.convert("RGB"))

  return opened(path, pixels, FORMATS)


def upright_size(path: pathlib.Path) -> tuple[int, int]:
  """Height and width of the result of `decode`, from the header (except for PNG, where EXIF may come last); raises as
  `decode`."""
  return opened(path, lambda picture: picture.size if _orientation(picture) in _ON_ITS_SIDE else picture.size[::-1],
                FORMATS)


def _orientation(picture: PIL.Image.Image) -> Any:
  return picture.getexif().get(PIL.ExifTags.Base.Orientation)


def png(picture: np.ndarray) -> bytes:
  """A picture [height, width, 1 or 3] uint8 as a PNG file."""
  file = io.BytesIO()
  PIL.Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, "PNG")
  return file.getvalue()


def squeeze(picture: np.ndarray, side: int) -> np.ndarray:
  """Resizes the whole picture [height, width, channels], antialiased bilinear, to [side, side, channels] uint8."""
  return np.asarray(PIL.Image.fromarray(picture).resize((side, side), PIL.Image.Resampling.BILINEAR))


def central_crop(picture: np.ndarray, side: int) -> np.ndarray:
  """Resizes the short side to side * 256 / 224, then takes the central [side, side, channels] uint8 (docs/method.md
  section 6)."""
  height, width = picture.shape[:2]
  if max(height, width) > _LONG * min(height, width):
    # A long strip enlarged as a whole would fill the memory; only the middle is needed.
    top, left = (max(0, (n - _LONG * min(height, width)) // 2) for n in (height, width))
    picture = picture[top:height - top, left:width - left]
    height, width = picture.shape[:2]
  short = round(side * RESIZE_OVER_CROP)
  # Integer arithmetic: 98 x (256 / 49) is 511.99... in floating point.
  size = tuple(short * n // min(height, width) for n in (width, height))
  resized = PIL.Image.fromarray(picture).resize(size, PIL.Image.Resampling.BILINEAR)
  left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
  return np.asarray(resized.crop((left, top, left + side, top + side)))
