"""From a config to the values and programs that the task loop works with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gr_jax import config as configuration
from gr_jax import methods, models, scenario, seeding
from gr_jax.data import augment, cache, feed, resident, stream
from gr_jax.data.cache import View
from gr_jax.data.feed import Feed
from gr_jax.data.sources import catalogue, tfds_source
from gr_jax.data.sources.base import Source
from gr_jax.devices import parallel, processes
from gr_jax.errors import UserError
from gr_jax.methods import Method
from gr_jax.models import folding
from gr_jax.models import heads as classifier
from gr_jax.scenario import plan
from gr_jax.training import passes, step
from gr_jax.training.state import TrainState

Progress = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a config stands for, drawn and checked; no picture has been decoded, no program compiled.

  Attributes:
    config: the validated config.
    devices: all devices, of all processes.
    source, scenario, plans: the data set, the draw, and every task on paper.
    model, method, tx: what is trained and how.
    capacity: the most images that any task has present.
  """
  config: ml_collections.ConfigDict
  devices: tuple[jax.Device, ...]
  source: Source
  scenario: scenario.Scenario
  plans: tuple[plan.TaskPlan, ...]
  model: Any
  method: Method
  tx: Any

  @property
  def capacity(self) -> int:
    return max(p.size for p in self.plans)

  @property
  def precision(self) -> str:
    """What the config's precision stands for on these devices."""
    return models.resolve_precision(self.config.precision, self.devices[0].platform)

  @property
  def kept_side(self) -> int:
    """Side of the square at which training pictures are kept."""
    if self.source.uniform:
      return self.config.image_size
    return resident.kept_side(self.config.image_size, self.config.stored_size)

  @property
  def picture_bytes(self) -> tuple[int, int]:
    """Bytes of all training pictures as they are kept, and of all test pictures."""
    channels, side = len(self.source.mean), self.config.image_size
    tests = int(np.isin(self.source.test.labels, self.scenario.class_order).sum())
    return int(self.scenario.counts.sum()) * self.kept_side**2 * channels, tests * side**2 * channels

  @functools.cached_property
  def path(self) -> tuple[str, str]:
    """How pictures reach the device, and the line that says why (see feed.choose); asked before they are there.

    All processes ask at once, and take the same way: that of the one with the least memory.
    """
    free = min(map(int, processes.exchange(str(feed.free_bytes(jax.local_devices()[0])))))
    # A replica's pictures are on its device.
    wanted = self.config.pictures if self.config.replicas == 1 else "resident"
    return feed.choose(wanted, sum(self.picture_bytes), free)

  @property
  def step_bytes(self) -> int:
    """Bytes of one step's pictures, where they travel: as they are kept, or as views."""
    side = self.config.image_size if self.path[0] == "stream" else self.kept_side
    return self.config.batch_size * side**2 * len(self.source.mean)

  @property
  def steps_per_call(self) -> int:
    """The most steps that go to the device in one call."""
    wanted = self.config.steps_per_call
    return wanted if self.path[0] == "resident" else feed.steps_together(wanted, self.step_bytes)

  @property
  def num_classes(self) -> int:
    return self.scenario.num_classes

  @property
  def stop_after_task(self) -> int:
    """How many tasks this start of the run is to learn."""
    return self.config.stop_after_task or len(self.plans)

  @property
  def root(self) -> jax.Array:
    """jax.random.key(seed), on every device."""
    return parallel.replicate(jax.random.key(self.config.seed), self.devices)

  def init_state(self, root: jax.Array) -> TrainState:
    """The state before the first task; a function of the seed alone."""
    image = jnp.zeros((1, self.config.image_size, self.config.image_size, len(self.source.mean)))
    variables = self.model.init(seeding.derive(root, 0, 0, seeding.BACKBONE), image, train=False)
    params = {"backbone": variables["params"],
              "classifier": classifier.init(self.model.num_features, self.num_classes)}
    return TrainState(step=jnp.zeros((), jnp.int32), params=params,
                      batch_stats=variables.get("batch_stats", {}), opt_state=self.tx.init(params),
                      method=self.method.init(self.num_classes))

  def abstract_state(self) -> TrainState:
    """Shapes and types of the state; nothing is computed."""
    return jax.eval_shape(self.init_state, jax.random.key(0))


