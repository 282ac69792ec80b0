"""Random keys as a function of (seed, task, step, purpose): a resumed run draws what an uninterrupted one does."""

from __future__ import annotations

import jax

from gr_jax.typing import AnyInteger

# Purposes. Append, never renumber: the numbers determine what a seed draws.
BACKBONE, CLASSIFIER, ORDER, AUGMENT, MEASURE = range(5)
# Offset of stage numbers, far above the purposes.
_STAGES = 2**20
# Far above the places in a batch, each of which has a key folded from the step's.
_MIXING = 2**30


def derive(root: jax.Array, task: AnyInteger | int, step: AnyInteger | int, purpose: int) -> jax.Array:
  """The key of one purpose at one step of one task.

  Args:
    root: jax.random.key(seed).
    task: index of the task, from 0.
    step: global step (AUGMENT), epoch (ORDER) or 0 (the others).
    purpose: one of the constants above.
  """
  return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(root, purpose), task), step)


def of_stage(root: jax.Array, stage: int) -> jax.Array:
  """The root of a stage's keys that do not depend on the global step; for the first stage, the run's root."""
  return jax.random.fold_in(root, _STAGES + stage) if stage else root


def of_mixing(key: jax.Array) -> jax.Array:
  """The key for mixing the images of a step, from the step's key (purpose AUGMENT)."""
  return jax.random.fold_in(key, _MIXING)
