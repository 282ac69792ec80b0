"""What a method is: a value of a few pure functions, which the step calls in this order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gr_jax.reweighting import Ratios
from gr_jax.state import Outputs, TaskFacts


class Method(NamedTuple):
  """A method of class-incremental learning.

  The step differentiates the losses with respect to all three `Outputs`, so a method may pull on logits, on
  features and, with `uses_maps`, on stage maps.

  Attributes:
    name: as in the config.
    uses_teacher: whether tasks after the first run the previous task's model on the batch.
    uses_maps: whether the losses read stage maps.
    init: number of classes -> the method's state at the start of a task.
    cross_entropy: (student outputs, labels [batch], facts) -> scalar L_ce, local mean.
    distillation: (student outputs, teacher outputs, facts) -> scalar L_kd, local mean, all weights included.
    classifier_gradient: (method state, gradient of L_ce, gradient of L_kd or None, facts) -> (gradient of
      the classifier, next method state, ratios), from gradients averaged over devices.
  """
  name: str
  uses_teacher: bool
  uses_maps: bool
  init: Callable[[int], Any]
  cross_entropy: Callable[[Outputs, jax.Array, TaskFacts], jax.Array]
  distillation: Callable[[Outputs, Outputs, TaskFacts], jax.Array]
  classifier_gradient: Callable[[Any, dict, dict | None, TaskFacts], tuple[dict, Any, Ratios]]
