"""The one pytree that a train step takes and returns."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
  """Everything the next step needs that changes from step to step.

  Attributes:
    step: int32 scalar, steps done since the run began.
    params: {"backbone": ..., "classifier": {"kernel" [features, classes], "bias" [classes]}} float32.
    batch_stats: running means and variances of the backbone, float32.
    opt_state: of the optax transformation; fresh at each task.
    method: the method's own state; for Gradient Reweighting Phi and the last column ratios.
  """
  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  method: Any
