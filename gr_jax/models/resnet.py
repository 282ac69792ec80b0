"""Residual networks of docs/method.md section 3: the CIFAR form (6n+2 layers) and the ImageNet form (18, 34).

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Backbones only: the classifier is separate
(models/heads.py), because methods change its gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr_jax.models import norm as norms
from gr_jax.models.norm import BatchNorm, Normalise, Standardise

# N(0, 2 / fan_out), not truncated.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut, with ReLU at the end.

  Attributes:
    filters: output channels.
    stride: of the first convolution and the shortcut.
    conv, norm: layer constructors with everything except the sizes bound.
    relu: whether it ends with ReLU.
  """
  filters: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  relu: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [batch, height, width, channels] -> [batch, height/stride, width/stride, filters]."""
    y = self.norm()(_conv3x3(self.conv, self.filters, self.stride)(x))
    y = _conv3x3(self.conv, self.filters)(y)
    # Created here because layers are numbered in order of creation: the shortcut's layers come last.
    last = self.norm()
    if x.shape != y.shape:
      x = self.conv(self.filters, (1, 1), strides=(self.stride,) * 2, padding=_pad(0))(x)
      x = self.norm()(x, relu=False)
    return last(y, x, relu=self.relu)


class ResNet(nn.Module):
  """A backbone of stages of basic blocks.

  Attributes:
    stages: blocks in each stage.
    filters: channels of the first stage; each further stage doubles them and halves the picture.
    stem: "cifar": 3x3 convolution; "imagenet": 7x7 stride 2 and 3x3 stride-2 max pooling.
    axis_name: of the pmap axis over which batch statistics are averaged; None outside pmap.
    convolution: replaces jax.lax.conv_general_dilated (models/convolution.py).
    dtype: of the computation; parameters, batch statistics and features are float32.
    precision: of the convolutions' products, as in jax.lax.
    signed: leave out the last block's ReLU, so that features are signed.
    maps: also return the output of each stage, before its last ReLU.
    standardised: batch-normalise the last map, without scale and shift, before it is pooled.
  """
  stages: tuple[int, ...]
  filters: int
  stem: str
  axis_name: str | None = None
  convolution: Callable[..., jax.Array] = jax.lax.conv_general_dilated
  normalise: Normalise = norms.for_platform("gpu")
  dtype: Any = jnp.float32
  precision: jax.lax.Precision | None = None
  signed: bool = False
  maps: bool = False
  standardised: bool = False

  @property
  def num_features(self) -> int:
    return self.filters * 2 ** (len(self.stages) - 1)

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Features and stage maps of normalised images.

    Args:
      images: [batch, height, width, channels] float.
      train: use statistics of this batch and update the running ones; else use the running ones.

    Returns:
      (features [batch, num_features], maps: one [batch, height, width, channels] per stage, or ()).
    """
    conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_KERNEL_INIT, dtype=self.dtype,
                             precision=self.precision, conv_general_dilated=self.convolution)
    # models/folding.py removes the running statistics.
    folded = not (train or self.is_initializing() or self.variables.get("batch_stats"))
    norm = functools.partial(BatchNorm, train=train, axis_name=self.axis_name, normalise=self.normalise, folded=folded)
    if self.stem == "cifar":
      x = norm()(_conv3x3(conv, self.filters)(images))
    else:
      x = conv(self.filters, (7, 7), strides=(2, 2), padding=_pad(3))(images)
      # Linen's annotation of the padding leaves out what its documentation allows.
      x = nn.max_pool(norm()(x), (3, 3), strides=(2, 2), padding=_pad(1))  # pyright: ignore[reportArgumentType]
    maps = []
    for i, blocks in enumerate(self.stages):
      for j in range(blocks):
        stride = 2 if i > 0 and j == 0 else 1
        last = (i, j) == (len(self.stages) - 1, blocks - 1)
        mapped = self.maps and j == blocks - 1
        relu = not (last and self.signed)
        x = BasicBlock(self.filters * 2**i, stride, conv, norm, relu=relu and not mapped)(x)
        if mapped:
          maps.append(x)
          x = nn.relu(x) if relu else x
    if self.convolution is not jax.lax.conv_general_dilated:
      # On a CPU, YNNPACK computes the mean and would also take preceding convolutions, which oneDNN does faster.
      x = jax.lax.optimization_barrier(x)
    wide = x.astype(jnp.float32)
    features = jnp.mean(wide, axis=(1, 2))
    if self.standardised:
      features = Standardise(train, self.axis_name, folded)(features, jnp.mean(jnp.square(wide), axis=(1, 2)))
    return features, tuple(maps)


def _pad(width: int) -> list[tuple[int, int]]:
  # Explicit and symmetric, because "SAME" pads only the other side at stride 2.
  return [(width, width)] * 2


def _conv3x3(conv: Callable[..., nn.Module], filters: int, stride: int = 1) -> nn.Module:
  return conv(filters, (3, 3), strides=(stride, stride), padding=_pad(1))
