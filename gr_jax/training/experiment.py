"""Turns a config into the values that the task loop needs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gr_jax import config as configuration
from gr_jax import methods, models, optimizer, scenario, seeding
from gr_jax.config import AnyConfig, Config
from gr_jax.data import feed, resident
from gr_jax.data.sources import catalogue
from gr_jax.data.sources.base import Source
from gr_jax.devices import parallel, processes
from gr_jax.errors import UserError
from gr_jax.methods import addons
from gr_jax.methods.base import Method, Stage
from gr_jax.models import frozen
from gr_jax.scenario import plan
from gr_jax.training import step
from gr_jax.training.state import TrainState

Progress = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a config describes, drawn and checked; no picture is decoded and no program compiled yet.

  Attributes:
    config: the checked config.
    devices: all devices of all processes.
    source, scenario, plans: the data set, the draw, and the plan of every task.
    model, method: the backbone and the method that trains it.
    capacity: the largest number of images that any stage uses.
  """
  config: Config
  devices: tuple[jax.Device, ...]
  source: Source
  scenario: scenario.Scenario
  plans: tuple[plan.TaskPlan, ...]
  model: Any
  method: Method

  @property
  def capacity(self) -> int:
    return max(stage.size for task in self.plans for stage in task.stages)

  @property
  def precision(self) -> str:
    """The precision on these devices, with "auto" resolved."""
    return models.resolve_precision(self.config.precision, self.devices[0].platform)

  @property
  def kept_side(self) -> int:
    """Side of the square in which training pictures are stored."""
    if self.source.uniform:
      return self.config.image_size
    return resident.kept_side(self.config.image_size, self.config.stored_size)

  @property
  def picture_bytes(self) -> tuple[int, int]:
    """Bytes of all training pictures as stored, and of all pictures to evaluate: test pictures and held-out ones."""
    channels, side = len(self.source.mean), self.config.image_size
    tests = int(np.isin(self.source.test.labels, self.scenario.class_order).sum())
    tests += sum(map(len, self.scenario.holdout))
    return int(self.scenario.counts.sum()) * self.kept_side**2 * channels, tests * side**2 * channels

  @functools.cached_property
  def path(self) -> tuple[str, str]:
    """How pictures reach the device, and a line that says why (see feed.choose); use it before loading pictures.

    A collective: all processes choose together, by the smallest free memory.
    """
    free = min(map(int, processes.exchange(str(feed.free_bytes(jax.local_devices()[0])))))
    # Replicas share pictures that stay on the device.
    wanted = self.config.pictures if self.config.replicas == 1 else "resident"
    return feed.choose(wanted, sum(self.picture_bytes), free)

  @property
  def step_bytes(self) -> int:
    """Bytes of one step's pictures when they are transferred: as stored, or as final views when streamed."""
    side = self.config.image_size if self.path[0] == "stream" else self.kept_side
    largest = max(stage.sampler.batch(self.config.batch_size) for stage in self.method.stages)
    return largest * side**2 * len(self.source.mean)

  @property
  def steps_per_call(self) -> int:
    """The largest number of steps in one device call."""
    wanted = self.config.steps_per_call
    return wanted if self.path[0] == "resident" else feed.steps_together(wanted, self.step_bytes)

  @property
  def num_classes(self) -> int:
    return self.scenario.num_classes

  @property
  def evaluated(self) -> np.ndarray:
    """[classes] int: images of each class that a run evaluates: test images, or held-out ones (evaluate_on)."""
    if self.config.evaluate_on == "holdout":
      return np.asarray([len(rows) for rows in self.scenario.holdout])
    return np.asarray([(self.source.test.labels == label).sum() for label in self.scenario.class_order])

  @property
  def num_features(self) -> int:
    """Width of the head's features."""
    return self.model.num_features * self.method.blocks(len(self.plans))

  @property
  def scored_stack(self) -> int:
    """Number of frozen backbones that scores read besides the head's features."""
    return self.method.stack(len(self.plans)) if self.method.scores_frozen else 0

  def exemplars_per_class(self, seen: int) -> int:
    """m, exemplars of each class once `seen` classes have been learned; held-out images of the method included."""
    return self.config.memory.quota(seen)

  @property
  def stop_after_task(self) -> int:
    """After how many tasks this start of the run stops."""
    return self.config.stop_after_task or len(self.plans)

  @property
  def root(self) -> jax.Array:
    """jax.random.key(seed), on every device."""
    return parallel.replicate(jax.random.key(self.config.seed), self.devices)

  def optimizer(self, stage: Stage) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a stage, with its learning rates."""
    return optimizer.sgd(self.learning_rates(stage), momentum=self.config.momentum,
                         weight_decay=self.config.weight_decay if stage.weight_decay else 0.0)

  def learning_rates(self, stage: Stage) -> tuple[float, ...]:
    """The learning rate in every epoch of a stage."""
    config = self.config
    if stage.learning_rate is not None:
      return optimizer.learning_rates(
          schedule="cosine" if stage.schedule == "cosine" else "steps", base=stage.learning_rate,
          epochs=stage.epochs(config.epochs), milestones=(), decay=1.0)
    return optimizer.learning_rates(
        schedule=config.schedule, base=config.learning_rate, epochs=stage.epochs(config.epochs),
        milestones=tuple(map(stage.epochs, config.milestones)), decay=config.learning_rate_decay)

  def begin_stage(self, state: TrainState, index: int) -> TrainState:
    """The state before the first step of a stage: new momentum, new state of the rule and of what is tracked."""
    stage, head = self.method.stages[index], state.params["classifier"]
    return state.replace(
        opt_state=self.optimizer(stage).init(step.trained_params(state.params, stage)),
        rule=() if stage.rule is None else stage.rule.init(head),
        tracked=() if stage.track is None else stage.track.init(head))

  def init_state(self, root: jax.Array, index: int = 0) -> TrainState:
    """The state before the first task, in the form of a stage; depends only on the seed."""
    image = jnp.zeros((1, self.config.image_size, self.config.image_size, len(self.source.mean)))
    variables = self.model.init(seeding.derive(root, 0, 0, seeding.BACKBONE), image, train=False)
    head = self.method.head.init(self.model.num_features, self.num_classes, len(self.plans))
    state = TrainState(step=jnp.zeros((), jnp.int32), params={"backbone": variables["params"], "classifier": head},
                       batch_stats=variables.get("batch_stats", {}), opt_state=(), rule=())
    return self.begin_stage(state, index)

  def init_carry(self) -> dict[str, Any]:
    """The carry before the first task."""
    tasks, method = len(self.plans), self.method
    carry: dict[str, Any] = method.init_carry(self.num_features, self.num_classes)
    if method.stack(tasks):
      state = self.abstract_state()
      carry["frozen"] = frozen.empty(
          {"params": state.params["backbone"], "batch_stats": state.batch_stats}, method.stack(tasks))
    if method.kept_heads:
      carry["heads"] = {name: method.head.init(self.model.num_features, self.num_classes, tasks)
                        for name in method.kept_heads}
    return carry

  def abstract_state(self, index: int = 0) -> TrainState:
    """Shapes and dtypes of the state in a stage; nothing is computed."""
    return jax.eval_shape(functools.partial(self.init_state, index=index), jax.random.key(0))


def load(config: AnyConfig, before_data: Callable[[], None] = lambda: None, *,
         source: Source | None = None, training: bool = True, progress: Progress = lambda items, **_: items,
         say: Callable[[str], None] = lambda line: None) -> Experiment:
  """Checks a config, finds the data set and draws the scenario.

  Args:
    config: see configs/.
    before_data: called after the config is checked and before any file of the data set is read.
    source: the config's data set if it is loaded already.
    training: whether batch_size must be divisible by the number of devices; evaluation does not need that.
    progress: wraps the iteration over pictures that are checked before the draw.
    say: receives log lines.

  Raises:
    UserError: see config.check, data.catalogue.load and scenario.make_scenario.
  """
  config = configuration.check(config)
  devices = tuple(jax.devices())
  if config.replicas > 1 and jax.process_count() > 1:
    raise UserError(f"replicas is {config.replicas} with {jax.process_count()} processes, but replicas need a single "
                    f"process: set --config.distributed=off, or start one run per seed")
  # Each replica uses one device, so no batch is shared.
  if training and config.replicas == 1 and config.batch_size % len(devices):
    near = -(-config.batch_size // len(devices)) * len(devices)
    raise UserError(f"batch_size is {config.batch_size}, which is not divisible by the {len(devices)} devices; "
                    f"choose a multiple of {len(devices)}, such as --config.batch_size={near}")
  method, model = _method_and_model(config, devices[0].platform)
  if training:
    _check_batch(config, method, 1 if config.replicas > 1 else len(devices))
  if method.uses_maps:
    _check_maps(config, method, model)
  before_data()
  if source is None:
    source = catalogue.load(config.dataset, config.data_dir, cache_dir=config.cache_dir, progress=progress, say=say,
                            **({} if config.folder is None else dataclasses.asdict(config.folder)))
  if not source.uniform and config.augmentation != "resized_crop_flip":
    raise UserError(f"augmentation is {config.augmentation!r}, but the pictures of {source.name} differ in size; "
                    f"set --config.augmentation=resized_crop_flip")
  if config.pictures in ("prefetch", "stream") and config.replicas > 1:
    raise UserError(f"pictures is {config.pictures!r}, but {config.replicas} replicas need pictures that stay on the "
                    f"device; set --config.pictures=resident or --config.replicas=1")
  if config.pictures == "stream" and source.uniform:
    raise UserError(f"pictures is 'stream', but the pictures of {source.name} are small and all of one size; set "
                    f"--config.pictures=auto")
  # Checked before the records are read, which takes seconds.
  num_classes, wanted = len(source.class_names), config.scenario
  scenario.split_tasks(num_classes, wanted.num_tasks, wanted.first_task_classes)
  scenario.class_order(wanted.order, wanted.kind, num_classes, wanted.seed, source.properties)
  method = _with_memory_of_all(method, config, num_classes)
  drawn = scenario.make_scenario(
      labels=source.train.labels, ids=source.train.ids, class_names=source.class_names,
      validation_fraction=config.validation_fraction, properties=source.properties, **dataclasses.asdict(wanted))
  if source.uniform:
    side = source.train.image(drawn.train[0][0]).shape[0]
    if side != config.image_size:
      raise UserError(f"image_size is {config.image_size}, but the pictures of {source.name} are {side}x{side} "
                      f"pixels; set --config.image_size={side}")
  _check_held_out(method, drawn)
  if config.evaluate_on == "holdout" and not any(drawn.holdout):
    raise UserError(f"evaluate_on is 'holdout', but no image is held out (validation_fraction is "
                    f"{config.validation_fraction}); set for example --config.validation_fraction=0.1")
  return Experiment(config, devices, source, drawn, _plans(config, drawn, method), model, method)


def recorded(config: AnyConfig, record: Mapping[str, Any]) -> Experiment:
  """The experiment of a run from its files alone, without its data set: enough to restore and to apply its network.

  Its splits hold no picture, and the scenario's rows are only as many as the drawn ones.

  Args:
    config: of the run.
    record: content of its scenario.json.

  Raises:
    UserError: see config.check; or a record that does not belong to the config.
  """
  config, devices = configuration.check(config), tuple(jax.devices())
  if config.precision == "tf32" and devices[0].platform != "gpu":
    # Only GPUs have it; elsewhere such a network is applied in float32.
    config = dataclasses.replace(config, precision="float32")
  method, model = _method_and_model(config, devices[0].platform)
  order, counts = record["class_order"], record["counts"]
  if sorted(order) != list(range(len(counts))) or len(record["class_names"]) != len(counts):
    raise UserError(f"the run's scenario.json has {len(order)} classes in order, {len(record['class_names'])} names "
                    f"and {len(counts)} counts; restore the file")
  rows = lambda sizes: tuple(tuple(range(size)) for size in sizes)
  drawn = scenario.Scenario(
      class_order=tuple(order), class_names=tuple(record["class_names"]),
      tasks=tuple(scenario.Task(task["classes"][0], task["classes"][-1] + 1) for task in record["tasks"]),
      train=rows(counts), holdout=rows(record["holdout_counts"]),
      profile=None if record["profile"] is None else tuple(record["profile"]), digest=record["digest"])
  names = [drawn.class_names[place] for place in np.argsort(order)]
  method = _with_memory_of_all(method, config, len(counts))
  source = catalogue.without_pictures(config.dataset, names)
  return Experiment(config, devices, source, drawn, _plans(config, drawn, method), model, method)


def _method_and_model(config: Config, platform: str) -> tuple[Method, Any]:
  method = methods.make(config.method, config.method_options, memory=config.memory.quota(1),
                        chosen=addons.names(config.addons))
  return method, models.make_backbone(config.model, platform=platform, precision=config.precision,
                                      axis_name=parallel.AXIS, signed=method.signed_features,
                                      standardised=method.standardised_features, maps=method.uses_maps)


def _plans(config: Config, drawn: scenario.Scenario, method: Method) -> tuple[plan.TaskPlan, ...]:
  return plan.make_plans(drawn.counts, drawn.tasks, method, epochs=config.epochs, batch_size=config.batch_size,
                         per_class=config.memory.per_class, total=config.memory.total)


def _with_memory_of_all(method: Method, config: Config, num_classes: int) -> Method:
  """The method for the exemplars that each class has at the end, when a fixed total is shared by all classes.

  Raises:
    UserError: the total is less than an exemplar of each class, or than the method needs.
  """
  total = config.memory.total
  if total is None:
    return method
  least = max(1, method.min_memory) * num_classes
  if total < least:
    needs = f"; method {config.method!r} needs {method.min_memory} of each class" if method.min_memory > 1 else ""
    raise UserError(f"memory.total is {total}, too small for the {num_classes} classes of the data set{needs}; set "
                    f"--config.memory.total={least} or more, or use memory.per_class")
  return methods.make(config.method, config.method_options, memory=total // num_classes,
                      chosen=addons.names(config.addons))


def _check_batch(config: Config, method: Method, devices: int) -> None:
  """Every device must have equally many images of each kind."""
  kinds = max(stage.sampler.multiple for stage in method.stages)
  multiple = kinds * devices
  if config.batch_size % multiple:
    near = -(-config.batch_size // multiple) * multiple
    raise UserError(f"batch_size is {config.batch_size}, but method {method.name!r} on {devices} devices needs a "
                    f"multiple of {kinds} x {devices} = {multiple}, such as --config.batch_size={near}")


def _check_maps(config: Config, method: Method, model: Any) -> None:
  """A method that compares maps needs some; only shapes are computed."""
  image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
  _, maps = jax.eval_shape(lambda key, image: model.apply(
      model.init(key, image, train=False), image, train=False), jax.random.key(0), image)
  if not maps:
    raise UserError(f"method {method.name!r} compares the maps of the backbone's stages, but model {config.model!r} "
                    f"has none; choose a residual network, such as --config.model=resnet32")


def _check_held_out(method: Method, drawn: scenario.Scenario) -> None:
  """Every class must keep an image to train on."""
  smallest = int(np.argmin(drawn.counts))
  if method.held_out and drawn.counts[smallest] <= method.held_out:
    raise UserError(f"method {method.name!r} holds out {method.held_out} images of each class, but class "
                    f"{drawn.class_names[smallest]} has {drawn.counts[smallest]} and needs {method.held_out + 1} or "
                    f"more; lower scenario.imbalance or validation_fraction, or choose another method")
