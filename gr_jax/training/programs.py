"""The compiled programs of a run. The seed is an argument, so replicas share them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax import seeding
from gr_jax.data import augment, feed, stream
from gr_jax.data.arrays import Data, Pool
from gr_jax.data.feed import Feed
from gr_jax.data.order import epoch_order
from gr_jax.devices import parallel
from gr_jax.methods.base import Context, HeadParams
from gr_jax.models import folding
from gr_jax.scenario.plan import StagePlan, TaskPlan
from gr_jax.training import passes, program
from gr_jax.training.experiment import Experiment
from gr_jax.training.state import TrainState
from gr_jax.training.step import StepMetrics, make_train_step


@dataclasses.dataclass(frozen=True)
class StagePrograms:
  """The programs of one stage.

  Attributes:
    begin: state without momentum and rule -> the state before the first step.
    run: see program.make_program.
    end: (params, context) -> params, applied after the last step; None for nothing.
  """
  begin: Callable[[TrainState], TrainState]
  run: Callable[..., tuple[TrainState, StepMetrics]]
  end: Callable[[Any, Context], Any] | None


@dataclasses.dataclass(frozen=True)
class Programs:
  """All programs of training; each is compiled at its first use and never again for another task.

  Attributes:
    data: the training pictures, on every device; None if they are transferred per call.
    feed: provides the inputs of each call of a stage's program (see data.feed).
    steps_per_call: the largest number of steps in one call.
    init: root -> TrainState, with root = jax.random.key(seed) on every device.
    begin_task: (params, batch_stats, context, root) -> (params with new columns, teacher). The teacher is a copy,
      since the state's own arrays are donated to the next step.
    fold_teacher: teacher -> the same network with batch norm folded, as the stages' programs take it.
    stages: in the method's order.
    features: (state, rows) -> [rows, features] NumPy float32, in evaluation mode.
    logits: (state, plan of a task, features [rows, features]) -> [rows, seen classes] NumPy float32.
  """
  data: Data | None
  feed: Feed
  steps_per_call: int
  init: Callable[[jax.Array], TrainState]
  begin_task: Callable[[Any, Any, Context, jax.Array], tuple[Any, Any]]
  fold_teacher: Callable[[Any], Any]
  stages: tuple[StagePrograms, ...]
  features: Callable[[TrainState, np.ndarray], np.ndarray]
  logits: Callable[[TrainState, TaskPlan, np.ndarray], np.ndarray]


def make_programs(experiment: Experiment, pictures: Data | stream.Originals) -> Programs:
  """Builds the programs and the feed that gives them pictures."""
  config, devices = experiment.config, experiment.devices
  path = experiment.path[0]
  streamed = isinstance(pictures, stream.Originals)
  everywhere = experiment.root.sharding

  def begin_task(params: Any, batch_stats: Any, context: Context, root: jax.Array) -> tuple[Any, Any]:
    teacher = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    key = seeding.derive(root, context.task, 0, seeding.CLASSIFIER)
    return {**params, "classifier": experiment.method.head.renew(key, params["classifier"], context.new)}, teacher

  data, order = None, epoch_order
  if path == "resident":
    data = parallel.replicate(pictures, devices)
    feeding = feed.resident(data, devices)
  else:
    mine, order = parallel.shares(devices, config.batch_size), None
    read = feed.gather(pictures, mine) if not streamed else stream.reader(
        pictures, side=config.image_size, batch_size=config.batch_size, mine=mine, timeout=config.worker_timeout)
    feeding = feed.travelling(read, steps=experiment.steps_per_call, batch_size=config.batch_size, devices=devices)
  begin = jax.jit(begin_task, out_shardings=everywhere)
  return Programs(
      data=data, feed=feeding, steps_per_call=experiment.steps_per_call,
      init=jax.jit(experiment.init_state, out_shardings=everywhere),
      begin_task=lambda params, batch_stats, context, root: begin(
          params, batch_stats, parallel.replicate(context, devices), root),
      fold_teacher=jax.jit(folding.fold_teacher, out_shardings=everywhere),
      stages=tuple(_stage(experiment, index, streamed, order) for index in range(len(experiment.method.stages))),
      features=_features(experiment, pictures, data), logits=_logits(experiment))


def _stage(experiment: Experiment, index: int, streamed: bool, order: program.Order | None) -> StagePrograms:
  config, source, devices = experiment.config, experiment.source, experiment.devices
  stage, everywhere = experiment.method.stages[index], experiment.root.sharding
  view = {"image_size": config.image_size, "mean": source.mean, "std": source.std}
  plain = augment.make_plain(**view, cropped=True)
  step = make_train_step(
      model=experiment.model, method=experiment.method, stage=stage, tx=experiment.optimizer(stage),
      axis_name=parallel.AXIS,
      # Streamed pictures are already augmented.
      augment=(lambda keys, images, sizes: plain(images, sizes)) if streamed else augment.make_augment(
          config.augmentation, **view))

  return StagePrograms(
      begin=jax.jit(functools.partial(experiment.begin_stage, index=index), out_shardings=everywhere),
      run=program.make_program(step, stage=stage, number=index, batch_size=config.batch_size, devices=devices,
                               order=order),
      end=None if stage.end is None else jax.jit(_ending(stage.end), out_shardings=everywhere))


def _ending(finish: Callable[[HeadParams, Context], HeadParams]) -> Callable[[Any, Context], Any]:
  """A stage's own ending of the head as one of all parameters."""
  def end(params: Any, context: Context) -> Any:
    return {**params, "classifier": finish(params["classifier"], context)}

  return end


