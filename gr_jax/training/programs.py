"""The compiled programs of a run. The seed is an argument, so replicas share them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax import seeding
from gr_jax.data import augment, feed, stream
from gr_jax.data.arrays import Data, Pool
from gr_jax.data.feed import Feed
from gr_jax.devices import parallel
from gr_jax.methods.base import Boundary, Context, HeadParams, Networks
from gr_jax.models import folding, frozen
from gr_jax.scenario.plan import TaskPlan
from gr_jax.training import passes, program
from gr_jax.training.experiment import Experiment
from gr_jax.training.state import TrainState
from gr_jax.training.step import StepMetrics, make_train_step


@dataclasses.dataclass(frozen=True)
class StagePrograms:
  """The programs of one stage.

  Attributes:
    open: (networks, context, root) -> networks, applied before the first step; None for nothing.
    begin: state without momentum and rule -> the state before the first step.
    run: see program.make_program.
    end: (params, context) -> params, applied after the last step; None for nothing.
    before: (state, carry, context, rows) -> carry, measured before the first step; None for nothing.
    start: (head, state of the rule, carry, context) -> (head, state of the rule), applied then; None for nothing.
    remember: (state of the rule, carry) -> carry, applied after the last step; None for nothing.
  """
  open: Callable[[Networks, Context, jax.Array], Networks] | None
  begin: Callable[[TrainState], TrainState]
  run: Callable[..., tuple[TrainState, StepMetrics]]
  end: Callable[[Any, Context], Any] | None
  before: Callable[[TrainState, Any, Context, np.ndarray], Any] | None
  start: Callable[[HeadParams, Any, Any, Context], tuple[HeadParams, Any]] | None
  remember: Callable[[Any, Any], Any] | None


@dataclasses.dataclass(frozen=True)
class Programs:
  """All programs of training; each is compiled at its first use and never again for another task.

  Attributes:
    data: the training pictures, on every device; None if they are transferred per call.
    feed: provides the inputs of each call of a stage's program (see data.feed).
    steps_per_call: the largest number of steps in one call.
    init: root -> TrainState, with root = jax.random.key(seed) on every device.
    begin_task: (params, batch_stats, context, root) -> (params with new columns, teacher).
    make_teacher: (params, batch_stats) -> teacher, a copy, since the state's own arrays are donated to the next step.
    fold_teacher: teacher -> the same network with batch norm folded, as the stages' programs take it.
    fold_carry: carry -> the same with the stack of frozen backbones folded, as those programs take it.
    stages: in the method's order.
    features: (networks, context, rows) -> [rows, features] NumPy float32, in evaluation mode.
    logits: (state, plan of a task, features [rows, features]) -> [rows, seen classes] NumPy float32.
    after_memory: (state, carry, context, rows) -> carry, as the method changes it after a task; None for no change.
  """
  data: Data | None
  feed: Feed
  steps_per_call: int
  init: Callable[[jax.Array], TrainState]
  begin_task: Callable[[Any, Any, Context, jax.Array], tuple[Any, Any]]
  make_teacher: Callable[[Any, Any], Any]
  fold_teacher: Callable[[Any], Any]
  fold_carry: Callable[[dict[str, Any]], dict[str, Any]]
  stages: tuple[StagePrograms, ...]
  features: Callable[[Networks, Context, np.ndarray], np.ndarray]
  logits: Callable[[TrainState, TaskPlan, np.ndarray], np.ndarray]
  after_memory: Callable[[TrainState, Any, Context, np.ndarray], Any] | None


def make_programs(experiment: Experiment, pictures: Data | stream.Originals) -> Programs:
  """Builds the programs and the feed that gives them pictures."""
  config, devices = experiment.config, experiment.devices
  path = experiment.path[0]
  streamed = isinstance(pictures, stream.Originals)
  everywhere = experiment.root.sharding

  def make_teacher(params: Any, batch_stats: Any) -> Any:
    return jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})

  def begin_task(params: Any, batch_stats: Any, context: Context, root: jax.Array) -> tuple[Any, Any]:
    teacher = make_teacher(params, batch_stats)
    key = seeding.derive(root, context.task, 0, seeding.CLASSIFIER)
    return {**params, "classifier": experiment.method.head.renew(key, params["classifier"], context.new)}, teacher

  data = None
  if path == "resident":
    data = parallel.replicate(pictures, devices)
    feeding = feed.resident(data, devices)
  else:
    mine = functools.partial(parallel.shares, devices)
    read = feed.gather(pictures, mine) if not streamed else stream.reader(
        pictures, side=config.image_size, mine=mine, timeout=config.worker_timeout)
    feeding = feed.travelling(read, samplers=[stage.sampler for stage in experiment.method.stages],
                              steps=experiment.steps_per_call, devices=devices)
  begin = jax.jit(begin_task, out_shardings=everywhere)
  return Programs(
      data=data, feed=feeding, steps_per_call=experiment.steps_per_call,
      init=jax.jit(experiment.init_state, out_shardings=everywhere),
      begin_task=lambda params, batch_stats, context, root: begin(
          params, batch_stats, parallel.replicate(context, devices), root),
      make_teacher=jax.jit(make_teacher, out_shardings=everywhere),
      fold_teacher=jax.jit(folding.fold_teacher, out_shardings=everywhere),
      fold_carry=jax.jit(frozen.fold_carry, out_shardings=everywhere),
      stages=tuple(_stage(experiment, index, pictures, data) for index in range(len(experiment.method.stages))),
      features=_features(experiment, pictures, data), logits=_logits(experiment),
      after_memory=_measuring(experiment, pictures, data, experiment.method.after_memory))


def _stage(experiment: Experiment, index: int, pictures: Data | stream.Originals, data: Data | None) -> StagePrograms:
  config, source, devices = experiment.config, experiment.source, experiment.devices
  streamed = isinstance(pictures, stream.Originals)
  stage, everywhere = experiment.method.stages[index], experiment.root.sharding
  view = {"image_size": config.image_size, "mean": source.mean, "std": source.std}
  plain = augment.make_plain(**view, cropped=True)
  step = make_train_step(
      model=experiment.model, method=experiment.method, stage=stage, tx=experiment.optimizer(stage),
      axis_name=parallel.AXIS, epochs=stage.epochs(config.epochs),
      # Streamed pictures are already augmented.
      augment=(lambda keys, images, sizes: plain(images, sizes)) if streamed else augment.make_augment(
          config.augmentation, **view))

  return StagePrograms(
      open=_opening(experiment, index),
      begin=jax.jit(functools.partial(experiment.begin_stage, index=index), out_shardings=everywhere),
      run=program.make_program(step, stage=stage, number=index, batch_size=stage.sampler.batch(config.batch_size),
                               devices=devices, travelling=experiment.path[0] != "resident"),
      end=None if stage.end is None else jax.jit(_ending(stage.end), out_shardings=everywhere),
      before=_measuring(experiment, pictures, data, stage.before),
      start=None if stage.start is None else jax.jit(_copying(stage.start), out_shardings=everywhere),
      remember=None if stage.remember is None else jax.jit(_copying(stage.remember), out_shardings=everywhere))


def _copying(function: Callable[..., Any]) -> Callable[..., Any]:
  """The function with results that share no buffer with its arguments, since the state is donated to the next step."""
  return lambda *arguments: jax.tree.map(jnp.copy, function(*arguments))


def _opening(experiment: Experiment, index: int) -> Callable[[Networks, Context, jax.Array], Networks] | None:
  """StagePrograms.open."""
  begin = experiment.method.stages[index].begin
  if begin is None:
    return None

  def start(networks: Networks, context: Context, root: jax.Array) -> Networks:
    key = seeding.derive(seeding.of_stage(root, index), context.task, 0, seeding.CLASSIFIER)
    found = begin(networks, context, key)
    # A copy, since the state's own arrays are donated to the next step.
    return found._replace(carry=jax.tree.map(jnp.copy, found.carry))

  compiled = jax.jit(start, out_shardings=experiment.root.sharding)
  return lambda networks, context, root: compiled(networks, parallel.replicate(context, experiment.devices), root)


def _ending(finish: Callable[[HeadParams, Context], HeadParams]) -> Callable[[Any, Context], Any]:
  """A stage's own ending of the head as one of all parameters."""
  def end(params: Any, context: Context) -> Any:
    return {**params, "classifier": finish(params["classifier"], context)}

  return end


