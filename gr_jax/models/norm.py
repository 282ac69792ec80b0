"""Batch normalisation with the following shortcut and ReLU, with few passes over memory on XLA's CPU backend.

Ioffe & Szegedy, "Batch Normalization", ICML 2015. Autodiff stores the normalised values and reads the activations
again for every term. The derivative here stores only the outputs of the convolution and of the ReLU, which are in
memory anyway, and needs two passes: one for both sums, one for the gradient. See `for_platform`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# docs/method.md section 3: running <- 0.9 running + 0.1 batch.
_MOMENTUM = 0.9
EPSILON = 1e-5


class Statistics(NamedTuple):
  """Mean and biased variance of a batch, over images and pixels of all devices; [channels] float32 or wider."""
  mean: jax.Array
  variance: jax.Array


Normalise = Callable[..., tuple[jax.Array, Statistics]]


def for_platform(platform: str) -> Normalise:
  """The function that `BatchNorm` uses on "cpu", "gpu" or "tpu".

  On GPU and TPU it uses autodiff's derivative: XLA fuses it well there, and ours has not been measured.
  """
  # custom_vjp's own annotation loses what the function returns.
  return normalise if platform == "cpu" else _value  # pyright: ignore[reportReturnType]


def _value(x: jax.Array, shortcut: jax.Array | None, scale: jax.Array, bias: jax.Array, relu: bool,
           axis_name: str | None) -> tuple[jax.Array, Statistics]:
  statistics, _ = _batch_statistics(x, axis_name)
  return _apply(x, shortcut, scale, bias, statistics, relu), statistics


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalise(x: jax.Array, shortcut: jax.Array | None, scale: jax.Array, bias: jax.Array, relu: bool,
              axis_name: str | None) -> tuple[jax.Array, Statistics]:
  """relu((x - mean) / sqrt(variance + epsilon) * scale + bias + shortcut), with the statistics of x itself.

  Reverse mode only. The returned statistics, which update the running ones, have no gradient.

  Args:
    x: [batch, height, width, channels] floating.
    shortcut: same shape and dtype as x; None for none.
    scale, bias: [channels] float32 or wider.
    relu: whether negative values become 0.
    axis_name: of the mapped axis over which the statistics are averaged; None for none.

  Returns:
    (values of the shape and dtype of x, Statistics).
  """
  return _value(x, shortcut, scale, bias, relu, axis_name)


def _forward(x, shortcut, scale, bias, relu, axis_name):
  statistics, rises = _batch_statistics(x, axis_name)
  y = _apply(x, shortcut, scale, bias, statistics, relu)
  return (y, statistics), (x, y if relu else None, scale, bias, statistics, rises, shortcut is not None)


def _backward(relu, axis_name, residuals, cotangents):
  x, y, scale, bias, (mean, variance), rises, has_shortcut = residuals
  grad, _ = cotangents
  if relu:
    # Not `y > 0`: where the value is NaN, the incoming gradient is NaN too, and must not be hidden.
    grad = jnp.where(y == 0, jnp.zeros_like(grad), grad)
  wide = mean.dtype
  deviation = jax.lax.rsqrt(variance + EPSILON)
  count = x.size // x.shape[-1]
  total, product = _sums(grad, x, wide)
  # Sum of grad times the normalised values.
  product = (product - total * mean) * deviation
  shared = jnp.stack([total, product]) / count
  if axis_name is not None:
    shared = jax.lax.pmean(shared, axis_name)
  # A variance that rounding made negative was replaced by 0 and has no gradient.
  slope = jnp.where(rises, shared[1], 0.0) * deviation
  towards_x = (grad.astype(wide) - _along(shared[0], x) - (x.astype(wide) - _along(mean, x)) * _along(slope, x))
  towards_x = _product(towards_x, _along(_product(deviation, scale), x))
  return (towards_x.astype(x.dtype), grad if has_shortcut else None, product.astype(scale.dtype),
          total.astype(bias.dtype))


normalise.defvjp(_forward, _backward)


def _batch_statistics(x: jax.Array, axis_name: str | None) -> tuple[Statistics, jax.Array]:
  """Statistics in float32 or wider, and where the variance was above 0 before clipping."""
  wide = np.promote_types(x.dtype, np.float32)
  moments = jnp.stack(_sums(x, x, wide)) / (x.size // x.shape[-1])
  if axis_name is not None:
    moments = jax.lax.pmean(moments, axis_name)
  mean, square = moments
  variance = square - mean**2
  return Statistics(mean, jnp.maximum(variance, 0.0)), variance > 0


def _sums(a: jax.Array, b: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
  """(sum of a, sum of a * b) over all but the channels, in `dtype`."""
  a, b, axes = a.astype(dtype), b.astype(dtype), tuple(range(a.ndim - 1))
  return jnp.sum(a, axes), jnp.sum(a * b, axes)


def _apply(x: jax.Array, shortcut: jax.Array | None, scale: jax.Array, bias: jax.Array, statistics: Statistics,
           relu: bool) -> jax.Array:
  mean, variance = statistics
  centred = x.astype(np.promote_types(x.dtype, mean.dtype)) - _along(mean, x)
  factor = _product(jax.lax.rsqrt(variance + EPSILON), scale)
  return _finish(_product(centred, _along(factor, x)), bias, shortcut, relu, x.dtype)


def _finish(x: jax.Array, bias: jax.Array, shortcut: jax.Array | None, relu: bool, dtype: Any) -> jax.Array:
  """Bias, shortcut and ReLU in the wider dtype: rounded once, and in a form that oneDNN fuses with the convolution."""
  wide = np.promote_types(x.dtype, bias.dtype)
  x = x.astype(wide) + _along(bias.astype(wide), x)
  if shortcut is not None:
    x += shortcut.astype(wide)
  return (nn.relu(x) if relu else x).astype(dtype)


def _along(values: jax.Array, x: jax.Array) -> jax.Array:
  """Values [channels] in the rank of x, for arithmetic along its last axis."""
  return jnp.expand_dims(values, range(x.ndim - 1))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """a * b in the wider of their dtypes."""
  wide = np.promote_types(a.dtype, b.dtype)
  return a.astype(wide) * b.astype(wide)


class BatchNorm(nn.Module):
  """Batch normalisation over images and pixels, then an optional shortcut and ReLU.

  Attributes:
    train: use statistics of the batch and update the running ones; else use the running ones.
    axis_name: of the pmap axis over which batch statistics are averaged; None outside pmap.
    normalise: see `for_platform`.
    folded: everything except the bias has been folded into the convolution (models/folding.py).

  Raises (when called):
    ValueError: `folded`, but the parameters have a scale, so the network has not been folded.
  """
  train: bool
  axis_name: str | None
  normalise: Normalise
  folded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, shortcut: jax.Array | None = None, *, relu: bool = True) -> jax.Array:
    """x, shortcut [batch, height, width, channels] -> the same shape and dtype."""
    channels = x.shape[-1:]
    bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
    if self.folded:
      if self.has_variable("params", "scale"):
        raise ValueError(f"{'/'.join(self.path)} has a scale, but batch_stats holds no running statistics: pass the "
                         f"network's batch_stats, or fold it first (gr_jax.models.folding.fold)")
      return _finish(x, bias, shortcut, relu, x.dtype)
    mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
    variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
    scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
    if not self.train:
      return _apply(x, shortcut, scale, bias, Statistics(mean.value, variance.value), relu)
    # pmap's axis is unbound during initialisation.
    y, batch = self.normalise(x, shortcut, scale, bias, relu, None if self.is_initializing() else self.axis_name)
    if not self.is_initializing():
      for running, now in ((mean, batch.mean), (variance, batch.variance)):
        running.value = _MOMENTUM * running.value + (1 - _MOMENTUM) * now
    return y


class Standardise(nn.Module):
  """Batch normalisation of a map without scale and shift, followed by the mean over its pixels.

  The mean of a normalised map is that of the map, normalised: only two means over the pixels are needed.

  Attributes:
    train, axis_name: as in BatchNorm.
    folded: factor and offset are parameters (models/folding.py).
  """
  train: bool
  axis_name: str | None
  folded: bool = False

  @nn.compact
  def __call__(self, pooled: jax.Array, squares: jax.Array) -> jax.Array:
    """Means over the pixels of a map and of its squares, [batch, channels] float32 -> the same shape."""
    channels = pooled.shape[-1:]
    if self.folded:
      factor, offset = (_along(self.get_variable("params", name), pooled) for name in ("factor", "offset"))
      return pooled * factor + offset
    mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
    variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
    now = Statistics(mean.value, variance.value)
    if self.train and not self.is_initializing():
      moments = jnp.stack([jnp.mean(pooled, axis=0), jnp.mean(squares, axis=0)])
      if self.axis_name is not None:
        moments = jax.lax.pmean(moments, self.axis_name)
      now = Statistics(moments[0], jnp.maximum(moments[1] - moments[0] ** 2, 0.0))
      for running, batch in ((mean, now.mean), (variance, now.variance)):
        running.value = _MOMENTUM * running.value + (1 - _MOMENTUM) * batch
    return (pooled - _along(now.mean, pooled)) * _along(jax.lax.rsqrt(now.variance + EPSILON), pooled)
