"""The one pytree that a train step takes and gives back, and the facts of a task that it reads."""

from __future__ import annotations

from typing import Any, NamedTuple

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


class Data(NamedTuple):
  """What stays on the device for the whole run.

  Attributes:
    images: [images, height, width, channels] uint8, or whatever the model takes where nothing augments.
    sizes: [images, 2] int32, height and width of the original picture, in whose geometry boxes are drawn.
    labels: [images] int32, classes in learning order.
  """
  images: jax.Array
  sizes: jax.Array
  labels: jax.Array


class Pool(NamedTuple):
  """The rows of `Data` that are present in a task: rows [capacity] int32, of which the first `size` count."""
  rows: jax.Array
  size: jax.Array
