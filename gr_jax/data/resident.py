"""The scenario's pictures as arrays of one shape, which can stay on the device for the whole run.

Pictures of one size are stored unchanged. Others are squeezed whole into a square, and their original height and width
are stored too: boxes are drawn in the original geometry and then mapped to the square.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Sequence

import numpy as np

from gr_jax.data import cache, image
from gr_jax.data.arrays import Data
from gr_jax.data.cache import Cached, View
from gr_jax.data.sources.base import Source, Split
from gr_jax.errors import UserError
from gr_jax.scenario import Scenario

# Decodes rows of a split to a view: cache.load with the other arguments bound.
Decode = Callable[[Split, Sequence[int], View], Cached]


def kept_side(image_size: int, stored_size: int | None) -> int:
  """Side of the square in which training pictures of mixed sizes are stored."""
  return stored_size or round(image_size * image.RESIZE_OVER_CROP)


def load_train(source: Source, scenario: Scenario, image_size: int, *, stored_size: int | None = None,
               holdout: bool = False, progress: Callable = lambda it, **_: it, decode: Decode | None = None) -> Data:
  """The drawn training pictures (or the held-out ones), sorted by class in learning order.

  Args:
    source, scenario: the data set and its draw.
    image_size: side of uniform pictures, or of the views made from others.
    stored_size: see `kept_side`.
    holdout: load the held-out pictures instead of the training ones.
    progress: wraps the iteration over pictures.
    decode: provides pictures of mixed sizes; None: decode them here, in threads.

  Returns:
    Data of NumPy arrays: images [images, height, width, channels] uint8, sizes [images, 2] int32, labels
    [images] int32.
  """
  rows_of_class = scenario.holdout if holdout else scenario.train
  view = View("squeezed", kept_side(image_size, stored_size))
  return _load(source, source.train, rows_of_class, view, image_size=image_size, progress=progress, decode=decode)


def load_held_out(source: Source, scenario: Scenario, image_size: int, progress: Callable = lambda it, **_: it,
                  decode: Decode | None = None) -> Data:
  """The held-out pictures in the form of the test pictures: sorted by class in learning order and cropped."""
  return _load(source, source.train, scenario.holdout, View("crop", image_size), image_size=image_size,
               progress=progress, decode=decode)


def load_test(source: Source, scenario: Scenario, image_size: int, progress: Callable = lambda it, **_: it,
              decode: Decode | None = None) -> Data:
  """All test pictures of the scenario's classes, sorted by class in learning order and cropped."""
  rows_of_class = [np.flatnonzero(source.test.labels == label) for label in scenario.class_order]
  missing = [name for name, rows in zip(scenario.class_names, rows_of_class) if not len(rows)]
  if missing:
    raise UserError(f"{len(missing)} classes have no test image ({', '.join(missing[:5])}); prepare the complete "
                    f"test split")
  return _load(source, source.test, rows_of_class, View("crop", image_size), image_size=image_size, progress=progress,
               decode=decode)


def flat_rows(rows_of_class: Sequence) -> tuple[list[int], np.ndarray]:
  """Rows of the split, sorted by class, and their labels [images] int32 in learning order."""
  labels = np.repeat(np.arange(len(rows_of_class)), [len(rows) for rows in rows_of_class])
  return [int(row) for rows in rows_of_class for row in rows], labels.astype(np.int32)


def _load(source: Source, split: Split, rows_of_class: Sequence, view: View, *, image_size: int, progress: Callable,
          decode: Decode | None) -> Data:
  rows, labels = flat_rows(rows_of_class)
  if not rows:
    return Data(np.zeros((0, image_size, image_size, len(source.mean)), np.uint8), np.zeros((0, 2), np.int32), labels)
  if decode is not None and not source.uniform:
    return Data(*decode(split, rows, view), labels=labels)

  def read(row: int) -> tuple[np.ndarray, tuple[int, int]]:
    picture = split.image(row)
    if source.uniform and picture.shape[:2] != (image_size, image_size):
      raise UserError(f"image {split.ids[row]!r} is {picture.shape[0]}x{picture.shape[1]} pixels, but "
                      f"image_size is {image_size}; set --config.image_size={picture.shape[0]}")
    return (picture if source.uniform else cache.fitted(picture, view)), picture.shape[:2]

  # Decoding releases the GIL, so threads use every core.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    images, sizes = None, np.zeros((len(rows), 2), np.int32)
    for place, (picture, size) in enumerate(progress(pool.map(read, rows), total=len(rows))):
      # Written into the final array at once; a list would need twice the memory.
      images = np.zeros((len(rows), *picture.shape), np.uint8) if images is None else images
      images[place], sizes[place] = picture, size
  # There is at least one picture.
  assert images is not None
  return Data(images, sizes, labels)
