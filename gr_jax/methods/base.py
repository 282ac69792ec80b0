"""What a method is: a value of a few pure functions, which the step calls in this order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gr_jax.reweighting import Ratios


class TaskFacts(NamedTuple):
  """What is fixed while a task is learnt; arrays, so that no task compiles anything anew.

  Attributes:
    task: int32 scalar, from 0.
    old, new: [classes] bool.
    class_counts: [classes] float32, n'_j, training images present now; 0 = unseen or nothing left.
    lost: [classes] float32, s_j = n_j - min(n_j, m) of old classes, else 0.
    attenuation: float32 scalar a.
    distillation_weight: float32 scalar w_kd; 0 in the first task.
  """
  task: jax.Array
  old: jax.Array
  new: jax.Array
  class_counts: jax.Array
  lost: jax.Array
  attenuation: jax.Array
  distillation_weight: jax.Array


class Outputs(NamedTuple):
  """What a network says of a batch, and, as a cotangent, what a loss says of it.

  Attributes:
    logits: [batch, classes] float32.
    features: [batch, features] float32.
    maps: one [batch, height, width, channels] a stage; () where the method does not ask for them.
  """
  logits: jax.Array
  features: jax.Array
  maps: tuple[jax.Array, ...]


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
