"""Weights of classes by their effective number of images."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax.typing import AnyArray


def effective_number(counts: AnyArray, classes: AnyArray, beta: float) -> jax.Array:
  """w_c = (1 - beta) / (1 - beta^n_c), scaled so that the weights add up to the number of classes.

  Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019. beta 0: all weights are 1; towards
  1: inversely proportional to the counts.

  Args:
    counts: [classes] n_c, images of each class; 1 or more in `classes`.
    classes: [classes] bool, may be traced.
    beta: from 0, below 1.

  Returns:
    [classes] float32; 1 for other classes.
  """
  counts = jnp.where(classes, counts, 1).astype(jnp.float32)
  weights = jnp.where(classes, (1.0 - beta) / (1.0 - beta ** counts), 0.0)
  return jnp.where(classes, weights * jnp.sum(classes).astype(jnp.float32) / jnp.sum(weights), 1.0)
