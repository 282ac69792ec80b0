"""The interface of a data set: labels and stable ids up front, pictures on demand."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from gr_jax.scenario import DatasetProperties

# Channel means and standard deviations of ImageNet, for pixels in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Split(Protocol):
  """The images of one split. Must pickle, since other processes read pictures from it.

  Attributes:
    labels: [images] int64, classes in the order of the data set.
    ids: [images] stable ids: the same image has the same id on every machine and in every file order.
    fingerprint: changes when the files change; part of the cache key.
  """
  @property
  def labels(self) -> np.ndarray:
    ...

  @property
  def ids(self) -> list[str]:
    ...

  @property
  def fingerprint(self) -> str:
    ...

  def identity(self, row: int) -> str:
    """The id and, if cheap, more that shows whether the picture has changed; the same on every machine."""
    ...

  def size(self, row: int) -> tuple[int, int]:
    """Height and width of the picture, from its header if it has one; raises as `image`."""
    ...

  def encoded(self, row: int) -> bytes:
    """The content of the picture's file.

    Raises:
      UserError: it cannot be read; the message names it.
    """
    ...

  def image(self, row: int) -> np.ndarray:
    """The decoded picture, [height, width, channels] uint8.

    Raises:
      UserError: the picture cannot be decoded; the message names it.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set.

  Attributes:
    name: as in the config.
    class_names: in the order of the data set.
    train, test: the splits.
    properties: fixed properties of the data set (docs/method.md section 2).
    mean, std: of the channels, for pixel values in 0..1.
    uniform: whether all pictures have one size and are stored unchanged.
    notes: for the user, on how the data set was built; printed, and saved with the run.
    skipped: ids of pictures left out because they cannot be read.
  """
  name: str
  class_names: tuple[str, ...]
  train: Split
  test: Split
  properties: DatasetProperties
  mean: tuple[float, ...]
  std: tuple[float, ...]
  uniform: bool
  notes: tuple[str, ...] = ()
  skipped: tuple[str, ...] = ()