def load(config: ml_collections.ConfigDict, before_data: Callable[[], None] = lambda: None, *,
         training: bool = True, progress: Progress = lambda items, **_: items,
         say: Callable[[str], None] = lambda line: None) -> Experiment:
  """Validates a config, finds the data set and draws the scenario.

  Args:
    config: see configs/.
    before_data: called after the checks of the config alone, before any file of the data set is read.
    training: whether the devices must be able to share a batch; evaluation does not need that.
    progress: wraps the iteration over pictures that are looked at before the draw.
    say: takes a line for the log.

  Raises:
    UserError: see config.validate, data.catalogue.load and scenario.make_scenario.
  """
  configuration.validate(config)
  devices = tuple(jax.devices())
  if config.replicas > 1 and jax.process_count() > 1:
    raise UserError(f"replicas is {config.replicas} with {jax.process_count()} processes; replicas take a device each "
                    f"of one process: set --config.distributed=off, or start a run for each seed")
  # Replicas have a device each, so nothing is shared.
  if training and config.replicas == 1 and config.batch_size % len(devices):
    near = -(-config.batch_size // len(devices)) * len(devices)
    raise UserError(f"batch_size is {config.batch_size}, which {len(devices)} devices cannot share equally; "
                    f"choose a multiple of {len(devices)}, such as --config.batch_size={near}")
  model = models.make_backbone(config.model, platform=devices[0].platform, precision=config.precision,
                               axis_name=parallel.AXIS)
  before_data()
  source = catalogue.load(config.dataset, config.data_dir, cache_dir=config.cache_dir, progress=progress, say=say,
                          **config.get("folder", {}))
  if not source.uniform and config.augmentation != "resized_crop_flip":
    raise UserError(f"augmentation is {config.augmentation!r}, but the pictures of {source.name} differ in size; "
                    f"set --config.augmentation=resized_crop_flip")
  if config.pictures in ("prefetch", "stream") and config.replicas > 1:
    raise UserError(f"pictures is {config.pictures!r}, but {config.replicas} replicas share pictures that are on the "
                    f"device; set --config.pictures=resident or --config.replicas=1")
  if config.pictures == "stream" and source.uniform:
    raise UserError(f"pictures is 'stream', but the pictures of {source.name} have one size and are small; set "
                    f"--config.pictures=auto")
  # Before the records are read, which takes seconds.
  num_classes, wanted = len(source.class_names), config.scenario
  scenario.split_tasks(num_classes, wanted.num_tasks, wanted.first_task_classes)
  scenario.class_order(wanted.order, wanted.kind, num_classes, wanted.seed, source.facts)
  drawn = scenario.make_scenario(
      labels=source.train.labels, ids=source.train.ids, class_names=source.class_names,
      validation_fraction=config.validation_fraction, facts=source.facts, **config.scenario.to_dict())
  if source.uniform:
    side = source.train.image(drawn.train[0][0]).shape[0]
    if side != config.image_size:
      raise UserError(f"image_size is {config.image_size}, but the pictures of {source.name} have {side} pixels "
                      f"a side; set --config.image_size={side}")
  plans = plan.make_plans(
      drawn.counts, drawn.tasks, epochs=config.epochs, batch_size=config.batch_size,
      per_class=config.memory.per_class, weight_scale=config.distillation_weight,
      gamma=config.attenuation_gamma)
  method = methods.gradient_reweighting(
      reweighting_rule=config.reweighting, prior=config.prior, distillation=config.distillation,
      task_ratio=config.task_ratio, temperature=config.temperature)
  tx = step.make_optimizer(momentum=config.momentum, weight_decay=config.weight_decay)
  return Experiment(config, devices, source, drawn, plans, model, method, tx)


@dataclasses.dataclass(frozen=True)
class TrainPrograms:
  """The compiled side of training. The seed comes in as an argument: replicas share the programs.

  Attributes:
    data: the training pictures, on every device; None where they travel.
    feed: what each call of run_epoch reads (see gr_jax.data.feed).
    steps_per_call: the most steps of one call.
    init: root -> TrainState, with root = jax.random.key(seed) on every device.
    start_task: (state, facts, root) -> (state with new columns, fresh momentum and Phi, teacher): the teacher is a
      copy, since the state's own arrays are donated to the next step.
    fold_teacher: teacher -> the same network without batch norm, as run_epoch takes it.
    run_epoch: see step.make_epoch.
    features: (state, rows) -> [rows, features] NumPy float32, in evaluation mode.
  """
  data: step.Data | None
  feed: Feed
  steps_per_call: int
  init: Callable[[jax.Array], TrainState]
  start_task: Callable[[TrainState, Any, jax.Array], tuple[TrainState, Any]]
  fold_teacher: Callable[[Any], Any]
  run_epoch: Callable[..., tuple[TrainState, step.StepMetrics]]
  features: Callable[[TrainState, np.ndarray], np.ndarray]


def load_pictures(experiment: Experiment, split: str, progress: Progress,
                  say: Callable[[str], None] = lambda line: None) -> step.Data | stream.Originals:
  """A split, class after class in learning order; NumPy arrays (see data.resident), decoded or from the cache.

  Training pictures that are streamed stay in their files; their sizes come from the cache.

  Args:
    experiment: see `load`.
    split: "train", "test", or "holdout", the held-out training images.
    progress: wraps the iteration over pictures.
    say: takes a line for the log.
  """
  source, drawn, size = experiment.source, experiment.scenario, experiment.config.image_size
  if split == "holdout" and not any(drawn.holdout):
    raise UserError(f"the run held no image out (validation_fraction is "
                    f"{experiment.config.validation_fraction}); evaluate the test split")
  decode = _decoder(experiment, progress, say)
  if split == "test":
    return resident.load_test(source, drawn, size, progress, decode)
  if split == "train" and experiment.path[0] == "stream":
    rows, labels = resident.flat_rows(drawn.train)
    if decode is None:
      raise UserError("cache_dir is 'off', but pictures='stream' keeps the sizes of the originals there; name a folder")
    return stream.Originals(source.train, np.asarray(rows), decode(source.train, rows, View("size", 0)).sizes, labels)
  return resident.load_train(source, drawn, size, stored_size=experiment.config.stored_size,
                             holdout=split == "holdout", progress=progress, decode=decode)


def _decoder(experiment: Experiment, progress: Progress, say: Callable[[str], None]) -> resident.Decode | None:
  """cache.load for this data set; None where pictures are decoded at every start."""
  config, source = experiment.config, experiment.source
  if config.cache_dir == "off":
    return None
  places = cache.folders(config.cache_dir, tfds_source.data_folder(config.data_dir))
  return functools.partial(cache.load, name=source.name, channels=len(source.mean), places=places,
                           progress=progress, say=say, timeout=config.worker_timeout)


def train_programs(experiment: Experiment, pictures: step.Data | stream.Originals) -> TrainPrograms:
  """Binds the programs and the way of the pictures to them; each program compiles at its first use."""
  config, devices, source = experiment.config, experiment.devices, experiment.source
  replicate = functools.partial(parallel.replicate, devices=devices)
  path = experiment.path[0]
  streamed = isinstance(pictures, stream.Originals)
  view = {"image_size": config.image_size, "mean": source.mean, "std": source.std}
  plain = augment.make_plain(**view, cropped=streamed or source.uniform)
  train_step = step.make_train_step(
      model=experiment.model, method=experiment.method, tx=experiment.tx, axis_name=parallel.AXIS,
      # Streamed pictures are views already.
      augment=(lambda keys, images, sizes: plain(images, sizes)) if streamed else augment.make_augment(
          config.augmentation, **view))
  capacity = experiment.capacity if path == "resident" else _travelling_together(experiment)
  extract = passes.make_extract(
      model=experiment.model, prepare=plain, capacity=capacity, block=config.evaluation_block, devices=devices)

  def start_task(state: TrainState, facts: Any, root: jax.Array) -> tuple[TrainState, Any]:
    teacher = jax.tree.map(jnp.copy, {"params": state.params, "batch_stats": state.batch_stats})
    key = seeding.derive(root, facts.task, 0, seeding.CLASSIFIER)
    params = {**state.params,
              "classifier": classifier.draw_columns(key, state.params["classifier"], facts.new)}
    return state.replace(params=params, opt_state=experiment.tx.init(params),
                         method=experiment.method.init(experiment.num_classes)), teacher

  everywhere = experiment.root.sharding
  init = jax.jit(experiment.init_state, out_shardings=everywhere)
  start = jax.jit(start_task, out_shardings=everywhere)

  def features(state: TrainState, rows: np.ndarray) -> np.ndarray:
    if path == "resident":
      found = extract(state.params, state.batch_stats, data, replicate(pool(rows, capacity)))
      return np.asarray(found)[:len(rows)]
    blocks = (feed.rows_of(pictures, rows[i:i + capacity]) for i in range(0, len(rows), capacity))
    if streamed:
      blocks = stream.central(pictures, rows, side=config.image_size, block=capacity, timeout=config.worker_timeout)
    found = []
    for block in blocks:
      here, own = replicate((feed.padded(block, capacity), pool(np.arange(len(block.labels)), capacity)))
      found.append(np.asarray(extract(state.params, state.batch_stats, here, own))[:len(block.labels)])
    return np.concatenate(found)

  data, order, steps = None, step.epoch_order, experiment.steps_per_call
  if path == "resident":
    data = replicate(pictures)
    feeding = feed.resident(data, devices)
  else:
    mine = parallel.shares(devices, config.batch_size)
    read = feed.gather(pictures, mine) if not streamed else stream.reader(
        pictures, side=config.image_size, batch_size=config.batch_size, mine=mine, timeout=config.worker_timeout)
    feeding = feed.travelling(read, steps=steps, batch_size=config.batch_size, devices=devices)
    order = None
  return TrainPrograms(
      data=data, feed=feeding, steps_per_call=steps, init=init,
      start_task=lambda state, facts, root: start(state, replicate(facts), root),
      fold_teacher=jax.jit(folding.fold_teacher, out_shardings=everywhere),
      run_epoch=step.make_epoch(train_step, batch_size=config.batch_size, devices=devices, order=order),
      features=features)


def _travelling_together(experiment: Experiment) -> int:
  """Pictures that are looked at in one go where they travel: whole rounds of blocks, as on the resident path."""
  return experiment.config.evaluation_block * len(experiment.devices)


def evaluator(experiment: Experiment, pictures: step.Data, *, split: str = "test"
              ) -> Callable[[Any, Any, int], np.ndarray]:
  """Puts a split onto the devices; returns count(params, batch_stats, tasks done) -> int [3, classes].

  `split` is what `load_pictures` gave the pictures for: test pictures are cropped already.
  The three rows: correct among all seen classes, correct among the own task's, images looked at.
  """
  config, devices, source, drawn = (experiment.config, experiment.devices, experiment.source,
                                    experiment.scenario)
  resides = experiment.path[0] == "resident"
  data = parallel.replicate(pictures, devices) if resides else None
  task_of_class = parallel.replicate(drawn.task_of_class, devices)
  evaluate = passes.make_evaluate(
      model=experiment.model, num_classes=drawn.num_classes, block=config.evaluation_block, devices=devices,
      prepare=augment.make_plain(image_size=config.image_size, mean=source.mean, std=source.std,
                                 cropped=split == "test" or source.uniform))

  def count(params: Any, batch_stats: Any, tasks_done: int) -> np.ndarray:
    seen = drawn.task_of_class < tasks_done
    # Pictures lie in learning order, so those of the seen classes come first.
    stop = int(np.searchsorted(pictures.labels, drawn.tasks[tasks_done - 1].stop))
    if resides:
      counts = np.asarray(evaluate(params, batch_stats, data, task_of_class,
                                   *parallel.replicate((seen, np.int32(stop)), devices)))
    else:
      counts, together = np.zeros((3, drawn.num_classes), np.int32), _travelling_together(experiment)
      for first in range(0, stop, together):
        block = feed.rows_of(pictures, slice(first, min(first + together, stop)))
        here = parallel.replicate((feed.padded(block, together), seen, np.int32(len(block.labels))), devices)
        counts += np.asarray(evaluate(params, batch_stats, here[0], task_of_class, *here[1:]))
    expected = np.bincount(pictures.labels[:stop], minlength=drawn.num_classes)
    if not np.array_equal(counts[2], expected):
      raise AssertionError(f"evaluated {counts[2].sum()} images, expected {expected.sum()}")
    return counts

  return count


def pool(rows: np.ndarray, capacity: int) -> step.Pool:
  """Rows as a Pool of fixed capacity, padded with zeros."""
  padded = np.zeros(capacity, np.int32)
  padded[:len(rows)] = rows
  return step.Pool(padded, np.int32(len(rows)))


def present_rows(experiment: Experiment, task_number: int, exemplars: Sequence[np.ndarray]) -> list[np.ndarray]:
  """For each class seen in a task, the resident rows that are there: its exemplars, or all its images."""
  stops = np.cumsum(experiment.scenario.counts)
  task = experiment.plans[task_number].task
  fresh = [np.arange(stops[j] - experiment.scenario.counts[j], stops[j], dtype=np.int32)
           for j in task.classes]
  return [*exemplars[:task.first], *fresh]