# rows -> (pictures, their pool, number of rows) of each call of a program that looks at them once.
Looking = Callable[[np.ndarray], Iterator[tuple[Data, Pool, int]]]


def _looking(experiment: Experiment, pictures: Data | stream.Originals, data: Data | None) -> tuple[int, Looking]:
  """The largest number of rows in a call, and how they reach the device; `data`: the pictures if they stay there."""
  config, replicate = experiment.config, functools.partial(parallel.replicate, devices=experiment.devices)
  capacity = experiment.capacity if data is not None else pictures_together(experiment)

  def looking(rows: np.ndarray) -> Iterator[tuple[Data, Pool, int]]:
    if data is not None:
      yield data, replicate(pool(rows, capacity)), len(rows)
      return
    if isinstance(pictures, stream.Originals):
      blocks = stream.central(pictures, rows, side=config.image_size, block=capacity, timeout=config.worker_timeout)
    else:
      blocks = (feed.rows_of(pictures, rows[i:i + capacity]) for i in range(0, len(rows), capacity))
    for block in blocks:
      count = len(block.labels)
      yield (*replicate((feed.padded(block, capacity), pool(np.arange(count), capacity))), count)

  return capacity, looking


def _prepare(experiment: Experiment, pictures: Data | stream.Originals) -> passes.Prepare:
  """Training pictures as the read-only programs see them."""
  source, streamed = experiment.source, isinstance(pictures, stream.Originals)
  return augment.make_plain(image_size=experiment.config.image_size, mean=source.mean, std=source.std,
                            cropped=streamed or source.uniform)


