"""The definition of a method: a value made of pure functions. A task is a sequence of stages, each one program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gr_jax import nearest_mean
from gr_jax.models.heads import Head
from gr_jax.sampling import EVERY_IMAGE, Sampler
from gr_jax.typing import AnyArray, AnyInteger

# Parameters or gradients of a head: {"kernel": [features, ..., classes], ...}.
HeadParams = dict[str, jax.Array]
# Of a head's parameters, by name, those that are trained; broadcastable to them.
HeadMask = Mapping[str, AnyArray]


class Context(NamedTuple):
  """What is fixed during a stage; arrays, so that a new task needs no compilation.

  Attributes:
    task: int32 scalar, from 0.
    old, new: [classes] bool, classes of earlier tasks and of this one.
    counts: [classes] float32, n'_j, images used in the stage; 0 = unseen or nothing left.
    original: [classes] float32, n_j, training images before any was dropped; 0 = unseen.
    lost: [classes] float32, s_j = n_j - n'_j of old classes, else 0.
    task_of_class: [classes] int32.
    progress: float32 scalar, finished epochs of the stage over all of them, in [0, 1); 0 outside the train step.
  """
  task: AnyInteger
  old: AnyArray
  new: AnyArray
  counts: AnyArray
  original: AnyArray
  lost: AnyArray
  task_of_class: AnyArray
  progress: AnyArray | np.floating = np.float32(0.0)

  @property
  def seen(self) -> AnyArray:
    """[classes] bool."""
    return self.old | self.new


class Outputs(NamedTuple):
  """Network outputs for a batch; as a cotangent, the gradient of a loss with respect to them.

  Attributes:
    logits: [batch, classes] float32.
    scores: [batch, classes] float32, logits before a learned scale; equal to the logits if there is none.
    features: [batch, features] float32.
    maps: one [batch, height, width, channels] per stage of the backbone; () unless the method uses them.
    branches: further logits by name, [batch, ...] each; see Head.branches.
    frozen: [batch, size * features] float32, features of the stack of frozen backbones, 0 where none was computed; ()
      without `Growth`.
  """
  logits: jax.Array
  scores: jax.Array
  features: jax.Array
  maps: tuple[jax.Array, ...]
  branches: dict[str, jax.Array] = {}
  frozen: jax.Array | tuple[()] = ()


class Loss(NamedTuple):
  """One term of the loss.

  Attributes:
    value: (student, teacher or None, labels [batch], context) -> float32 scalar, local mean, weights included. It gets
      None where `teacher` is False, and what `Stage.teach` returns if the stage has that.
    teacher: whether it compares with the previous model; such terms are left out of the first task.
    kind: what parts that combine (methods.combining) may change: "cross_entropy": of a softmax of `student.logits`;
      "distillation": compares `student.logits` with `teacher.logits` and reads no other output; "other".
    view: "clean", or "mixed": its `student` are the outputs of mixed images, and its `labels` their targets [batch,
      classes], which sum to 1 (Stage.mixing); the teacher always sees clean images.
    prior: whether it adds the log prior to the logits itself; then the part of that name is refused.
  """
  value: Callable[[Outputs, Any, jax.Array, Context], jax.Array]
  teacher: bool = False
  kind: str = "other"
  view: str = "clean"
  prior: bool = False


class Track(NamedTuple):
  """State that follows a stage step by step, for `Stage.penalty`; new in each stage.

  Attributes:
    init: head -> state.
    step: (state, student outputs and labels [batch] of the clean images on this device, total) -> state, where `total`
      sums a tree over the devices.
  """
  init: Callable[[HeadParams], Any]
  step: Callable[[Any, Outputs, jax.Array, Callable[[Any], Any]], Any]


class Boundary(NamedTuple):
  """What a method learns from images, in one pass: after a task (Method.after_memory) or before a stage (Stage.before).

  The images are those of the task's first stage, or of the stage, and the network is in evaluation mode.

  Attributes:
    measure: (outputs, labels [block], valid [block] bool, context) -> arrays of fixed shapes, summed over the valid
      images of a block.
    keep: (carry, sums over all images, context) -> carry, with all arrays that it had.
    augmented: whether each image is augmented as in training, once; else it is seen as in evaluation.
  """
  measure: Callable[[Outputs, jax.Array, jax.Array, Context], Any]
  keep: Callable[[Any, Any, Context], Any]
  augmented: bool = False


class Networks(NamedTuple):
  """What a stage may change before its first step.

  Attributes:
    params, batch_stats: of the trained network, as in TrainState.
    carry: what outlives a task, see Method.init_carry; with frozen backbones also "frozen" (models/frozen.py) and
      "heads". No array of it may be left out: start from {**carry, ...}.
    rule: the new state of the stage's rule; () without one.
  """
  params: dict[str, Any]
  batch_stats: Any
  carry: dict[str, Any]
  rule: Any = ()


class Growth(NamedTuple):
  """How the frozen backbones of `carry["frozen"]` are used beside the trained one. All shapes are those of the run.

  Attributes:
    walked: context -> int scalar, how many of the stack are computed, from the first on; may be traced.
    join: (features of the trained backbone [batch, features], those of the stack [batch, size * features], context) ->
      features for the head [batch, blocks * features].
  """
  walked: Callable[[Context], AnyInteger | int]
  join: Callable[[jax.Array, jax.Array, Context], jax.Array]


class Stage(NamedTuple):
  """A part of a task with its own losses, trained parameters and schedule.

  Attributes:
    name: for logs and checkpoints.
    losses: name -> term; the stage minimises their sum.
    tasks: "all", "first" for the first task alone, or "later" for all others.
    rows: which images are used, see scenario.plan.ROWS.
    sampler: how batches are drawn from them, see gr_jax.sampling.
    backbone: "train", or "frozen": evaluation mode, no gradient and no update.
    epochs_share: its number of epochs over the config's; the product is rounded up.
    learning_rate: None: the config's schedule; else a constant rate.
    weight_decay: whether the config's weight decay applies.
    teacher: the model that losses compare with, from the second task on. "previous": as it was at the end of the
      previous task. "start": as it is at the start of this stage; it stays the teacher of later stages of the task.
    rule: combines the head's gradients, one for each loss, into one; None: their sum. Called as
      `rule.update(sum, state, head, gradients={name: HeadParams}, old=, new=, counts=)`, where `counts` is `original`.
    report: rule state -> values to log for a step, by name; scalars or [classes].
    summary: (rule state, steps of the stage) -> values to record after a task, by name; [classes] each.
    trainable: (head, context) -> mask, broadcastable to the head's parameters. It masks the update, weight decay and
      momentum included. None: train the columns of seen classes and all other parameters.
    penalty: (head, state of `track`, context) -> scalar, added to the loss.
    end: (head, context) -> head, applied after the last step.
    head: how the head's parameters are read in this stage, by student and teacher; None: as `Method.head` does.
    schedule: of `learning_rate`, if that is given: "constant", or "cosine", half a cosine.
    rates: head parameter -> factor of its learning rate; 1 for all others.
    steps: None: as many as its images need; else one epoch of so many steps.
    before: what is measured first, with the network as it was.
    begin: (networks, context, key) -> networks, applied before the first step, after `before`.
    remember: (state of the rule, carry) -> carry, applied after the last step.
    track: state for the penalty.
    mixing: alpha of Beta(alpha, alpha): each image is also seen mixed with another one of the batch, by a share drawn
      once a step; both views share one batch norm. None: no mixed view.
    source: (key, carry, context) -> (features [n, features], targets [n, classes]); such a stage sees no image, all
      devices draw the same, and its losses get the targets as labels. The backbone must be "frozen".
    growth: how frozen backbones are used; None: the trained backbone alone.
    teach: (carry, features of the stack [batch, size * features], context) -> what losses get as `teacher`, without
      gradient; needs `growth`. None: the previous model, for losses that ask for it.
  """
  name: str
  losses: Mapping[str, Loss]
  tasks: str = "all"
  rows: str = "present"
  sampler: Sampler = EVERY_IMAGE
  backbone: str = "train"
  epochs_share: float = 1.0
  learning_rate: float | None = None
  weight_decay: bool = True
  teacher: str = "previous"
  rule: optax.GradientTransformationExtraArgs | None = None
  report: Callable[[Any], dict[str, jax.Array]] = lambda state: {}
  summary: Callable[[Any, int], dict[str, jax.Array]] = lambda state, steps: {}
  trainable: Callable[[HeadParams, Context], HeadMask] | None = None
  penalty: Callable[[HeadParams, Any, Context], jax.Array] | None = None
  end: Callable[[HeadParams, Context], HeadParams] | None = None
  head: Head | None = None
  schedule: str = "constant"
  rates: Mapping[str, float] = {}
  steps: int | None = None
  before: Boundary | None = None
  begin: Callable[[Networks, Context, jax.Array], Networks] | None = None
  remember: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]] | None = None
  track: Track | None = None
  mixing: float | None = None
  source: Callable[[jax.Array, dict[str, jax.Array], Context], tuple[jax.Array, jax.Array]] | None = None
  growth: Growth | None = None
  teach: Callable[[dict[str, Any], jax.Array, Context], Any] | None = None

  @property
  def uses_teacher(self) -> bool:
    return any(loss.teacher for loss in self.losses.values())

  def epochs(self, epochs: int) -> int:
    """The stage's number of epochs if the config has `epochs`."""
    if self.steps is not None:
      return 1
    # Rounded first, because 0.1 * 30 is more than 3 in floating point.
    return math.ceil(round(self.epochs_share * epochs, 9))

  def takes_part(self, task: int) -> bool:
    return self.tasks == "all" or (self.tasks == "later") == (task > 0)


