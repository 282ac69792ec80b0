"""Device arrays that hold pictures, and the rows of them that a stage uses."""

from __future__ import annotations

from typing import NamedTuple

from gr_jax.typing import AnyArray, AnyInteger


class Data(NamedTuple):
  """Pictures with their sizes and labels.

  Attributes:
    images: [images, height, width, channels] uint8, or model inputs if there is no augmentation.
    sizes: [images, 2] int32, height and width of the original picture; boxes are drawn in its geometry.
    labels: [images] int32, classes in learning order.
  """
  images: AnyArray
  sizes: AnyArray
  labels: AnyArray


class Pool(NamedTuple):
  """The rows of `Data` that a stage uses: rows [capacity] int32, of which the first `size` are valid."""
  rows: AnyArray
  size: AnyInteger
