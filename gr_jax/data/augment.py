"""Augmentation on the device, inside the step (docs/method.md section 6). Boxes are drawn in the geometry of the
original picture; the stored array may be smaller."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gr_jax.errors import UserError

KINDS = ("none", "shift", "pad_resized_crop_flip", "pad_resized_crop_flip_cutout", "resized_crop_flip")

_AREA = (0.08, 1.0)
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))
_ATTEMPTS = 10
# Zeros around a CIFAR picture before the crop.
_PAD = 4
# fold_in number for a picture's cutout key, beside the two keys from split.
_CUTOUT = 2
# Side of the central crop over the picture's short side (docs/method.md section 6: 224 of 256).
_CENTRAL_SHARE = 224 / 256


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """[..., channels] in 0..255 -> (x / 255 - mean) / std, float32."""
  offset, scale = (jnp.expand_dims(jnp.asarray(values), range(images.ndim - 1)) for values in (mean, std))
  return (images.astype(jnp.float32) / 255 - offset) / scale


def draw_box(key: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The box of a random resized crop.

  Area share U(0.08, 1), log aspect ratio U(log 3/4, log 4/3), rounded to integers. Takes the first of ten draws that
  fits, else the largest central box within the aspect limits. Offsets are uniform integers.

  Args:
    key: of the image.
    size: [2] int32, height and width of the picture.

  Returns:
    (top, left, height, width), int32 scalars.
  """
  for_area, for_aspect, for_top, for_left = jax.random.split(key, 4)
  height, width = size[0], size[1]
  share = jax.random.uniform(for_area, (_ATTEMPTS,), minval=_AREA[0], maxval=_AREA[1])
  area = (height * width).astype(jnp.float32) * share
  aspect = jnp.exp(jax.random.uniform(for_aspect, (_ATTEMPTS,), minval=_LOG_ASPECT[0],
                                      maxval=_LOG_ASPECT[1]))
  widths = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
  heights = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
  fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
  first = jnp.argmax(fits)
  # All draws can fail only for pictures far from square; then the long side is cut to the aspect limit.
  narrow, wide = math.exp(_LOG_ASPECT[0]), math.exp(_LOG_ASPECT[1])
  central_width = jnp.minimum(width, jnp.round(height.astype(jnp.float32) * wide).astype(jnp.int32))
  central_height = jnp.minimum(height, jnp.round(width.astype(jnp.float32) / narrow).astype(jnp.int32))
  any_fits = jnp.any(fits)
  box_height = jnp.where(any_fits, heights[first], central_height)
  box_width = jnp.where(any_fits, widths[first], central_width)

  def offset(key: jax.Array, room: jax.Array) -> jax.Array:
    return jnp.where(any_fits, jax.random.randint(key, (), 0, room + 1), room // 2)

  return (offset(for_top, height - box_height), offset(for_left, width - box_width), box_height, box_width)


def resize_weights(start: jax.Array, length: jax.Array, taps: int, out: int) -> jax.Array:
  """Crop and antialiased bilinear resize along one axis, as a matrix [out, taps] float32.

  Pixels outside the box have weight 0 and rows are renormalised, so no pixel outside the crop is mixed in.

  Args:
    start, length: of the box along this axis, in pixels of the stored array; may be fractional.
    taps: pixels of the stored array along this axis.
    out: pixels of the result.
  """
  start, length = jnp.asarray(start, jnp.float32), jnp.asarray(length, jnp.float32)
  scale = length / out
  reach = jnp.maximum(scale, 1.0)
  centres = start + (jnp.arange(out, dtype=jnp.float32) + 0.5) * scale
  pixels = jnp.arange(taps, dtype=jnp.float32) + 0.5
  weights = jnp.maximum(0.0, 1.0 - jnp.abs(pixels[None, :] - centres[:, None]) / reach)
  weights = jnp.where((pixels > start) & (pixels < start + length), weights, 0.0)
  total = jnp.sum(weights, axis=1, keepdims=True)
  # In an extremely long picture, a box may be thinner than a stored pixel and contain no pixel centre.
  nearest = jax.nn.one_hot(jnp.clip(jnp.floor(centres), 0, taps - 1).astype(jnp.int32), taps)
  return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), nearest)


