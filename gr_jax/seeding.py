"""Randomness as a function of (seed, task, step, purpose): a resumed run cannot differ from an unbroken one."""

from __future__ import annotations

import jax

# Purposes. Their numbers are part of what a seed means: append, never renumber.
BACKBONE, CLASSIFIER, ORDER, AUGMENT = range(4)
# Far from them.
_STAGES = 2**20


def derive(root: jax.Array, task: jax.Array | int, step: jax.Array | int, purpose: int) -> jax.Array:
  """The key of one purpose at one step of one task.

  Args:
    root: jax.random.key(seed).
    task: index of the task, from 0.
    step: global step (AUGMENT), epoch (ORDER) or 0.
    purpose: one of the constants above.
  """
  return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(root, purpose), task), step)


def of_stage(root: jax.Array, stage: int) -> jax.Array:
  """The root of a stage's keys that do not depend on the global step; the first stage's is the run's own."""
  return jax.random.fold_in(root, _STAGES + stage) if stage else root
