"""Weight aligning (Zhao et al., "Maintaining Discrimination and Fairness in Class Incremental Learning", CVPR 2020)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax.typing import AnyArray


def align(kernel: jax.Array, old: AnyArray, new: AnyArray) -> jax.Array:
  """Scales the columns of new classes so that their mean norm equals that of the old ones.

  W_new <- gamma W_new, gamma = mean_old ||W_j|| / mean_new ||W_j||. Without old classes or without new ones, or if all
  new columns are zero, nothing changes.

  Args:
    kernel: [features, classes] float32.
    old, new: [classes] bool, may be traced.
  """
  norms = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=0))
  def mean(group: AnyArray) -> jax.Array:
    return jnp.sum(jnp.where(group, norms, 0.0)) / jnp.maximum(jnp.sum(group), 1).astype(jnp.float32)
  mean_old, mean_new = mean(old), mean(new)
  applies = jnp.any(old) & (mean_new > 0)
  gamma = jnp.where(applies, mean_old / jnp.where(applies, mean_new, 1.0), 1.0)
  return jnp.where(new, gamma * kernel, kernel)
