"""scikit-learn's handwritten digits: 1,797 real 8x8 pictures that come with the library, no download."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np

from gr_jax.data import image
from gr_jax.data.sources.base import Source
from gr_jax.scenario import DatasetProperties

# The last rows of each class are the test set.
_TEST_PER_CLASS = 50
_MAX_COUNT = 120

# Of the only channel, for pixels in [0, 1].
MEAN, STD = (0.3,), (0.38,)


@dataclasses.dataclass(frozen=True)
class _ArraySplit:
  images: np.ndarray
  labels: np.ndarray
  ids: list[str]
  fingerprint: str = "scikit-learn's"

  def identity(self, row: int) -> str:
    return self.ids[row]

  def size(self, row: int) -> tuple[int, int]:
    height, width = self.images.shape[1:3]
    return height, width

  def encoded(self, row: int) -> bytes:
    return image.png(self.images[row])

  def image(self, row: int) -> np.ndarray:
    return self.images[row]


def load() -> Source:
  """The digits as a source; an id is the row in scikit-learn's array, with five digits."""
  # Imported here: scikit-learn takes a second, and no other data set needs it.
  from sklearn import datasets
  # scikit-learn has no annotations, and type checkers consider every form of its result.
  bunch = cast(Any, datasets.load_digits())
  # Grey levels 0..16 become 0..255.
  images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = bunch.target.astype(np.int64)
  ids = [f"{row:05d}" for row in range(len(labels))]
  in_test = np.zeros(len(labels), bool)
  for label in range(10):
    in_test[np.flatnonzero(labels == label)[-_TEST_PER_CLASS:]] = True

  def split(mask: np.ndarray) -> _ArraySplit:
    return _ArraySplit(images[mask], labels[mask], [ids[row] for row in np.flatnonzero(mask)])

  return Source(
      name="digits", class_names=tuple(str(label) for label in range(10)), train=split(~in_test),
      test=split(in_test),
      properties=DatasetProperties(fixed_order=tuple(range(10)), max_count=_MAX_COUNT, total=1297),
      mean=MEAN, std=STD, uniform=True)
