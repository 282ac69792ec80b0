"""The scenario's pictures as arrays of one shape, ready to stay on the device for the whole run.

Pictures of one size are kept as they are. Others are kept at a fixed square size, the whole picture squeezed
into it, beside their original height and width: boxes are drawn in the original geometry and mapped.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

from gr_jax.data.source import Source, Split
from gr_jax.errors import UserError
from gr_jax.scenario import Scenario
from gr_jax.state import Data

# Short side before the central crop, over the crop's side (METHOD.md section 6: 256 and 224).
_RESIZE_OVER_CROP = 256 / 224


def squeeze(picture: np.ndarray, side: int) -> np.ndarray:
  """The whole picture [height, width, channels], antialiased bilinear, as [side, side, channels] uint8."""
  return np.asarray(PIL.Image.fromarray(picture).resize((side, side), PIL.Image.Resampling.BILINEAR))


def central_crop(picture: np.ndarray, side: int) -> np.ndarray:
  """Short side to side * 256 / 224, then the central [side, side, channels] uint8 (METHOD.md section 6)."""
  height, width = picture.shape[:2]
  short = round(side * _RESIZE_OVER_CROP)
  # In whole numbers: 98 x (256 / 49) is 511.99... in floating point.
  size = tuple(short * n // min(height, width) for n in (width, height))
  resized = PIL.Image.fromarray(picture).resize(size, PIL.Image.Resampling.BILINEAR)
  left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
  return np.asarray(resized.crop((left, top, left + side, top + side)))


def load_train(source: Source, scenario: Scenario, image_size: int, *, holdout: bool = False,
               progress: Callable = lambda it, **_: it) -> Data:
  """The drawn training pictures (or the held-out ones), class after class in learning order.

  Returns:
    Data of NumPy arrays: images [images, height, width, channels] uint8, sizes [images, 2] int32, labels
    [images] int32.
  """
  rows_of_class = scenario.holdout if holdout else scenario.train
  fit = None if source.uniform else lambda picture: squeeze(picture, round(image_size * _RESIZE_OVER_CROP))
  return _load(source.train, rows_of_class, fit, image_size, progress, source.uniform, len(source.mean))


def load_test(source: Source, scenario: Scenario, image_size: int,
              progress: Callable = lambda it, **_: it) -> Data:
  """All test pictures of the scenario's classes, class after class in learning order, cropped already."""
  rows_of_class = [np.flatnonzero(source.test.labels == label) for label in scenario.class_order]
  missing = [name for name, rows in zip(scenario.class_names, rows_of_class) if not len(rows)]
  if missing:
    raise UserError(f"{len(missing)} classes have no test image ({', '.join(missing[:5])}); prepare the full "
                    f"test split")
  fit = None if source.uniform else lambda picture: central_crop(picture, image_size)
  return _load(source.test, rows_of_class, fit, image_size, progress, source.uniform, len(source.mean))


def _load(split: Split, rows_of_class: Sequence, fit: Callable | None, image_size: int, progress: Callable,
          uniform: bool, channels: int) -> Data:
  rows = [int(row) for rows in rows_of_class for row in rows]
  labels = np.repeat(np.arange(len(rows_of_class)), [len(rows) for rows in rows_of_class])

  def read(row: int) -> tuple[np.ndarray, tuple[int, int]]:
    picture = split.image(row)
    if uniform and picture.shape[:2] != (image_size, image_size):
      raise UserError(f"image {split.ids[row]!r} is {picture.shape[0]}x{picture.shape[1]} pixels, but "
                      f"image_size is {image_size}; set --config.image_size={picture.shape[0]}")
    return (picture if fit is None else fit(picture)), picture.shape[:2]

  # Decoding releases the interpreter's lock, so threads use every core.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    read_all = list(progress(pool.map(read, rows), total=len(rows)))
  if not rows:
    return Data(np.zeros((0, image_size, image_size, channels), np.uint8), np.zeros((0, 2), np.int32),
                np.zeros(0, np.int32))
  return Data(images=np.stack([picture for picture, _ in read_all]),
              sizes=np.asarray([size for _, size in read_all], np.int32), labels=labels.astype(np.int32))
