"""What gr_jax.benchmark measures: the very programs that training uses, and how fast pictures reach them."""

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
import ml_collections
import numpy as np
import optax

from gr_jax import memory, methods
from gr_jax.benchmarking import pictures as throughput
from gr_jax.data import augment
from gr_jax.devices import convolution_library, parallel
from gr_jax.models import folding
from gr_jax.runs import console
from gr_jax.training import experiment as experiments
from gr_jax.training import passes, step
from gr_jax.training.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds of repeated calls: median, fastest and slowest, the first calls left out."""
  median: float
  fastest: float
  slowest: float

  def scaled(self, factor: float) -> Timing:
    return Timing(self.median * factor, self.fastest * factor, self.slowest * factor)


@dataclasses.dataclass
class Bench:
  """One task of an experiment, ready to be stepped with any variant of the step.

  Attributes:
    experiment: what is benchmarked.
    pictures: decoded training pictures.
    number: of the task, from 0.
    calls: timed calls of a program; two more come first and are dropped.
    steps: of one call.
  """
  experiment: Experiment
  pictures: step.Data
  number: int
  calls: int
  steps: int

  def arguments(self, *, teacher: bool = True) -> tuple[Any, ...]:
    """Fresh arguments of a run program; `teacher` False: as in a first task."""
    found, config = self.experiment, self.experiment.config
    everywhere = functools.partial(parallel.replicate, devices=found.devices)
    plan = found.plans[self.number]
    stops = np.cumsum(found.scenario.counts)
    exemplars = [np.arange(stop - count, stop)[:config.memory.per_class]
                 for stop, count in zip(stops, found.scenario.counts)]
    rows = np.concatenate(experiments.present_rows(found, self.number, exemplars))
    state = jax.jit(found.init_state)(jax.random.key(config.seed))
    old = {"params": state.params, "batch_stats": state.batch_stats} if teacher and self.number else None
    return everywhere((
        state, None if old is None else folding.fold_teacher(old), plan.facts, self.pictures, experiments.pool(rows, found.capacity),
        jax.random.key(config.seed), np.int32(0), np.int32(0), np.int32(self.steps), np.float32(1e-3)))

  def program(self, **changes: Any) -> Callable[..., Any]:
    """The compiled run program of a variant; `changes` replace arguments of make_train_step."""
    found, config = self.experiment, self.experiment.config
    view = {"image_size": config.image_size, "mean": found.source.mean, "std": found.source.std}
    train_step = step.make_train_step(**{
        "model": found.model, "method": found.method, "tx": found.tx, "axis_name": parallel.AXIS,
        "augment": augment.make_augment(config.augmentation, **view), **changes})
    return step.make_epoch(train_step, batch_size=config.batch_size, devices=found.devices)

  def time(self, program: Callable[..., Any], arguments: tuple[Any, ...]) -> Timing:
    """Seconds of one step, over repeated calls of a program that gives back its donated first argument."""
    state, rest = arguments[0], arguments[1:]

    def call() -> None:
      nonlocal state
      state, metrics = program(state, *rest)
      jax.block_until_ready((state, metrics))

    return repeat(call, self.calls).scaled(1 / self.steps)


def repeat(call: Callable[[], None], calls: int) -> Timing:
  """Times a call that waits for the device; the first two are dropped."""
  seconds = []
  for number in range(calls + 2):
    started = time.perf_counter()
    call()
    if number >= 2:
      seconds.append(time.perf_counter() - started)
  return Timing(statistics.median(seconds), min(seconds), max(seconds))


def compiled(program: functools.partial, arguments: Sequence[Any]) -> tuple[Any, float]:
  """A program of parallel.spread, compiled ahead for these arguments, and the seconds that took."""
  lowered = program.func.lower(*program.args, *arguments)
  started = time.perf_counter()
  executable = lowered.compile()
  seconds = time.perf_counter() - started
  return functools.partial(executable, *program.args), seconds


class _SilentTeacher:
  """A backbone whose evaluation mode answers zeros, so that the teacher's pass costs nothing."""

  def __init__(self, model: Any):
    self._model = model

  def apply(self, variables: Any, x: jax.Array, *, train: bool, **options: Any) -> Any:
    if train:
      return self._model.apply(variables, x, train=True, **options)
    return jnp.zeros((len(x), self._model.num_features)), ()


