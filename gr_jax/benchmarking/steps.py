"""Measurements of gr_jax.benchmark: the programs that training uses, and how fast pictures reach them."""

from __future__ import annotations

import dataclasses
import functools
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax import config as configuration
from gr_jax import memory, methods, optimizer, origin
from gr_jax.benchmarking import pictures as throughput
from gr_jax.config import Config
from gr_jax.data import augment
from gr_jax.data.arrays import Data
from gr_jax.devices import convolution_library, parallel
from gr_jax.methods import addons
from gr_jax.methods.base import Stage
from gr_jax.models import folding, frozen
from gr_jax.runs import console
from gr_jax.scenario.plan import StagePlan, rows_of
from gr_jax.training import experiment as experiments
from gr_jax.training import passes, program
from gr_jax.training import pictures as loading
from gr_jax.training.evaluation import make_evaluator
from gr_jax.training.experiment import Experiment
from gr_jax.training.program import Window
from gr_jax.training.programs import pool
from gr_jax.training.step import make_train_step

# Small, so that no loss diverges: a non-finite loss ends a call early. The rate does not affect the time.
_LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds of repeated calls: median, fastest and slowest, without the first calls."""
  median: float
  fastest: float
  slowest: float

  def scaled(self, factor: float) -> Timing:
    return Timing(self.median * factor, self.fastest * factor, self.slowest * factor)


@dataclasses.dataclass
class Bench:
  """One stage of a task, to time variants of its step.

  Attributes:
    experiment: the experiment to measure.
    pictures: decoded training pictures.
    plan: of the stage.
    calls: timed calls of a program, after two that are not timed.
    steps: per call.
  """
  experiment: Experiment
  pictures: Data
  plan: StagePlan
  calls: int
  steps: int

  @property
  def stage(self) -> Stage:
    return self.experiment.method.stages[self.plan.index]

  def arguments(self, *, teacher: bool = True) -> tuple[Any, ...]:
    """New arguments of a program; `teacher` False: as in a first task."""
    experiment, config = self.experiment, self.experiment.config
    counts, held_out = experiment.scenario.counts, experiment.method.held_out
    exemplars = [np.arange(stop - count, stop)[held_out:experiment.exemplars_per_class(self.plan.task.first)]
                 for stop, count in zip(np.cumsum(counts), counts)]
    rows = np.concatenate(rows_of(self.stage, self.plan, counts, exemplars, held_out, seed=config.seed))
    root = jax.random.key(config.seed)
    state = jax.jit(functools.partial(experiment.init_state, index=self.plan.index))(root)
    old = None
    if teacher and self.plan.number and self.stage.uses_teacher:
      # A copy: the state is donated, and folding leaves the head as it is.
      old = folding.fold_teacher(jax.tree.map(jnp.copy, {"params": state.params, "batch_stats": state.batch_stats}))
    if self.stage.growth is not None:
      old = {**(old or {}), "carry": frozen.fold_carry(experiment.init_carry())}
    window = Window(pool(rows, experiment.capacity), root, np.int32(0), np.int32(0), np.int32(self.steps))
    # A stage with a source draws its features from the carry, as feed.without_pictures gives it.
    data = self.pictures if self.stage.source is None else experiment.init_carry()
    return parallel.replicate((state, old, self.plan.context, data, window), experiment.devices)

  def step(self, **changes: Any) -> Callable[..., Any]:
    """The step as programs.make_programs builds it; `changes` replace arguments of make_train_step."""
    experiment, config = self.experiment, self.experiment.config
    view = {"image_size": config.image_size, "mean": experiment.source.mean, "std": experiment.source.std}
    return make_train_step(**{
        "model": experiment.model, "method": experiment.method, "stage": self.stage,
        "tx": experiment.optimizer(self.stage), "axis_name": parallel.AXIS,
        "augment": augment.make_augment(config.augmentation, **view), **changes})

  def program(self, **changes: Any) -> functools.partial:
    """The compiled program of a variant; see `step`."""
    return program.make_program(
        self.step(**changes), stage=changes.get("stage", self.stage), number=self.plan.index,
        batch_size=self.plan.batch_size, devices=self.experiment.devices)

  def time(self, run: Callable[..., Any], arguments: tuple[Any, ...]) -> Timing:
    """Seconds per step, over repeated calls of a program that returns its donated first argument."""
    state, rest = arguments[0], arguments[1:]

    def call() -> None:
      nonlocal state
      state, metrics = run(state, *rest)
      jax.block_until_ready((state, metrics))

    return repeat(call, self.calls).scaled(1 / self.steps)


def repeat(call: Callable[[], object], calls: int, untimed: int = 2) -> Timing:
  """Times a call that waits for the device, after `untimed` first calls."""
  seconds = []
  for number in range(calls + untimed):
    started = time.perf_counter()
    call()
    if number >= untimed:
      seconds.append(time.perf_counter() - started)
  return Timing(statistics.median(seconds), min(seconds), max(seconds))


def compiled(spread: functools.partial, arguments: Sequence[Any]) -> tuple[Any, float, float | None]:
  """A program from parallel.spread, compiled ahead of time for these arguments; the seconds that took; its FLOP.

  The FLOP are those before optimisation, since XLA counts none in a call of oneDNN; the body of a loop of unknown
  length counts once. None if XLA does not say.
  """
  jitted: Any = spread.func
  lowered = jitted.lower(*spread.args, *arguments)
  started = time.perf_counter()
  executable = lowered.compile()
  seconds = time.perf_counter() - started
  return functools.partial(executable, *spread.args), seconds, (lowered.cost_analysis() or {}).get("flops")


class _SilentTeacher:
  """A backbone that returns zeros in evaluation mode, so that the teacher's forward pass costs nothing."""

  def __init__(self, model: Any):
    self._model = model

  def apply(self, variables: Any, x: jax.Array, *, train: bool, **options: Any) -> Any:
    if train:
      return self._model.apply(variables, x, train=True, **options)
    return jnp.zeros((len(x), self._model.num_features)), ()


