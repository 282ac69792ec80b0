"""The images of an epoch in order, shared by the step and by the transfer of pictures."""

from __future__ import annotations

from typing import Any

import jax

from gr_jax import seeding
from gr_jax.data.arrays import Pool
from gr_jax.methods.base import Context
from gr_jax.sampling import Sampler
from gr_jax.typing import AnyInteger


def epoch_of(sampler: Sampler, pool: Pool, root: jax.Array, context: Context, stage: int, epoch: AnyInteger | int
             ) -> Any:
  """What a sampler prepares for an epoch of a stage, with the epoch's key; `sampler.pick` takes it.

  Args:
    sampler: of the stage.
    pool: the rows that the stage uses.
    root: jax.random.key(seed).
    context, stage: of the stage, and its index in the method.
    epoch: from 0.
  """
  key = seeding.derive(seeding.of_stage(root, stage), context.task, epoch, seeding.ORDER)
  return sampler.prepare(pool, key, context)
