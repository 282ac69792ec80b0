"""The pytree that a train step takes and returns."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax


class TrainState(flax.struct.PyTreeNode):
  """Everything that changes from step to step.

  Attributes:
    step: int32 scalar, steps since the start of the run.
    params: {"backbone": ..., "classifier": parameters of the head} float32.
    batch_stats: running means and variances of the backbone, float32.
    opt_state: of the optax transformation; new in each stage.
    rule: state of the head's gradient rule, such as Phi of Gradient Reweighting; new in each stage; () without a rule.
    tracked: state of the stage's `track`, new in each stage; () without one.
  """
  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  rule: Any
  tracked: Any = ()

  def between_stages(self) -> TrainState:
    """The state without what is new in each stage."""
    return self.replace(opt_state=(), rule=(), tracked=())