# The step with plain cross-entropy and distillation is the baseline for the method's own cost.
_BASELINE = "reweighting, prior and DAKD (plain distillation stays)"


def variants(bench: Bench) -> dict[str, dict[str, Any]]:
  """Ablations: the part left out -> changed arguments of make_train_step."""
  experiment, stage = bench.experiment, bench.stage
  config, source = experiment.config, experiment.source
  plain = augment.make_plain(image_size=config.image_size, mean=source.mean, std=source.std, cropped=source.uniform)
  changes: dict[str, dict[str, Any]] = {"augmentation": {"augment": lambda keys, images, sizes: plain(images, sizes)}}
  if stage.uses_teacher:
    changes["teacher"] = {"model": _SilentTeacher(experiment.model)}
  if experiment.method.name == "gr":
    chosen = addons.names(config.addons)
    options = dict(config.method_options)
    distillation = "kd" if stage.uses_teacher else "none"
    for name, others in (("reweighting", {}), (_BASELINE, {"prior": False, "distillation": distillation})):
      method = methods.make("gr", {**options, "reweighting": "none", **others},
                            memory=experiment.exemplars_per_class(experiment.num_classes), chosen=chosen)
      changes[name] = {"method": method, "stage": method.stages[bench.plan.index]}
  # Updates are not replaced by zeros: XLA would then remove the backward pass too.
  changes["weight decay and momentum"] = {"tx": optimizer.scale_by_epoch(experiment.learning_rates(stage))}
  return changes


