"""MAFDRC's head: two branches with a scale and a shift for each channel, and one linear layer that they share.

Each branch is a batch norm of the last map, followed by the mean over the pixels. Both see the same map, so they have
the same statistics: the backbone standardises (norm.Standardise), and a branch is what is left of its batch norm.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gr_jax.models import heads
from gr_jax.models.heads import Head


def two_branch() -> Head:
  """z_O + z_N, where z_B = W^T (scale_B f + shift_B) + b; `branches` has "old" and "new".

  Until `merge` has been called, the old branch takes no part: "old_branch" is 0.
  """
  def start(features: int, num_classes: int, tasks: int) -> dict[str, jax.Array]:
    del tasks
    ones, zeros = jnp.ones(features, jnp.float32), jnp.zeros(features, jnp.float32)
    return {**heads.init(features, num_classes), "old_scale": ones, "old_shift": zeros, "new_scale": ones,
            "new_shift": zeros, "old_branch": jnp.zeros((), jnp.float32)}

  def branches(params: dict, features: jax.Array, context: Any) -> dict[str, jax.Array]:
    shared, features = heads.mask(params, context.seen), features.astype(jnp.float32)
    return {name: heads.logits(
        shared, params[f"{name}_scale"][None, :] * features + params[f"{name}_shift"][None, :])
            for name in ("old", "new")}

  def apply(params: dict, features: jax.Array, context: Any) -> tuple[jax.Array, jax.Array]:
    of_branch = branches(params, features, context)
    total = params["old_branch"] * of_branch["old"] + of_branch["new"]
    return total, total

  return Head(start, heads.draw_columns, apply, branches=branches)


def merge(params: dict) -> dict[str, jax.Array]:
  """The head when a later task begins: the old branch becomes the mean of both, and the first time the new one."""
  def old(name: str) -> jax.Array:
    mean = 0.5 * (params[f"old_{name}"] + params[f"new_{name}"])
    return jnp.where(params["old_branch"] > 0, mean, params[f"new_{name}"])
  return {**params, "old_scale": old("scale"), "old_shift": old("shift"), "old_branch": jnp.ones((), jnp.float32)}
