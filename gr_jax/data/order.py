"""The order of the images in an epoch, shared by the step and by the transfer of pictures."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax import seeding
from gr_jax.data.arrays import Pool
from gr_jax.typing import AnyInteger


def shuffled(pool: Pool, key: jax.Array) -> jax.Array:
  """The pool's rows, shuffled; [capacity] int32, of which the first `size` are valid.

  No shape depends on the number of rows, so no task needs a new compilation.
  """
  present = jnp.arange(pool.rows.size) < pool.size
  draws = jnp.where(present, jax.random.uniform(key, pool.rows.shape), 2.0)
  return pool.rows[jnp.argsort(draws)]


def epoch_order(pool: Pool, root: jax.Array, task: AnyInteger | int, stage: int, epoch: AnyInteger | int) -> jax.Array:
  """`shuffled` with the key for an epoch of a stage."""
  return shuffled(pool, seeding.derive(seeding.of_stage(root, stage), task, epoch, seeding.ORDER))