# (outputs, carry, context) -> [batch, classes]; the prediction is the seen class with the largest score. The context is
# that of the task's first stage.
Score = Callable[[Outputs, Any, Context], jax.Array]


class Method(NamedTuple):
  """A method of class-incremental learning.

  Attributes:
    name: as in the config.
    stages: of a task, in order.
    head: the classifier.
    scores: name -> score that predicts a class. The first one gives the run's accuracies; all are recorded.
    exemplar_means: whether `carry` holds the normalised means of the exemplars' normalised features, for the score
      NEAREST_MEAN.
    held_out: images of each class reserved for a stage with rows="held_out"; they count as exemplars.
    signed_features: whether the backbone's last ReLU is left out.
    standardised_features: whether the last map is batch-normalised, without scale and shift, before it is pooled.
    uses_maps: whether losses use `Outputs.maps`.
    min_memory: smallest number of exemplars per class that the method needs.
    carry: (features, classes) -> what else is kept from task to task besides the network, before the first task; a dict
      of arrays.
    after_memory: what changes it after each task.
    stack: number of tasks -> number of frozen backbones in `carry["frozen"]`; 0: none.
    kept_heads: names of the copies of the head in `carry["heads"]`.
    blocks: number of tasks -> width of the head's features, in backbones.
    growth: how frozen backbones are used to predict and to choose exemplars.
    scores_frozen: whether scores read Outputs.frozen.
    backbones: number of finished tasks -> number of backbones that the first score needs.
  """
  name: str
  stages: tuple[Stage, ...]
  head: Head
  scores: Mapping[str, Score]
  exemplar_means: bool = False
  held_out: int = 0
  signed_features: bool = False
  standardised_features: bool = False
  uses_maps: bool = False
  min_memory: int = 0
  carry: Callable[[int, int], dict[str, jax.Array]] | None = None
  after_memory: Boundary | None = None
  stack: Callable[[int], int] = lambda tasks: 0
  kept_heads: tuple[str, ...] = ()
  blocks: Callable[[int], int] = lambda tasks: 1
  growth: Growth | None = None
  scores_frozen: bool = False
  backbones: Callable[[int], int] = lambda tasks: 1

  @property
  def uses_teacher(self) -> bool:
    return any(stage.uses_teacher for stage in self.stages)

  @property
  def replays(self) -> bool:
    """Whether exemplars are chosen after each task, if the memory has room for some."""
    return any(stage.rows == "present" for stage in self.stages)

  def carrying(self, further: Callable[[int, int], dict[str, jax.Array]]) -> Method:
    """The method with more in `carry`, by other names."""
    method_carry = self.carry
    return self._replace(carry=lambda features, num_classes: {
        **({} if method_carry is None else method_carry(features, num_classes)), **further(features, num_classes)})

  def init_carry(self, features: int, num_classes: int) -> dict[str, jax.Array]:
    """What is kept from task to task besides the network.

    Returns:
      `carry`, and for `exemplar_means` {"exemplar_means": [classes, features] float32, "has_mean": [classes] bool}.
    """
    carried = {} if self.carry is None else self.carry(features, num_classes)
    if not self.exemplar_means:
      return carried
    return {**carried, "exemplar_means": jnp.zeros((num_classes, features), jnp.float32),
            "has_mean": jnp.zeros(num_classes, bool)}


