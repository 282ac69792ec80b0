"""Backbones by name."""

from __future__ import annotations

import re
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from gr_jax.devices import convolution_library
from gr_jax.errors import UserError
from gr_jax.models import convolution, norm
from gr_jax.models.resnet import ResNet

# The usual 6n+2 depths, without 50: "resnet50" commonly means the bottleneck network.
_CIFAR_DEPTHS = (8, 14, 20, 26, 32, 38, 44, 56, 110)
_IMAGENET_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}

PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "mixed")


class Backbone(Protocol):
  """What training asks of a Linen module: (images, train=bool) -> (features [batch, features], maps).

  Attributes:
    num_features: of an image.
  """
  @property
  def num_features(self) -> int:
    ...

  def apply(self, variables: Any, images: jax.Array, /, *, train: bool, mutable: Any = ...) -> Any:
    ...


def resolve_precision(precision: str, platform: str) -> str:
  """Resolves "auto" for a platform; other values are returned unchanged.

  On a GPU "auto" is "tf32", which rounds the factors of products to 10 bits and adds in float32; everything except
  convolutions stays float32. On a CPU it is the fastest precision with float32's results (docs/speed.md, Precision):
  "mixed", if the processor multiplies bfloat16 and oneDNN makes use of that. Initialises JAX.

  Raises:
    UserError: "tf32" on a platform other than GPU.
  """
  if precision == "auto":
    if platform == "cpu" and convolution_library.fast_in_bfloat16():
      return "mixed"
    return "tf32" if platform == "gpu" else "float32"
  if precision == "tf32" and platform != "gpu":
    raise UserError(f"precision is 'tf32', which only NVIDIA GPUs support, but the devices are {platform}; choose "
                    f"'auto', 'float32', 'bfloat16' or 'mixed'")
  return precision


def make_backbone(
    name: str, *, platform: str, precision: str = "float32", axis_name: str | None = None,
    signed: bool = False, standardised: bool = False, maps: bool = False) -> ResNet:
  """The backbone called `name`: "resnet18", "resnet34" (ImageNet form), "resnet8", "resnet20", "resnet32",
  ... (CIFAR form).

  Args:
    name: as above.
    platform: "cpu", "gpu" or "tpu"; selects the form of the convolution's gradient.
    precision: "float32": exact products; "tf32"; "bfloat16": activations and products in bfloat16, parameters, batch
      statistics and features in float32; "mixed": the same, but on a CPU gradients of kernels are computed in float32;
      "auto": see resolve_precision.
    axis_name: of the pmap axis over which batch statistics are averaged; None outside pmap.
    signed: whether the last block ends without ReLU.
    maps: whether it returns the maps of its stages.
    standardised: whether features are those of the batch-normalised last map, without scale and shift.

  Raises:
    UserError: no such backbone, or a precision that the platform does not support.
  """
  match = re.fullmatch(r"resnet(\d+)", name)
  depth = int(match[1]) if match else 0
  precision = resolve_precision(precision, platform)
  shared = {"axis_name": axis_name, "signed": signed, "standardised": standardised, "maps": maps,
            "convolution": convolution.for_platform(platform, wide_gradients=precision == "mixed"),
            "normalise": norm.for_platform(platform),
            "dtype": jnp.bfloat16 if precision in ("bfloat16", "mixed") else jnp.float32,
            # XLA's default is TF32 on a GPU and bfloat16 on a TPU: float32 must be requested.
            "precision": jax.lax.Precision.HIGHEST if precision == "float32" else jax.lax.Precision.DEFAULT}
  if depth in _IMAGENET_STAGES:
    return ResNet(stages=_IMAGENET_STAGES[depth], filters=64, stem="imagenet", **shared)
  if depth in _CIFAR_DEPTHS:
    return ResNet(stages=((depth - 2) // 6,) * 3, filters=16, stem="cifar", **shared)
  raise UserError(f"model is {name!r}; it can be 'resnet18', 'resnet34' (ImageNet form) or 'resnetD' (CIFAR "
                  f"form) with D one of {', '.join(map(str, _CIFAR_DEPTHS))}")