def _features(experiment: Experiment, pictures: Data | stream.Originals, data: Data | None
              ) -> Callable[[Networks, Context, np.ndarray], np.ndarray]:
  """Programs.features; `data` holds the pictures if they stay on the devices, else None."""
  capacity, looking = _looking(experiment, pictures, data)
  extract = passes.make_extract(
      model=experiment.model, capacity=capacity, block=experiment.config.evaluation_block, devices=experiment.devices,
      growth=experiment.method.growth, blocks=experiment.method.blocks(len(experiment.plans)),
      prepare=_prepare(experiment, pictures))

  def features(networks: Networks, context: Context, rows: np.ndarray) -> np.ndarray:
    params, batch_stats, carry = networks
    there = parallel.replicate(context, experiment.devices)
    return np.concatenate([
        np.asarray(extract(params, batch_stats, here, among, there, carry))[:count]
        for here, among, count in looking(rows)])

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


def _measuring(experiment: Experiment, pictures: Data | stream.Originals, data: Data | None, boundary: Boundary | None
               ) -> Callable[[TrainState, Any, Context, np.ndarray], Any] | None:
  """(state, carry, context, rows) -> carry, as a boundary changes it; None without one. Arguments as `_features`."""
  method, devices = experiment.method, experiment.devices
  if boundary is None:
    return None
  _, looking = _looking(experiment, pictures, data)
  run = passes.make_measure(
      model=experiment.model, method=method, measure=boundary.measure,
      block=experiment.config.evaluation_block, devices=devices, prepare=_prepare(experiment, pictures))
  keep = jax.jit(boundary.keep, out_shardings=experiment.root.sharding)

  def measuring(state: TrainState, carry: Any, context: Context, rows: np.ndarray) -> Any:
    there = parallel.replicate(context, devices)
    network = {"params": state.params, "batch_stats": state.batch_stats, "carry": carry}
    parts = [run(network, here, among, there) for here, among, _ in looking(rows)]
    return keep(carry, jax.tree.map(lambda *sums: sum(sums[1:], sums[0]), *parts), there)

  return measuring


def pictures_together(experiment: Experiment) -> int:
  """Pictures per call if they are transferred: one block for each device, so blocks equal those of resident data."""
  return experiment.config.evaluation_block * len(experiment.devices)


def pool(rows: np.ndarray, capacity: int) -> Pool:
  """Rows as a Pool of fixed capacity, padded with zeros."""
  padded = np.zeros(capacity, np.int32)
  padded[:len(rows)] = rows
  return Pool(padded, np.int32(len(rows)))
