"""What a data set is to the rest of the program: labels and stable ids at once, pictures on demand."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from gr_jax.scenario import Facts

# Channel means and standard deviations of ImageNet, for pixels in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Split(Protocol):
  """The images of one split. Pickles: other processes read pictures from it.

  Attributes:
    labels: [images] int64, classes in the data set's own order.
    ids: [images] stable ids: the same image has the same id on every machine and in every file order.
    fingerprint: changes where the files do; what has been decoded is kept under it.
  """
  labels: np.ndarray
  ids: list[str]
  fingerprint: str

  def identity(self, row: int) -> str:
    """The id, and what else tells cheaply that a picture is the one it was; the same on every machine."""
    ...

  def size(self, row: int) -> tuple[int, int]:
    """Height and width of the picture, from its header where it has one; raises as `image`."""
    ...

  def encoded(self, row: int) -> bytes:
    """The picture's file. Sets whose pictures have one size may do without this and `size`.

    Raises:
      UserError: it cannot be read; names it.
    """
    ...

  def image(self, row: int) -> np.ndarray:
    """The decoded picture, [height, width, channels] uint8.

    Raises:
      UserError: the picture cannot be decoded; names it.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set.

  Attributes:
    name: as in the config.
    class_names: in the data set's own order.
    train, test: the splits.
    facts: what docs/method.md section 2 fixes for it.
    mean, std: of the channels, for pixel values in 0..1.
    uniform: whether all pictures have one size and are kept as they are.
    notes: what the user should know of how the set came about; shown, and saved with the run.
    skipped: ids of pictures that were left out because they cannot be read.
  """
  name: str
  class_names: tuple[str, ...]
  train: Split
  test: Split
  facts: Facts
  mean: tuple[float, ...]
  std: tuple[float, ...]
  uniform: bool
  notes: tuple[str, ...] = ()
  skipped: tuple[str, ...] = ()
