"""Folds batch norm into the preceding convolutions, for networks in evaluation mode.

There, (x * kernel - mean) / sqrt(variance + epsilon) * scale + bias is a convolution with another kernel and a bias. A
network without `batch_stats` is treated as folded (models/resnet.py).
"""

from __future__ import annotations

from typing import Any

import jax

from gr_jax.models.norm import EPSILON


def fold(params: Any, batch_stats: Any) -> dict[str, Any]:
  """The same network in evaluation mode, without batch norm; compute it once, before the loop over batches.

  Args:
    params: of a backbone in which layer BatchNorm_i follows convolution Conv_i, which has no bias; without batch norm,
      nothing changes.
    batch_stats: its running means and variances.

  Returns:
    {"params": scaled kernels, and only the bias of batch norm, and the factor and offset of a standardised last map;
    "batch_stats": {}}.

  Raises:
    ValueError: a batch norm has no running statistics, for example because the network is already folded.
  """
  return {"params": _fold(params, batch_stats), "batch_stats": {}}


def fold_teacher(teacher: Any) -> dict[str, Any]:
  """`fold` for {"params": {"backbone", "classifier"}, "batch_stats"}; the classifier is unchanged."""
  backbone = fold(teacher["params"]["backbone"], teacher["batch_stats"])
  return {"params": {**teacher["params"], "backbone": backbone["params"]}, "batch_stats": backbone["batch_stats"]}


def _fold(params: Any, stats: Any) -> Any:
  folded = {}
  for name, layer in params.items():
    kind, _, number = name.partition("_")
    norm = f"BatchNorm_{number}"
    if kind == "Conv" and norm in params:
      if norm not in stats:
        raise ValueError(f"fold: no running statistics of {norm}; pass the network's batch_stats, and fold it only "
                         f"once")
      factor = params[norm]["scale"] * jax.lax.rsqrt(stats[norm]["var"] + EPSILON)
      folded[name] = {"kernel": layer["kernel"] * factor[None, None, None, :]}
      folded[norm] = {"bias": params[norm]["bias"] - stats[norm]["mean"] * factor}
    elif kind != "BatchNorm":
      folded[name] = _fold(layer, stats.get(name, {})) if isinstance(layer, dict) else layer
  # It has statistics but no parameters.
  for name in (name for name in stats if name.startswith("Standardise_")):
    factor = jax.lax.rsqrt(stats[name]["var"] + EPSILON)
    folded[name] = {"factor": factor, "offset": -stats[name]["mean"] * factor}
  return folded
