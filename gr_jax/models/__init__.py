"""Backbones by name."""

from __future__ import annotations

import re

from gr_jax.errors import UserError
from gr_jax.models import convolution
from gr_jax.models.resnet import ResNet

# The 6n+2 depths in use; 50 is left out, since "resnet50" means the bottleneck network everywhere.
_CIFAR_DEPTHS = (8, 14, 20, 26, 32, 38, 44, 56, 110)
_IMAGENET_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def make_backbone(name: str, *, platform: str, axis_name: str | None = None) -> ResNet:
  """The backbone called `name`: "resnet18", "resnet34" (ImageNet form), "resnet8", "resnet20", "resnet32",
  ... (CIFAR form).

  Args:
    name: as above.
    platform: "cpu", "gpu" or "tpu": which form of the convolution's gradient runs well there.
    axis_name: of the pmap axis over which batch statistics are averaged; None outside pmap.

  Raises:
    UserError: no such backbone.
  """
  match = re.fullmatch(r"resnet(\d+)", name)
  depth = int(match[1]) if match else 0
  shared = {"axis_name": axis_name, "convolution": convolution.for_platform(platform)}
  if depth in _IMAGENET_STAGES:
    return ResNet(stages=_IMAGENET_STAGES[depth], filters=64, stem="imagenet", **shared)
  if depth in _CIFAR_DEPTHS:
    return ResNet(stages=((depth - 2) // 6,) * 3, filters=16, stem="cifar", **shared)
  raise UserError(f"model is {name!r}; it can be 'resnet18', 'resnet34' (ImageNet form) or 'resnetD' (CIFAR "
                  f"form) with D one of {', '.join(map(str, _CIFAR_DEPTHS))}")