def crop_and_resize(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
  """image [height, width, channels], rows [out, height], columns [out, width] -> [out, out, channels]."""
  return jnp.einsum("oh,hwc,pw->opc", rows, image.astype(jnp.float32), columns,
                    precision=jax.lax.Precision.HIGHEST)


def make_augment(kind: str, *, image_size: int, mean: tuple[float, ...], std: tuple[float, ...],
                 ) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Makes the training augmentation.

  Args:
    kind: "none"; "shift": zero padding of an eighth of the side, then a random crop of the original size;
      "pad_resized_crop_flip": for CIFAR; "pad_resized_crop_flip_cutout": the same, then a square of half the side,
      clipped at the borders, is filled with the mean colour (DeVries and Taylor, 2017); "resized_crop_flip": for large
      pictures.
    image_size: side of the result.
    mean, std: of the channels.

  Returns:
    augment(keys [batch], images [batch, height, width, channels] uint8, sizes [batch, 2] int32)
    -> [batch, image_size, image_size, channels] float32; raises UserError if the kind does not support the images'
    size.
  """
  def shift(key, image, size):
    del size
    pad = max(1, image_size // 8)
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)

  def resized_crop(key, image, size, pad):
    for_box, for_flip = jax.random.split(key)
    top, left, height, width = draw_box(for_box, size + 2 * pad)
    # Scales pixels of the original picture to pixels of the stored array.
    shrink = jnp.asarray(image.shape[:2]) / size

    def weights(axis, start, length):
      taps = image.shape[axis] + 2 * pad
      start, length = (value.astype(jnp.float32) * shrink[axis] for value in (start, length))
      matrix = resize_weights(start, length, taps, image_size)
      # The padding is black: its pixels count in the normalisation of the weights but add nothing.
      return matrix[:, pad:taps - pad]

    rows, columns = weights(0, top, height), weights(1, left, width)
    columns = jnp.where(jax.random.bernoulli(for_flip), columns[::-1], columns)
    return crop_and_resize(image, rows, columns)

  def cutout(key, image, size):
    # A separate key, so that box and flip equal those of the kind without cutout.
    centre = jax.random.randint(jax.random.fold_in(key, _CUTOUT), (2,), 0, image_size)
    near = [(-half <= away) & (away < half) for away in jnp.arange(image_size)[None, :] - centre[:, None]]
    inside = near[0][:, None] & near[1][None, :]
    return jnp.where(inside[..., None], 255 * jnp.asarray(mean), resized_crop(key, image, size, pad=_PAD))

  half = image_size // 4
  one = {"none": lambda key, image, size: image, "shift": shift,
         "pad_resized_crop_flip": lambda *args: resized_crop(*args, pad=_PAD),
         "pad_resized_crop_flip_cutout": cutout,
         "resized_crop_flip": lambda *args: resized_crop(*args, pad=0)}[kind]

  def augment(keys: jax.Array, images: jax.Array, sizes: jax.Array) -> jax.Array:
    # The other kinds do not resize: squeezed pictures would reach the model squeezed and too large.
    if kind != "resized_crop_flip" and images.shape[1:3] != (image_size, image_size):
      raise UserError(f"augmentation is {kind!r}, which takes pictures of {image_size}x{image_size} pixels, but "
                      f"these are stored at {images.shape[1]}x{images.shape[2]}; set "
                      f"--config.augmentation=resized_crop_flip")
    return normalise(jax.vmap(one)(keys, images, sizes), mean, std)

  return augment


def make_plain(*, image_size: int, mean: tuple[float, ...], std: tuple[float, ...], cropped: bool,
               ) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Makes the preprocessing for features and evaluation.

  Args:
    image_size, mean, std: see `make_augment`.
    cropped: whether the pictures are final views, which are only normalised; else they are whole pictures squeezed
      into a square, and the central crop is taken.

  Returns:
    plain(images [batch, height, width, channels] uint8, sizes [batch, 2] int32) -> [batch, image_size,
    image_size, channels] float32.
  """
  def central(image, size):
    size = size.astype(jnp.float32)
    side = jnp.min(size) * _CENTRAL_SHARE
    shrink = jnp.asarray(image.shape[:2], jnp.float32) / size
    start = (size - side) / 2
    rows, columns = (resize_weights(start[axis] * shrink[axis], side * shrink[axis], image.shape[axis],
                                    image_size) for axis in (0, 1))
    return crop_and_resize(image, rows, columns)

  def plain(images: jax.Array, sizes: jax.Array) -> jax.Array:
    return normalise(images if cropped else jax.vmap(central)(images, sizes), mean, std)

  return plain
