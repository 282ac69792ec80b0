"""SGD with its learning-rate schedule (docs/method.md section 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

SCHEDULES = ("steps", "cosine")


def learning_rates(*, schedule: str, base: float, epochs: int, milestones: Sequence[int], decay: float
                   ) -> tuple[float, ...]:
  """The learning rate of every epoch of a stage.

  "steps": base, multiplied by decay at each milestone of finished epochs (docs/method.md section 6). "cosine": half a
  cosine from base, reaching 0 after the last epoch.
  """
  if schedule == "cosine":
    return tuple(base * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs))
  return tuple(base * decay ** sum(epoch >= milestone for milestone in milestones) for epoch in range(epochs))


def scale_by_epoch(rates: Sequence[float]) -> optax.GradientTransformationExtraArgs:
  """Multiplies updates by minus the rate of the epoch, given as the extra argument `epoch` (int32 scalar, from 0)."""
  table = np.asarray(rates, np.float32)

  def update(updates, state, params=None, *, epoch: jax.Array, **extra):
    del params, extra
    rate = jnp.asarray(table)[epoch]
    return jax.tree.map(lambda update: -rate * update, updates), state

  # optax's annotation cannot say that an extra argument is needed.
  return optax.GradientTransformationExtraArgs(
      lambda params: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType]


def sgd(rates: Sequence[float], *, momentum: float, weight_decay: float) -> optax.GradientTransformationExtraArgs:
  """Weight decay added to the gradient, momentum, then the rate of the epoch."""
  return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(decay=momentum), scale_by_epoch(rates))