def usual_mask(head: HeadParams, context: Context) -> HeadMask:
  """What a stage without `trainable` trains: the columns of seen classes, and all parameters that are not named."""
  del head
  return {"kernel": context.seen, "bias": context.seen}


def logits(outputs: Outputs, carry: Any, context: Context) -> jax.Array:
  """The default score: the logits."""
  del carry, context
  return outputs.logits


# The name of the score of iCaRL, which is recorded for every method with a memory.
NEAREST_MEAN = "nearest_mean"


def nearest_exemplar_mean(outputs: Outputs, carry: Any, context: Context) -> jax.Array:
  """The score NEAREST_MEAN: nearness to the mean of a class's exemplars; needs Method.exemplar_means."""
  del context
  return nearest_mean.scores(outputs.features, carry["exemplar_means"], carry["has_mean"])


def with_nearest_mean(method: Method) -> Method:
  """The method with NEAREST_MEAN as its last score, where it keeps exemplars and has no such score."""
  if not method.replays or NEAREST_MEAN in method.scores:
    return method
  return method._replace(exemplar_means=True, scores={**method.scores, NEAREST_MEAN: nearest_exemplar_mean})


def without_nearest_mean(method: Method) -> Method:
  """The method as it was before `with_nearest_mean`; unchanged if it predicts by that score."""
  first, *others = method.scores
  if NEAREST_MEAN not in others or not method.exemplar_means:
    return method
  kept = {name: score for name, score in method.scores.items() if name != NEAREST_MEAN}
  return method._replace(exemplar_means=False, scores=kept)
