"""What a method is: a value made of pure functions. A task is a sequence of stages, a stage is one compiled program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gr_jax.models.heads import Head

# Parameters or gradients of a head: {"kernel": [features, classes], ...}.
HeadParams = dict[str, jax.Array]


class Context(NamedTuple):
  """What is fixed during a stage; arrays, so that no task compiles anything anew.

  Attributes:
    task: int32 scalar, from 0.
    old, new: [classes] bool, classes of earlier tasks and of this one.
    counts: [classes] float32, n'_j, images that take part in the stage; 0 = unseen or nothing left.
    original: [classes] float32, n_j, training images before any was dropped; 0 = unseen.
    lost: [classes] float32, s_j = n_j - n'_j of old classes, else 0.
    task_of_class: [classes] int32.
  """
  task: jax.Array
  old: jax.Array
  new: jax.Array
  counts: jax.Array
  original: jax.Array
  lost: jax.Array
  task_of_class: jax.Array

  @property
  def seen(self) -> jax.Array:
    """[classes] bool."""
    return self.old | self.new


class Outputs(NamedTuple):
  """Network outputs for a batch; as a cotangent, the gradient of a loss with respect to them.

  Attributes:
    logits: [batch, classes] float32.
    scores: [batch, classes] float32, logits before a learned scale; equal to them where there is none.
    features: [batch, features] float32.
    maps: one [batch, height, width, channels] per stage of the backbone; () unless the method reads them.
  """
  logits: jax.Array
  scores: jax.Array
  features: jax.Array
  maps: tuple[jax.Array, ...]


class Loss(NamedTuple):
  """One term of the loss.

  Attributes:
    value: (student, teacher or None, labels [batch], context) -> float32 scalar, local mean, weights included.
    teacher: whether it compares with the previous model; such terms are left out of the first task.
  """
  value: Callable[[Outputs, Outputs | None, jax.Array, Context], jax.Array]
  teacher: bool = False


class Stage(NamedTuple):
  """A part of a task with losses, trained parameters and a schedule of its own.

  Attributes:
    name: for logs and checkpoints.
    losses: name -> term; the stage minimises their sum.
    tasks: "all" or "later": without the first task.
    rows: which images take part, see scenario.plan.ROWS.
    backbone: "train", or "frozen": evaluation mode, no gradient and no update.
    epochs_share: its epochs are this share of the config's, rounded up.
    learning_rate: None: the config's rates; else this constant one, without weight decay.
    rule: turns the head's gradients, one for each loss, into one; None: their sum. Called as
      `rule.update(sum, state, head, gradients={name: HeadParams}, old=, new=, counts=)`, `counts` being `original`.
    report: state of the rule -> what the method reports of a step, by name; scalars or [classes].
    summary: (state of the rule, steps of the stage) -> what the method records after a task, by name; [classes] each.
    trainable: (head, context) -> mask over the head's parameters, broadcastable to them; it masks the update, so that
      weight decay and momentum change nothing either. None: everything that belongs to a seen class.
    penalty: (head, context) -> scalar, added to the loss.
    end: (head, context) -> head, after the last step.
  """
  name: str
  losses: Mapping[str, Loss]
  tasks: str = "all"
  rows: str = "present"
  backbone: str = "train"
  epochs_share: float = 1.0
  learning_rate: float | None = None
  rule: optax.GradientTransformationExtraArgs | None = None
  report: Callable[[Any], dict[str, jax.Array]] = lambda state: {}
  summary: Callable[[Any, int], dict[str, jax.Array]] = lambda state, steps: {}
  trainable: Callable[[HeadParams, Context], HeadParams] | None = None
  penalty: Callable[[HeadParams, Context], jax.Array] | None = None
  end: Callable[[HeadParams, Context], HeadParams] | None = None

  @property
  def uses_teacher(self) -> bool:
    return any(loss.teacher for loss in self.losses.values())

  def epochs(self, epochs: int) -> int:
    """Its epochs where the config asks for `epochs`."""
    # Not above the product because of its rounding: 0.1 * 30 is more than 3.
    return math.ceil(round(self.epochs_share * epochs, 9))

  def takes_part(self, task: int) -> bool:
    return self.tasks == "all" or task > 0


# (outputs, carry, context) -> [batch, classes]; the largest of the seen classes is the answer. The context is that of
# the task's first stage.
Score = Callable[[Outputs, Any, Context], jax.Array]


class Method(NamedTuple):
  """A method of class-incremental learning.

  Attributes:
    name: as in the config.
    stages: of a task, in order.
    head: the classifier.
    scores: name -> how a class is chosen. The first one gives the run's accuracies; all are recorded.
    exemplar_means: whether `carry` holds the normalised means of the exemplars' normalised features.
    held_out: images of each class that leave before training, kept for a stage whose rows are "held_out"; they count
      as exemplars.
    signed_features: the backbone's last ReLU is left out.
    uses_maps: whether losses read `Outputs.maps`.
    min_memory: exemplars of a class without which the method makes no sense.
  """
  name: str
  stages: tuple[Stage, ...]
  head: Head
  scores: Mapping[str, Score]
  exemplar_means: bool = False
  held_out: int = 0
  signed_features: bool = False
  uses_maps: bool = False
  min_memory: int = 0

  @property
  def uses_teacher(self) -> bool:
    return any(stage.uses_teacher for stage in self.stages)

  def init_carry(self, features: int, num_classes: int) -> dict[str, jax.Array]:
    """What outlives a task besides the network.

    Returns:
      {} or {"exemplar_means": [classes, features] float32, "has_mean": [classes] bool}.
    """
    if not self.exemplar_means:
      return {}
    return {"exemplar_means": jnp.zeros((num_classes, features), jnp.float32),
            "has_mean": jnp.zeros(num_classes, bool)}


def logits(outputs: Outputs, carry: Any, context: Context) -> jax.Array:
  """The usual score."""
  del carry, context
  return outputs.logits
