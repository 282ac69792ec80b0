"""Arrays on the device that hold pictures, and the rows of them that take part."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Data(NamedTuple):
  """What stays on the device for the whole run.

  Attributes:
    images: [images, height, width, channels] uint8, or whatever the model takes where nothing augments.
    sizes: [images, 2] int32, height and width of the original picture, in whose geometry boxes are drawn.
    labels: [images] int32, classes in learning order.
  """
  images: jax.Array
  sizes: jax.Array
  labels: jax.Array


class Pool(NamedTuple):
  """The rows of `Data` that are present in a task: rows [capacity] int32, of which the first `size` count."""
  rows: jax.Array
  size: jax.Array