def ceilings(device: jax.Device, precision: str, size: int, copy_bytes: int) -> dict[str, float]:
  """FLOP/s of a large matrix product and bytes/s (read and written) of a large copy, on one device."""
  dtype = jnp.bfloat16 if precision in ("bfloat16", "mixed") else jnp.float32
  exactness = jax.lax.Precision.HIGHEST if precision == "float32" else jax.lax.Precision.DEFAULT
  matrix = jax.device_put(jax.random.normal(jax.random.key(0), (size, size), dtype), device)
  product = jax.jit(lambda a: jnp.dot(a, a, precision=exactness))
  long = jax.device_put(jax.random.normal(jax.random.key(1), (copy_bytes // 4,), jnp.float32), device)
  copy = jax.jit(lambda a: a + 1)
  return {"flops": 2 * size**3 / repeat(lambda: jax.block_until_ready(product(matrix)), 5).fastest,
          "bytes": 2 * copy_bytes / repeat(lambda: jax.block_until_ready(copy(long)), 5).fastest}


def replica_forms(bench: Bench, count: int) -> dict[str, Timing]:
  """Seconds for one step of each of `count` replicas, for each way to run them on one device.

  "one after another": one program, called for each. "vectorised": vmap over state, teacher, pool and seed, which makes
  convolutions grouped. "branches": one program with `count` copies of the step. "threads": one host thread per
  replica, all using the same device.
  """
  import concurrent.futures
  experiment = dataclasses.replace(bench.experiment, devices=bench.experiment.devices[:1])
  single = dataclasses.replace(bench, experiment=experiment)
  run = program.make_run(single.step(), stage=single.stage, number=single.plan.index,
                         batch_size=single.plan.batch_size, num_devices=1)
  members = [single.arguments() for _ in range(count)]
  states, teachers, _, _, windows = zip(*members)
  _, _, context, data, window = members[0]
  replicate = functools.partial(parallel.replicate, devices=experiment.devices)

  def stack(trees: Sequence[Any]) -> Any:
    return replicate(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))

  # State, teacher, pool and seed differ from replica to replica.
  stacked_window = window._replace(pool=stack([each.pool for each in windows]),
                                   root=replicate(jax.random.split(jax.random.key(0), count)))
  stacked = (stack(states), stack(teachers), context, data, stacked_window)
  axes = window._replace(pool=0, root=0, epoch=None, first=None, stop=None)
  vectorised = jax.vmap(run, in_axes=(0, 0, None, None, axes))

  def branches(states, teachers, context, data, window: Window):
    pick = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)
    each = [run(pick(states, i), pick(teachers, i), context, data,
                window._replace(pool=pick(window.pool, i), root=window.root[i])) for i in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

  alone = parallel.spread(run, experiment.devices, 5, donate=(0,))
  states = list(states)

  def advance(i: int) -> None:
    states[i], metrics = alone(states[i], *members[i][1:])
    jax.block_until_ready(metrics)

  def in_turn() -> None:
    for i in range(count):
      advance(i)

  timings = {"one after another": repeat(in_turn, bench.calls).scaled(1 / bench.steps)}
  with concurrent.futures.ThreadPoolExecutor(count) as threads:
    timings["threads"] = repeat(lambda: list(threads.map(advance, range(count))), bench.calls).scaled(1 / bench.steps)
  for name, function in (("vectorised", vectorised), ("branches", branches)):
    copied = (jax.tree.map(jnp.copy, stacked[0]), *stacked[1:])
    timings[name] = single.time(parallel.spread(function, experiment.devices, 5, donate=(0,)), copied)
  return timings


def import_seconds() -> float:
  """Time of `import gr_jax.train` in a new interpreter."""
  code = "import time; t = time.perf_counter(); import gr_jax.train; print(time.perf_counter() - t)"
  return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def measure(config: Config, *, calls: int, steps: int, replicas: int, long: bool) -> dict[str, Any]:
  """All measurements of the table, in seconds and bytes, as a JSON-serialisable dict.

  Args:
    config: see configs/.
    calls: timed calls of each program.
    steps: per call.
    replicas: number of replicas for comparing ways to run them; 0 for no comparison.
    long: also measure the last task and the ablations of the step.
  """
  started = time.perf_counter()
  experiment = experiments.load(config, progress=console.decoding, say=console.say)
  experiment = dataclasses.replace(experiment, config=dataclasses.replace(config, learning_rate=_LEARNING_RATE))
  if not experiment.source.uniform:
    with throughput.empty_cache(experiment.config) as changed:
      return _measure(dataclasses.replace(experiment, config=changed), config, started=started, calls=calls,
                      steps=steps, replicas=replicas, long=long)
  return _measure(experiment, config, started=started, calls=calls, steps=steps, replicas=replicas, long=long)


def _measure(experiment: Experiment, config: Config, *, started: float, calls: int, steps: int, replicas: int,
             long: bool) -> dict[str, Any]:
  """`experiment` has an empty cache if its pictures differ in size; `config` is the user's."""
  way, decoding = None, 0.0
  if experiment.source.uniform:
    pictures = loading.load(experiment, "train", console.decoding)
    # Only pictures that differ in size are ever streamed.
    assert isinstance(pictures, Data)
    tests = loading.load(experiment, "test", console.decoding)
    ready = time.perf_counter() - started
  else:
    ready = time.perf_counter() - started
    way, pictures, tests = throughput.reading(experiment)
    ready, decoding = ready + way["warm_seconds"], way["cold_seconds"] - way["warm_seconds"]
  device, on_cpu = experiment.devices[0], experiment.devices[0].platform == "cpu"
  report: dict[str, Any] = {
      "config": configuration.to_dict(config), "precision": experiment.precision,
      "convolutions": convolution_library.describe() if on_cpu else None, **origin.describe(experiment.devices),
      "import_seconds": import_seconds(), "load_seconds": ready, "programs": {}}
  last = len(experiment.plans) - 1
  measured = {"base task": 0, "task 2": min(1, last)} | ({f"task {last + 1}": last} if long else {})
  # Further stages of a task have the stage's name appended.
  plans = {name if place == 0 else f"{name}, {plan.name}": plan
           for name, number in measured.items() for place, plan in enumerate(experiment.plans[number].stages)}
  for name, plan in plans.items():
    bench = Bench(experiment, pictures, plan, calls, steps)
    arguments = bench.arguments()
    executable, compile_seconds, flops = compiled(bench.program(), arguments)
    timing = bench.time(executable, arguments)
    cost, space = executable.func.cost_analysis() or {}, executable.func.memory_analysis()
    report["programs"][name] = {
        "compile_seconds": compile_seconds, "step": dataclasses.asdict(timing),
        "images_per_second": config.batch_size / timing.median,
        # The body of the loop is one step.
        "flops_per_step": flops, "bytes_per_step": cost.get("bytes accessed"),
        "temporary_bytes": getattr(space, "temp_size_in_bytes", None)}
  report["first_step_seconds"] = (
      report["import_seconds"] + ready + report["programs"]["base task"]["compile_seconds"]
      + report["programs"]["base task"]["step"]["median"])
  report["ceilings"] = ceilings(device, experiment.precision, 2048 if on_cpu else 8192, 2**27 if on_cpu else 2**32)

  bench = Bench(experiment, pictures, experiment.plans[min(1, last)].stages[0], calls, steps)
  if long:
    report |= _taken_apart(bench, report["programs"]["task 2"]["step"])
  report |= _looking(experiment, pictures, tests, calls)
  if way:
    report["pictures"] = {**way, "paths": throughput.on_their_way(experiment, count=calls, steps=steps),
                          "first_step_without_cache_seconds": report["first_step_seconds"] + decoding}
  if replicas:
    report["replicas"] = {"count": replicas, **{
        name: dataclasses.asdict(timing) for name, timing in replica_forms(bench, replicas).items()}}
  statistics_of_device = device.memory_stats() or {}
  report["peak_device_bytes"] = statistics_of_device.get("peak_bytes_in_use")
  report["peak_host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return report


def _taken_apart(bench: Bench, full: dict[str, float]) -> dict[str, Any]:
  """Ablations of the step of a later task; `full` is the timing of the complete step."""
  without = {name: dataclasses.asdict(bench.time(bench.program(**changes), bench.arguments()))
             for name, changes in variants(bench).items()}
  if bench.stage.uses_teacher:
    without["distillation and teacher"] = dataclasses.asdict(
        bench.time(bench.program(), bench.arguments(teacher=False)))
  ablations = {"without": without,
               "shares": {name: 1 - timing["median"] / full["median"] for name, timing in without.items()}}
  if _BASELINE in without:
    ablations["method_over_plain"] = full["median"] / without[_BASELINE]["median"]
  return ablations


def _looking(experiment: Experiment, pictures: Data, tests: Data, calls: int) -> dict[str, float]:
  """Throughput of evaluation, feature extraction and herding, in images per second."""
  state, carry = parallel.replicate(
      (jax.jit(experiment.init_state)(jax.random.key(0)), experiment.init_carry()), experiment.devices)
  network = {"params": state.params, "batch_stats": state.batch_stats, "carry": carry}
  evaluate = make_evaluator(experiment, tests)
  # After the first task, so on the test images of its classes.
  evaluated = int(np.count_nonzero(tests.labels < experiment.plans[0].task.stop))
  # Seconds each on a CPU, so only the call that compiles is not timed.
  evaluation = repeat(lambda: evaluate(network, 1), calls, untimed=1)
  config, source = experiment.config, experiment.source
  extract = passes.make_extract(
      model=experiment.model, capacity=experiment.capacity, block=config.evaluation_block, devices=experiment.devices,
      growth=experiment.method.growth, blocks=experiment.method.blocks(len(experiment.plans)),
      prepare=augment.make_plain(image_size=config.image_size, mean=source.mean, std=source.std,
                                 cropped=source.uniform))
  rows = np.arange(min(experiment.plans[0].size, 10 * config.evaluation_block))
  data, among, context = parallel.replicate(
      (pictures, pool(rows, experiment.capacity), experiment.plans[0].stages[0].context), experiment.devices)
  extraction = repeat(
      lambda: jax.block_until_ready(extract(state.params, state.batch_stats, data, among, context, carry)), calls,
      untimed=1)
  features = np.random.default_rng(0).normal(size=(500, experiment.model.num_features))
  m = max(1, experiment.exemplars_per_class(experiment.plans[0].task.stop))
  herding = repeat(lambda: memory.herd(features, m), calls)
  return {"evaluation_images_per_second": evaluated / evaluation.median,
          "feature_images_per_second": len(rows) / extraction.median,
          "herding_images_per_second": len(features) / herding.median}
