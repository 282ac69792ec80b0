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
from gr_jax.errors import UserError
from gr_jax.methods.base import Boundary, Context, Networks, Stage
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
    begin: (state without momentum and rule, carry, context, rows, root) -> (state before the first step, carry).
    run: see program.make_program.
    end: (state after the last step, carry, context) -> (state without momentum and rule, carry).
  """
  begin: Callable[[TrainState, Any, Context, np.ndarray, jax.Array], tuple[TrainState, Any]]
  run: Callable[..., tuple[TrainState, StepMetrics]]
  end: Callable[[TrainState, Any, Context], tuple[TrainState, Any]]


# (state, carry, context, rows, root) -> carry, as a boundary of the method changes it.
Measuring = Callable[[TrainState, Any, Context, np.ndarray, jax.Array], Any]


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
    after_memory: (state, carry, context, rows, root) -> carry, as the method changes it after a task; None for no
      change.
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
  after_memory: Measuring | None


def make_programs(experiment: Experiment, pictures: Data | stream.Originals) -> Programs:
  """Builds the programs and the feed that gives them pictures."""
  config, devices = experiment.config, experiment.devices
  path = experiment.path[0]
  streamed = isinstance(pictures, stream.Originals)
  replicated = experiment.root.sharding

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
  begin = jax.jit(begin_task, out_shardings=replicated)
  return Programs(
      data=data, feed=feeding, steps_per_call=experiment.steps_per_call,
      init=jax.jit(experiment.init_state, out_shardings=replicated),
      begin_task=lambda params, batch_stats, context, root: begin(
          params, batch_stats, parallel.replicate(context, devices), root),
      make_teacher=jax.jit(make_teacher, out_shardings=replicated),
      fold_teacher=jax.jit(folding.fold_teacher, out_shardings=replicated),
      fold_carry=jax.jit(frozen.fold_carry, out_shardings=replicated),
      stages=tuple(_stage(experiment, index, pictures, data) for index in range(len(experiment.method.stages))),
      features=_features(experiment, pictures, data), logits=_logits(experiment),
      # Its number comes after those of the stages.
      after_memory=_measuring(experiment, pictures, data, experiment.method.after_memory,
                              len(experiment.method.stages)))


def _stage(experiment: Experiment, index: int, pictures: Data | stream.Originals, data: Data | None) -> StagePrograms:
  config, source, devices = experiment.config, experiment.source, experiment.devices
  streamed = isinstance(pictures, stream.Originals)
  stage = experiment.method.stages[index]
  plain = augment.make_plain(image_size=config.image_size, mean=source.mean, std=source.std, cropped=True)
  step = make_train_step(
      model=experiment.model, method=experiment.method, stage=stage, tx=experiment.optimizer(stage),
      axis_name=parallel.AXIS, epochs=stage.epochs(config.epochs),
      # Streamed pictures are already augmented.
      augment=(lambda keys, images, sizes: plain(images, sizes)) if streamed else _augment(experiment))

  return StagePrograms(
      begin=_beginning(experiment, index, _measuring(experiment, pictures, data, stage.before, index)),
      run=program.make_program(step, stage=stage, number=index, batch_size=stage.sampler.batch(config.batch_size),
                               devices=devices, travelling=experiment.path[0] != "resident"),
      end=_ending(experiment, stage))


def _beginning(experiment: Experiment, index: int, measure: Measuring | None
               ) -> Callable[[TrainState, Any, Context, np.ndarray, jax.Array], tuple[TrainState, Any]]:
  """StagePrograms.begin."""
  stage = experiment.method.stages[index]

  @functools.partial(jax.jit, out_shardings=experiment.root.sharding)
  def start(state: TrainState, carry: Any, context: Context, root: jax.Array) -> tuple[TrainState, Any]:
    state = experiment.begin_stage(state, index)
    if stage.begin is None:
      return state, carry
    key = seeding.derive(seeding.of_stage(root, index), context.task, 0, seeding.CLASSIFIER)
    params, batch_stats, changed, rule = stage.begin(
        Networks(state.params, state.batch_stats, carry, state.rule), context, key)
    carry = whole_carry(carry, changed, f"begin of stage {stage.name!r}")
    # Copies, since the state's own arrays are donated to the next step.
    rule, carry = jax.tree.map(jnp.copy, (rule, carry))
    return state.replace(params=params, batch_stats=batch_stats, rule=rule), carry

  def begin(state: TrainState, carry: Any, context: Context, rows: np.ndarray, root: jax.Array
            ) -> tuple[TrainState, Any]:
    if measure is not None:
      carry = measure(state, carry, context, rows, root)
    return start(state, carry, parallel.replicate(context, experiment.devices), root)

  return begin


def _ending(experiment: Experiment, stage: Stage) -> Callable[[TrainState, Any, Context], tuple[TrainState, Any]]:
  """StagePrograms.end."""
  @functools.partial(jax.jit, out_shardings=experiment.root.sharding)
  def finish(state: TrainState, carry: Any, context: Context) -> tuple[TrainState, Any]:
    if stage.remember is not None:
      carry = whole_carry(carry, stage.remember(state.rule, carry), f"remember of stage {stage.name!r}")
    if stage.end is not None:
      state = state.replace(params={**state.params, "classifier": stage.end(state.params["classifier"], context)})
    return state.between_stages(), carry

  def end(state: TrainState, carry: Any, context: Context) -> tuple[TrainState, Any]:
    if stage.remember is None and stage.end is None:
      return state.between_stages(), carry
    return finish(state, carry, parallel.replicate(context, experiment.devices))

  return end


def whole_carry(carry: Any, changed: Any, changed_by: str) -> Any:
  """`changed`, if it has the arrays of `carry`. Else one of another part would be lost, and a killed run not resumed.

  Raises:
    ValueError: arrays are missing or new, or have another shape or dtype; while the function is traced.
  """
  before, after = ({jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for path, leaf in
                    jax.tree_util.tree_leaves_with_path(tree)} for tree in (carry, changed))
  wrong = [f"{path} is {after.get(path, 'missing')} and was {before.get(path, 'not there')}"
           for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
  if wrong:
    raise ValueError(f"{changed_by} changed the arrays of the carry: {'; '.join(wrong)}; start from {{**carry, ...}}, "
                     f"and declare new arrays in Method.carry")
  return changed


# rows -> (pictures, their pool, number of rows) of each call of a read-only program.
Calls = Callable[[np.ndarray], Iterator[tuple[Data, Pool, int]]]


def _calls(experiment: Experiment, pictures: Data | stream.Originals, data: Data | None) -> tuple[int, Calls]:
  """The largest number of rows in a call, and how they reach the device; `data`: the pictures if they stay there."""
  config, replicate = experiment.config, functools.partial(parallel.replicate, devices=experiment.devices)
  capacity = experiment.capacity if data is not None else pictures_together(experiment)

  def calls(rows: np.ndarray) -> Iterator[tuple[Data, Pool, int]]:
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

  return capacity, calls


def _prepare(experiment: Experiment, pictures: Data | stream.Originals) -> passes.Prepare:
  """Training pictures as the read-only programs see them."""
  source, streamed = experiment.source, isinstance(pictures, stream.Originals)
  return augment.make_plain(image_size=experiment.config.image_size, mean=source.mean, std=source.std,
                            cropped=streamed or source.uniform)


def _augment(experiment: Experiment) -> passes.Augment:
  """Training pictures as a stage sees them, from the arrays that are kept or travel."""
  config, source = experiment.config, experiment.source
  return augment.make_augment(config.augmentation, image_size=config.image_size, mean=source.mean, std=source.std)


def _features(experiment: Experiment, pictures: Data | stream.Originals, data: Data | None
              ) -> Callable[[Networks, Context, np.ndarray], np.ndarray]:
  """Programs.features; `data` holds the pictures if they stay on the devices, else None."""
  capacity, calls = _calls(experiment, pictures, data)
  extract = passes.make_extract(
      model=experiment.model, capacity=capacity, block=experiment.config.evaluation_block, devices=experiment.devices,
      growth=experiment.method.growth, blocks=experiment.method.blocks(len(experiment.plans)),
      prepare=_prepare(experiment, pictures))

  def features(networks: Networks, context: Context, rows: np.ndarray) -> np.ndarray:
    replicated = parallel.replicate(context, experiment.devices)
    return np.concatenate([
        np.asarray(extract(networks.params, networks.batch_stats, block, chosen, replicated, networks.carry))[:count]
        for block, chosen, count in calls(rows)])

  return features


def _logits(experiment: Experiment) -> Callable[[TrainState, TaskPlan, np.ndarray], np.ndarray]:
  """Programs.logits; rows are filled up to the capacity, so that no task compiles anew."""
  apply = jax.jit(lambda head, features, context: experiment.method.head.apply(head, features, context)[0],
                  out_shardings=experiment.root.sharding)

  def logits(state: TrainState, plan: TaskPlan, features: np.ndarray) -> np.ndarray:
    filled = np.zeros((experiment.capacity, features.shape[1]), np.float32)
    filled[:len(features)] = features
    block, context = parallel.replicate((filled, plan.stages[0].context), experiment.devices)
    padded = np.asarray(apply(state.params["classifier"], block, context))
    return padded[:len(features), :plan.task.stop]

  return logits


def _measuring(experiment: Experiment, pictures: Data | stream.Originals, data: Data | None, boundary: Boundary | None,
               number: int) -> Measuring | None:
  """The program of a boundary; None without one.

  Args:
    experiment, pictures, data: as for `_features`.
    boundary: of the method.
    number: of the boundary among the method's.

  Raises:
    UserError: it needs augmented images, but streamed pictures are read without augmentation here.
  """
  method, devices = experiment.method, experiment.devices
  if boundary is None:
    return None
  if boundary.augmented and isinstance(pictures, stream.Originals):
    raise UserError(f"{method.name} measures augmented images, which it cannot when pictures are streamed; set "
                    f"--config.pictures=prefetch, or for the add-on gvalign "
                    f"--config.method_options.gvalign_statistics=plain")
  _, calls = _calls(experiment, pictures, data)
  run = passes.make_measure(
      model=experiment.model, method=method, measure=boundary.measure,
      block=experiment.config.evaluation_block, devices=devices, prepare=_prepare(experiment, pictures),
      augment=_augment(experiment) if boundary.augmented else None, stage=number)

  @functools.partial(jax.jit, out_shardings=experiment.root.sharding)
  def keep(carry: Any, sums: Any, context: Context) -> Any:
    return whole_carry(carry, boundary.keep(carry, sums, context), "keep of a boundary")

  def measuring(state: TrainState, carry: Any, context: Context, rows: np.ndarray, root: jax.Array) -> Any:
    replicated = parallel.replicate(context, devices)
    network = {"params": state.params, "batch_stats": state.batch_stats, "carry": carry}
    parts, first = [], 0
    for block, chosen, count in calls(rows):
      drawing = (root, parallel.replicate(np.int32(first), devices)) if boundary.augmented else ()
      parts.append(run(network, block, chosen, replicated, *drawing))
      first += count
    return keep(carry, jax.tree.map(lambda *sums: sum(sums[1:], sums[0]), *parts), replicated)

  return measuring


def pictures_together(experiment: Experiment) -> int:
  """Pictures per call if they are transferred: one block for each device, so blocks equal those of resident data."""
  return experiment.config.evaluation_block * len(experiment.devices)


def pool(rows: np.ndarray, capacity: int) -> Pool:
  """Rows as a Pool of fixed capacity, padded with zeros."""
  padded = np.zeros(capacity, np.int32)
  padded[:len(rows)] = rows
  return Pool(padded, np.int32(len(rows)))