def _features(experiment: Experiment, pictures: Data | stream.Originals, data: Data | None
              ) -> Callable[[TrainState, np.ndarray], np.ndarray]:
  """Programs.features; `data` holds the pictures if they stay on the devices, else None."""
  config, source, devices = experiment.config, experiment.source, experiment.devices
  streamed = isinstance(pictures, stream.Originals)
  capacity = experiment.capacity if data is not None else _looked_at_together(experiment)
  extract = passes.make_extract(
      model=experiment.model, capacity=capacity, block=config.evaluation_block, devices=devices,
      prepare=augment.make_plain(image_size=config.image_size, mean=source.mean, std=source.std,
                                 cropped=streamed or source.uniform))
  replicate = functools.partial(parallel.replicate, devices=devices)

  def features(state: TrainState, rows: np.ndarray) -> np.ndarray:
    if data is not None:
      found = extract(state.params, state.batch_stats, data, replicate(pool(rows, capacity)))
      return np.asarray(found)[:len(rows)]
    if isinstance(pictures, stream.Originals):
      blocks = stream.central(pictures, rows, side=config.image_size, block=capacity, timeout=config.worker_timeout)
    else:
      blocks = (feed.rows_of(pictures, rows[i:i + capacity]) for i in range(0, len(rows), capacity))
    found = []
    for block in blocks:
      here, among = replicate((feed.padded(block, capacity), pool(np.arange(len(block.labels)), capacity)))
      found.append(np.asarray(extract(state.params, state.batch_stats, here, among))[:len(block.labels)])
    return np.concatenate(found)

  return features


def _logits(experiment: Experiment) -> Callable[[TrainState, TaskPlan, np.ndarray], np.ndarray]:
  """Programs.logits; rows are filled up to the capacity, so that no task compiles anew."""
  apply = jax.jit(lambda head, features, context: experiment.method.head.apply(head, features, context)[0],
                  out_shardings=experiment.root.sharding)

  def logits(state: TrainState, plan: TaskPlan, features: np.ndarray) -> np.ndarray:
    filled = np.zeros((experiment.capacity, features.shape[1]), np.float32)
    filled[:len(features)] = features
    here, context = parallel.replicate((filled, plan.stages[0].context), experiment.devices)
    found = np.asarray(apply(state.params["classifier"], here, context))
    return found[:len(features), :plan.task.stop]

  return logits


def _looked_at_together(experiment: Experiment) -> int:
  """Pictures per call if they are transferred: one block for each device, so blocks equal those of resident data."""
  return experiment.config.evaluation_block * len(experiment.devices)


def make_evaluator(experiment: Experiment, pictures: Data, *, split: str | None = None
                   ) -> Callable[[dict, int], np.ndarray]:
  """Puts a split on the devices; returns count(network, tasks done) -> int [scores, 3, classes].

  `network` is {"params", "batch_stats", "carry"}; `split` is the one given to pictures.load (test pictures are already
  cropped), by default that on which the run is evaluated. Rows of the counts: correct among all seen classes, correct
  among the classes of the image's task, images.
  """
  config, devices, source, drawn = (experiment.config, experiment.devices, experiment.source,
                                    experiment.scenario)
  split, resides = split or config.evaluate_on, experiment.path[0] == "resident"
  data = parallel.replicate(pictures, devices) if resides else None
  evaluate = passes.make_evaluate(
      model=experiment.model, method=experiment.method, num_classes=drawn.num_classes,
      block=config.evaluation_block, devices=devices,
      prepare=augment.make_plain(image_size=config.image_size, mean=source.mean, std=source.std,
                                 cropped=split == "test" or source.uniform))

  def count(network: dict, tasks_done: int) -> np.ndarray:
    plan: StagePlan = experiment.plans[tasks_done - 1].stages[0]
    context = parallel.replicate(plan.context, devices)
    # Pictures are in learning order, so those of the seen classes come first.
    stop = int(np.searchsorted(pictures.labels, plan.task.stop))
    if resides:
      counts = np.asarray(evaluate(network, data, context, parallel.replicate(np.int32(stop), devices)))
    else:
      together = _looked_at_together(experiment)
      counts = np.zeros((len(experiment.method.scores), 3, drawn.num_classes), np.int32)
      for first in range(0, stop, together):
        block = feed.rows_of(pictures, slice(first, min(first + together, stop)))
        here, until = parallel.replicate((feed.padded(block, together), np.int32(len(block.labels))), devices)
        counts += np.asarray(evaluate(network, here, context, until))
    expected = np.bincount(pictures.labels[:stop], minlength=drawn.num_classes)
    if not np.array_equal(counts[0, 2], expected):
      raise AssertionError(f"evaluated {counts[0, 2].sum()} images, expected {expected.sum()}")
    return counts

  return count


def pool(rows: np.ndarray, capacity: int) -> Pool:
  """Rows as a Pool of fixed capacity, padded with zeros."""
  padded = np.zeros(capacity, np.int32)
  padded[:len(rows)] = rows
  return Pool(padded, np.int32(len(rows)))