def variants(found: Experiment) -> dict[str, dict[str, Any]]:
  """What is left out -> changed arguments of make_train_step."""
  config, source = found.config, found.source
  plain = augment.make_plain(image_size=config.image_size, mean=source.mean, std=source.std, cropped=source.uniform)
  plain_method = methods.gradient_reweighting(
      reweighting_rule="none", prior=config.prior, distillation=config.distillation,
      task_ratio=config.task_ratio, temperature=config.temperature)
  baseline = methods.gradient_reweighting(
      reweighting_rule="none", prior=False, distillation="kd", task_ratio=config.task_ratio,
      temperature=config.temperature)
  return {
      "augmentation": {"augment": lambda keys, images, sizes: plain(images, sizes)},
      "teacher": {"model": _SilentTeacher(found.model)},
      "reweighting": {"method": plain_method},
      "reweighting, prior and DAKD (plain distillation stays)": {"method": baseline},
      # Not zeros in place of updates: then XLA would leave out the backward pass too.
      "weight decay and momentum": {"tx": optax.identity()}}


def ceilings(device: jax.Device, precision: str, size: int, copy_bytes: int) -> dict[str, float]:
  """FLOP/s of a large matrix product and bytes/s (read and written) of a large copy, on one device."""
  dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
  exactness = jax.lax.Precision.HIGHEST if precision == "float32" else jax.lax.Precision.DEFAULT
  matrix = jax.device_put(jax.random.normal(jax.random.key(0), (size, size), dtype), device)
  product = jax.jit(lambda a: jnp.dot(a, a, precision=exactness))
  long = jax.device_put(jax.random.normal(jax.random.key(1), (copy_bytes // 4,), jnp.float32), device)
  copy = jax.jit(lambda a: a + 1)
  return {"flops": 2 * size**3 / repeat(lambda: jax.block_until_ready(product(matrix)), 5).fastest,
          "bytes": 2 * copy_bytes / repeat(lambda: jax.block_until_ready(copy(long)), 5).fastest}


def replica_forms(bench: Bench, count: int) -> dict[str, Timing]:
  """Seconds in which `count` trainings do one step each, in each formulation, on one device.

  "one after another": one program, called for each. "vectorised": vmap over state, teacher, pool and seed, so that
  convolutions become grouped ones. "branches": one program that holds the step `count` times. "threads": a host
  thread for each, all sending to the one device.
  """
  import concurrent.futures
  found = dataclasses.replace(bench.experiment, devices=bench.experiment.devices[:1])
  single = dataclasses.replace(bench, experiment=found)
  config = found.config
  view = {"image_size": config.image_size, "mean": found.source.mean, "std": found.source.std}
  run = step.make_run(step.make_train_step(
      model=found.model, method=found.method, tx=found.tx, axis_name=parallel.AXIS,
      augment=augment.make_augment(config.augmentation, **view)), batch_size=config.batch_size, num_devices=1)
  members = [single.arguments() for _ in range(count)]
  own = (0, 1, 4, 5)  # State, teacher, pool and seed differ from replica to replica.
  everywhere = functools.partial(parallel.replicate, devices=found.devices)

  def join(position: int) -> Any:
    if position == 5:
      return everywhere(jax.random.split(jax.random.key(0), count))
    return everywhere(jax.tree.map(lambda *leaves: jnp.stack(leaves), *[m[position] for m in members]))

  stacked = tuple(join(i) if i in own else argument for i, argument in enumerate(members[0]))
  vectorised = jax.vmap(run, in_axes=tuple(0 if i in own else None for i in range(10)))

  def branches(states, teachers, facts, data, pools, roots, *rest):
    pick = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)
    each = [run(pick(states, i), pick(teachers, i), facts, data, pick(pools, i), roots[i], *rest)
            for i in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

  program = parallel.spread(run, found.devices, 10, donate=(0,))
  states = [member[0] for member in members]

  def advance(i: int) -> None:
    states[i], metrics = program(states[i], *members[i][1:])
    jax.block_until_ready(metrics)

  def in_turn() -> None:
    for i in range(count):
      advance(i)

  timings = {"one after another": repeat(in_turn, bench.calls).scaled(1 / bench.steps)}
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    timings["threads"] = repeat(lambda: list(pool.map(advance, range(count))), bench.calls).scaled(1 / bench.steps)
  for name, function in (("vectorised", vectorised), ("branches", branches)):
    copied = (jax.tree.map(jnp.copy, stacked[0]), *stacked[1:])
    timings[name] = single.time(parallel.spread(function, found.devices, 10, donate=(0,)), copied)
  return timings


def import_seconds() -> float:
  """Time of `import gr_jax.train` in a new interpreter."""
  code = "import time; t = time.perf_counter(); import gr_jax.train; print(time.perf_counter() - t)"
  return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def measure(config: ml_collections.ConfigDict, *, calls: int, steps: int, replicas: int, long: bool) -> dict[str, Any]:
  """Everything that the table shows, seconds and bytes, as a JSON-able dict.

  Args:
    config: see configs/.
    calls: timed calls of each program.
    steps: of one call.
    replicas: how many trainings to compare formulations of; 0 for none.
    long: also the last task, and the step with one thing after another left out.
  """
  started = time.perf_counter()
  found = experiments.load(config, progress=console.decoding, say=console.say)
  if not found.source.uniform:
    with throughput.empty_cache(config) as changed:
      return _measure(dataclasses.replace(found, config=changed), config, started, calls, steps, replicas, long)
  return _measure(found, config, started, calls, steps, replicas, long)


def _measure(found: Experiment, config: ml_collections.ConfigDict, started: float, calls: int, steps: int,
             replicas: int, long: bool) -> dict[str, Any]:
  """`found` has an empty cache where its pictures differ in size; `config` is the user's."""
  way, decoding = None, 0.0
  if found.source.uniform:
    pictures = experiments.load_pictures(found, "train", console.decoding)
    tests = experiments.load_pictures(found, "test", console.decoding)
    loading = time.perf_counter() - started
  else:
    loading = time.perf_counter() - started
    way, pictures, tests = throughput.reading(found)
    loading, decoding = loading + way["warm_seconds"], way["cold_seconds"] - way["warm_seconds"]
  device, on_cpu = found.devices[0], found.devices[0].platform == "cpu"
  report: dict[str, Any] = {
      "config": config.to_dict(), "devices": f"{len(found.devices)} x {device.device_kind}",
      "precision": found.precision, "jax": jax.__version__,
      "convolutions": convolution_library.describe() if on_cpu else None, "date": time.strftime("%Y-%m-%d"),
      "import_seconds": import_seconds(), "load_seconds": loading, "programs": {}}
  last = len(found.plans) - 1
  measured = {"base task": 0, "task 2": min(1, last)} | ({f"task {last + 1}": last} if long else {})
  for name, number in measured.items():
    bench = Bench(found, pictures, number, calls, steps)
    arguments = bench.arguments()
    program, compile_seconds = compiled(bench.program(), arguments)
    timing = bench.time(program, arguments)
    cost, space = program.func.cost_analysis() or {}, program.func.memory_analysis()
    report["programs"][name] = {
        "compile_seconds": compile_seconds, "step": dataclasses.asdict(timing),
        "images_per_second": config.batch_size / timing.median,
        # XLA counts the body of a loop whose length it does not know once, which is one step.
        "flops_per_step": cost.get("flops"), "bytes_per_step": cost.get("bytes accessed"),
        "temporary_bytes": getattr(space, "temp_size_in_bytes", None)}
  report["first_step_seconds"] = (
      report["import_seconds"] + loading + report["programs"]["base task"]["compile_seconds"]
      + report["programs"]["base task"]["step"]["median"])
  report["ceilings"] = ceilings(device, found.precision, 2048 if on_cpu else 8192, 2**27 if on_cpu else 2**32)

  bench = Bench(found, pictures, min(1, last), calls, steps)
  if long:
    report |= _taken_apart(bench, report["programs"]["task 2"]["step"])
  report |= _looking(found, pictures, tests, calls)
  if way:
    report["pictures"] = {**way, "paths": throughput.on_their_way(found, count=calls, steps=steps),
                          "first_step_without_cache_seconds": report["first_step_seconds"] + decoding}
  if replicas:
    report["replicas"] = {"count": replicas, **{
        name: dataclasses.asdict(timing) for name, timing in replica_forms(bench, replicas).items()}}
  statistics_of_device = device.memory_stats() or {}
  report["peak_device_bytes"] = statistics_of_device.get("peak_bytes_in_use")
  report["peak_host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return report


def _taken_apart(bench: Bench, full: dict[str, float]) -> dict[str, Any]:
  """The step of a later task, timed as `full`, with one thing after another left out."""
  without = {name: dataclasses.asdict(bench.time(bench.program(**changes), bench.arguments()))
             for name, changes in variants(bench.experiment).items()}
  without["distillation and teacher"] = dataclasses.asdict(
      bench.time(bench.program(), bench.arguments(teacher=False)))
  plain = without["reweighting, prior and DAKD (plain distillation stays)"]
  return {"without": without, "shares": {name: 1 - timing["median"] / full["median"] for name, timing in without.items()},
          "method_over_plain": full["median"] / plain["median"]}


def _looking(found: Experiment, pictures: step.Data, tests: step.Data, calls: int) -> dict[str, float]:
  """Throughput of evaluation, of feature extraction, and of herding, in images a second."""
  state = parallel.replicate(jax.jit(found.init_state)(jax.random.key(0)), found.devices)
  count = experiments.evaluator(found, tests)
  evaluation = repeat(lambda: count(state.params, state.batch_stats, len(found.plans)), calls)
  config, source = found.config, found.source
  extract = passes.make_extract(
      model=found.model, capacity=found.capacity, block=config.evaluation_block, devices=found.devices,
      prepare=augment.make_plain(image_size=config.image_size, mean=source.mean, std=source.std,
                                 cropped=source.uniform))
  rows = np.arange(found.plans[0].size)
  data, pool = parallel.replicate((pictures, experiments.pool(rows, found.capacity)), found.devices)
  extraction = repeat(
      lambda: jax.block_until_ready(extract(state.params, state.batch_stats, data, pool)), calls)
  features = np.random.default_rng(0).normal(size=(500, found.model.num_features))
  herding = repeat(lambda: memory.herd(features, max(1, config.memory.per_class)), calls)
  return {"evaluation_images_per_second": len(tests.labels) / evaluation.median,
          "feature_images_per_second": len(rows) / extraction.median,
          "herding_images_per_second": len(features) / herding.median}


def table(report: dict[str, Any]) -> str:
  """The report as Markdown."""
  def milliseconds(timing: dict[str, float]) -> str:
    return f"{1e3 * timing['median']:.2f} ({1e3 * timing['fastest']:.2f} to {1e3 * timing['slowest']:.2f})"

  lines = [f"{report['devices']}, {report['precision']}, batch {report['config']['batch_size']}, "
           f"{report['config']['model']}, jax {report['jax']}, {report['date']}"
           + (f"; {report['convolutions']}" if report["convolutions"] else ""), "",
           "| program | compile, s | step, ms: median (range) | images/s | TFLOP/s (share of the product's) | GB/s "
           "(share of the copy's) | temporary memory, MiB |", "|---|---|---|---|---|---|---|"]
  top = report["ceilings"]
  for name, row in report["programs"].items():
    def rate(amount: float | None, ceiling: float, unit: float, seconds: float = row["step"]["median"]) -> str:
      return "-" if not amount else f"{amount / seconds / unit:.3g} ({100 * amount / seconds / ceiling:.0f} %)"
    temporary = row["temporary_bytes"]
    lines.append(
        f"| {name} | {row['compile_seconds']:.1f} | {milliseconds(row['step'])} | {row['images_per_second']:.0f} | "
        f"{rate(row['flops_per_step'], top['flops'], 1e12)} | {rate(row['bytes_per_step'], top['bytes'], 1e9)} | "
        f"{'-' if temporary is None else round(temporary / 2**20)} |")
  lines += ["", f"ceilings: matrix product {top['flops'] / 1e12:.3g} TFLOP/s, copy {top['bytes'] / 1e9:.3g} GB/s"]
  if "without" in report:
    lines += ["", "| step of task 2 without | ms: median (range) | share of the step |", "|---|---|---|",
              *[f"| {name} | {milliseconds(timing)} | {100 * report['shares'][name]:.1f} % |"
                for name, timing in report["without"].items()],
              "", f"the method's own cost: {report['method_over_plain']:.3f} x the step with plain cross-entropy and "
              f"plain distillation"]
  lines += ["",
            f"images/s: evaluation {report['evaluation_images_per_second']:.0f}, features "
            f"{report['feature_images_per_second']:.0f}, herding {report['herding_images_per_second']:.0f}",
            f"start: import {report['import_seconds']:.1f} s, first step after {report['first_step_seconds']:.1f} s "
            f"(no program cached); peak memory: host {report['peak_host_bytes'] / 2**20:.0f} MiB, device " + (
                f"{report['peak_device_bytes'] / 2**20:.0f} MiB" if report["peak_device_bytes"] else "not reported")]
  if "pictures" in report:
    lines += ["", *throughput.lines(report["pictures"], {
        "with": report["first_step_seconds"], "without": report["pictures"]["first_step_without_cache_seconds"]})]
  if "replicas" in report:
    forms = {name: timing for name, timing in report["replicas"].items() if name != "count"}
    lines += ["", f"| {report['replicas']['count']} replicas on one device | a step of all, ms | x one |",
              "|---|---|---|"]
    one = report["programs"]["task 2"]["step"]["median"]
    lines += [f"| {name} | {milliseconds(timing)} | {timing['median'] / one:.2f} |" for name, timing in forms.items()]
  return "\n".join(lines)
