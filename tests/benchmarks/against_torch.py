"""gr_jax's train step against PyTorch's, on this machine, in one run.

  python tests/benchmarks/against_torch.py [--batch=128] [--steps=..] [--rounds=..] [--device=cpu|cuda]
                                           [--json=..]

The last of ten tasks of ten classes of a long-tailed CIFAR-100: ResNet-32, all 100 classes seen, a teacher,
random pictures of 32x32 in the device's memory. The sides: gr_jax's step inside its multi-step program, as
`make_epoch` runs it; the step as the authors' release builds it; the best plain PyTorch, eager and compiled
(torch_steps.py). Three tables: without augmentation; with each side's own; the method's own cost in gr_jax.

How it is timed. Each side lives in a process of its own with all cores. In a round every program runs `steps`
steps and waits for the device, one after the other, each round beginning with another one; the first round is
dropped. Meanwhile the other processes wait for a message on a pipe. Their threads may spin for some
milliseconds after their last work (OpenMP's and XLA's pools both do), so a short pause precedes each turn;
what CPU time a process spends between its turns is measured and printed, and should be next to nothing.
Ratios are taken within a round, then their median, so a load that comes and goes touches both sides; but the
machine must be quiet all the same, since PyTorch's threads wait for each other in a spin and suffer from a
busy core far more than XLA's.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CLASSES, TASK_SIZE, SIDE = 100, 10, 32
MEAN, STD = (0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)
LEARNING_RATE = 0.1
_PAUSE = 0.05

PLAIN, AUGMENTED, CHEAP = "plain", "augmented", "cheap"
OURS, RELEASED, EAGER, COMPILED = "gr_jax", "released step", "best step, eager", "best step, compiled"


def make_facts():
  """gr_jax's facts of the last task; the long-tailed counts are dealt out at random."""
  from gr_jax import plan, scenario
  counts = np.random.default_rng(0).permutation(scenario.long_tailed_counts(CLASSES, 500, 100))
  first = CLASSES - TASK_SIZE
  return plan.task_facts(counts, scenario.Task(first, CLASSES), first // TASK_SIZE, per_class=20,
                         weight_scale=0.7, gamma=1.0)


def make_pictures(facts: Any) -> tuple[np.ndarray, np.ndarray]:
  """(images [images, 32, 32, 3] uint8, labels int32) of what is present in the task; noise."""
  labels = np.repeat(np.arange(CLASSES, dtype=np.int32), facts.class_counts.astype(int))
  images = np.random.default_rng(1).integers(0, 256, (len(labels), SIDE, SIDE, 3), np.uint8)
  return images, labels


def normalised(images: np.ndarray) -> np.ndarray:
  return (images.astype(np.float32) / 255 - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)


# ---------------------------------------------------------------------------------------------------- the sides
# Each returns (program names -> run(steps), which returns when the device is done; what it runs on).


def jax_side(options: argparse.Namespace, *, bfloat16: bool = False):
  import jax
  import jax.numpy as jnp

  from gr_jax import methods, models, parallel, step
  from gr_jax.data import augment
  from gr_jax.models import classifier, folding
  from gr_jax.state import TrainState

  devices = jax.devices()[:1]
  everywhere = functools.partial(parallel.replicate, devices=devices)
  facts = make_facts()
  images, labels = make_pictures(facts)
  model = models.make_backbone("resnet32", platform=devices[0].platform, axis_name=parallel.AXIS)
  if bfloat16:
    model = model.clone(dtype=jnp.bfloat16)
  tx = step.make_optimizer(momentum=0.9, weight_decay=5e-4)

  def draw(seed, columns):
    variables = model.init(jax.random.key(seed), jnp.zeros((1, SIDE, SIDE, 3)), train=False)
    head = classifier.draw_columns(jax.random.key(seed), classifier.init(model.num_features, CLASSES), columns)
    return {"params": {"backbone": variables["params"], "classifier": head},
            "batch_stats": variables["batch_stats"]}

  def program(name: str) -> Callable[[int], None]:
    method = methods.gradient_reweighting(
        reweighting_rule="none" if name == CHEAP else "dgr", prior=True,
        distillation="kd" if name == CHEAP else "dakd", task_ratio="release", temperature=2.0)
    view = augment.make_augment("pad_resized_crop_flip", image_size=SIDE, mean=MEAN, std=STD)
    run = step.make_epoch(
        step.make_train_step(model=model, method=method, tx=tx, axis_name=parallel.AXIS,
                             augment=view if name == AUGMENTED else None),
        batch_size=options.batch, devices=devices)
    start = draw(0, facts.old | facts.new)
    state = everywhere(TrainState(jnp.int32(0), start["params"], start["batch_stats"],
                                  tx.init(start["params"]), method.init(CLASSES)))
    stored = images if name == AUGMENTED else normalised(images)
    data = step.Data(stored, np.full((len(labels), 2), SIDE, np.int32), labels)
    pool = step.Pool(np.arange(len(labels), dtype=np.int32), np.int32(len(labels)))
    fixed = everywhere((folding.fold_teacher(draw(1, facts.old)), facts, data, pool, jax.random.key(0)))
    epoch = 0

    def advance(steps: int) -> None:
      nonlocal state, epoch
      state, _ = run(state, *fixed, *everywhere((np.int32(epoch), np.int32(0), np.int32(steps),
                                                 np.float32(LEARNING_RATE))))
      jax.block_until_ready(state)
      epoch += 1

    return advance

  return {name: functools.partial(program, name) for name in (PLAIN, AUGMENTED, CHEAP)}, \
      f"jax {jax.__version__}, {devices[0].device_kind}"


def torch_side(options: argparse.Namespace, *, released: bool = False, bfloat16: bool = False,
               compile_mode: str | None = None):
  import torch
  import torch_steps

  device = torch.device(options.device)
  if device.type == "cuda":
    # Convolutions use TF32 by default there, products do not; XLA uses it for both.
    torch.set_float32_matmul_precision("high")
  facts = make_facts()
  images, labels = make_pictures(facts)
  torch.manual_seed(0)

  def backbone():
    return torch_steps.Backbone(32).to(device)

  def heads(tasks):
    return [torch.nn.Linear(64, TASK_SIZE, device=device) for _ in range(tasks)]

  def whole_head(columns):
    head = torch.nn.Linear(64, CLASSES, device=device)
    with torch.no_grad():
      for values in (head.weight, head.bias):
        values[torch.as_tensor(~columns, device=device)] = 0.0
    return head

  def make_step(name):
    if released:
      tasks = CLASSES // TASK_SIZE
      return torch_steps.ReleasedStep(backbone(), heads(tasks), facts, (backbone(), heads(tasks - 1)),
                                      learning_rate=LEARNING_RATE)
    view = torch_steps.DeviceAugment(MEAN, STD, device) if name == AUGMENTED else None
    return torch_steps.BestStep(
        backbone(), whole_head(facts.old | facts.new), facts, (backbone(), whole_head(facts.old)),
        learning_rate=LEARNING_RATE, augment=view, bfloat16=bfloat16, compile_mode=compile_mode)

  def wait():
    if device.type == "cuda":
      torch.cuda.synchronize()

  def program(name):
    if released and name == AUGMENTED:
      return from_loader(make_step(name))
    stored = torch.from_numpy((images if name == AUGMENTED else normalised(images)).transpose(0, 3, 1, 2))
    layout = torch.contiguous_format if released else torch.channels_last
    stored = stored.to(device).contiguous(memory_format=layout)
    classes = torch.from_numpy(labels.astype(np.int64)).to(device)
    places = torch.arange(options.batch, device=device)
    train_step = make_step(name)

    def advance(steps: int) -> None:
      order = torch.randperm(len(classes), device=device)
      for i in range(steps):
        rows = order[(places + i * options.batch) % len(order)]
        train_step(stored[rows], classes[rows])
      wait()

    return advance

  def from_loader(train_step):
    pictures = torch_steps.HostPictures(images, labels, MEAN, STD)
    rows = []
    loader = torch.utils.data.DataLoader(
        pictures, batch_size=options.batch, sampler=rows, num_workers=options.workers,
        persistent_workers=options.workers > 0, pin_memory=device.type == "cuda")

    def advance(steps: int) -> None:
      rows[:] = np.resize(np.random.permutation(len(labels)), steps * options.batch).tolist()
      for batch, classes in loader:
        train_step(batch.to(device, non_blocking=True), classes.to(device, non_blocking=True))
      wait()

    return advance

  kind = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
  return {name: functools.partial(program, name) for name in (PLAIN, AUGMENTED)}, \
      f"torch {torch.__version__}, {kind}"


def make_sides(options: argparse.Namespace) -> dict[str, Callable]:
  """The sides that a run compares, in the order of the tables; gr_jax first."""
  def best(**changes):
    return functools.partial(torch_side, **changes)
  sides = {OURS: jax_side, RELEASED: functools.partial(torch_side, released=True), EAGER: best(),
           COMPILED: best(compile_mode="default")}
  if options.device == "cuda":
    sides[f"{COMPILED} with CUDA graphs"] = best(compile_mode="reduce-overhead")
  if options.bfloat16:
    sides[f"{OURS}, bfloat16"] = functools.partial(jax_side, bfloat16=True)
    sides[f"{EAGER}, bfloat16"] = best(bfloat16=True)
    sides[f"{COMPILED}, bfloat16"] = best(bfloat16=True, compile_mode="default")
    if options.device == "cuda":
      sides[f"{COMPILED} with CUDA graphs, bfloat16"] = best(bfloat16=True, compile_mode="reduce-overhead")
  return sides


# ------------------------------------------------------------------------------------------------ the processes


def serve(pipe: Any, name: str, options: argparse.Namespace) -> None:
  """A side's process: builds its programs, then runs what is asked for until the pipe closes."""
  os.environ["JAX_PLATFORMS"] = options.device
  os.environ["JAX_NUM_CPU_DEVICES"] = "1"
  # Several processes share the GPU.
  os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
  programs, found = {}, {"device": "", "first call": {}, "failed": {}}
  try:
    builders, found["device"] = make_sides(options)[name](options)
  except Exception as error:
    builders, found["failed"] = {}, {PLAIN: describe(error), AUGMENTED: describe(error)}
  for program, build in builders.items():
    try:
      start = time.perf_counter()
      programs[program] = build()
      programs[program](options.steps)
      found["first call"][program] = time.perf_counter() - start
    except Exception as error:  # a table with a hole says more than no table
      found["failed"][program] = describe(error)
      programs.pop(program, None)
  pipe.send(found)
  idle_since = time.process_time()
  try:
    while True:
      asked = pipe.recv()
      idle = time.process_time() - idle_since
      start = time.perf_counter()
      programs[asked](options.steps)
      pipe.send((time.perf_counter() - start, idle))
      idle_since = time.process_time()
  except EOFError:
    return


def describe(error: Exception) -> str:
  return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def measure(options: argparse.Namespace) -> dict:
  """Runs all rounds; returns what the JSON file holds."""
  spawn = multiprocessing.get_context("spawn")
  load = os.getloadavg()[0]
  with contextlib.ExitStack() as closing:
    pipes, about = {}, {}
    for name in make_sides(options):
      ours, theirs = spawn.Pipe()
      pipes[name] = closing.enter_context(ours)
      # No daemon: a data loader's workers are its children. It ends when its pipe closes.
      spawn.Process(target=serve, args=(theirs, name, options)).start()
      theirs.close()
      about[name] = ours.recv()
      built = ", ".join(f"{program} {seconds:.0f} s" for program, seconds in about[name]["first call"].items())
      print(f"{name} ({about[name]['device']}): first calls {built}", flush=True)
      for program, reason in about[name]["failed"].items():
        print(f"  {program} failed: {reason}", flush=True)
    seconds, idle = take_turns(pipes, about, options)
  return {
      "options": vars(options), "machine": platform.machine(), "cores": len(os.sched_getaffinity(0)),
      "date": time.strftime("%Y-%m-%d"), "load_before": load, "sides": about, "idle_cpu_seconds": idle,
      "seconds_per_step": {program: {name: times for (name, p), times in seconds.items() if p == program}
                           for program in (PLAIN, AUGMENTED, CHEAP)}}


def take_turns(pipes: dict, about: dict, options: argparse.Namespace) -> tuple[dict, dict]:
  """({(side, program): seconds per step in each counted round}, {side: most CPU time between two turns})."""
  turns = [(name, program) for program in (PLAIN, AUGMENTED, CHEAP) for name in about
           if program in about[name]["first call"]]
  seconds, idle = {turn: [] for turn in turns}, dict.fromkeys(about, 0.0)
  for i in range(options.rounds + 1):
    shift = i % len(turns)
    for name, program in turns[shift:] + turns[:shift]:
      time.sleep(_PAUSE)
      pipes[name].send(program)
      spent, waiting = pipes[name].recv()
      if i > 0:
        seconds[name, program].append(spent / options.steps)
        idle[name] = max(idle[name], waiting)
  return seconds, idle


# --------------------------------------------------------------------------------------------------- the tables


def row(name: str, times: list[float], base: list[float], batch: int) -> str:
  ratios = [t / b for t, b in zip(times, base)]
  middle = statistics.median(times)
  return (f"{name:<48}{1e3 * middle:9.1f} {f'({1e3 * min(times):.1f}-{1e3 * max(times):.1f})':<17}"
          f"{batch / middle:9.0f}{statistics.median(ratios):9.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def report(found: dict) -> str:
  """The tables as text."""
  options, steps = found["options"], found["seconds_per_step"]
  heading = f"{'':<48}{'ms/step':>9} {'(range)':<17}{'images/s':>9}{'ratio':>9} (range)"
  lines = [f"{found['date']}, {options['device']}, {found['cores']} cores, load before: "
           f"{found['load_before']:.1f}",
           f"ResNet-32, batch {options['batch']}, {CLASSES} classes in {CLASSES // TASK_SIZE} heads, later "
           f"task with teacher; median of {options['rounds']} rounds of {options['steps']} steps"]
  titles = {PLAIN: "Without augmentation; ratio = time over gr_jax's",
            AUGMENTED: "Each side with its own augmentation; ratio = time over gr_jax's"}
  for program, title in titles.items():
    lines += ["", title, heading]
    for name, side in found["sides"].items():
      if name in steps[program] and OURS in steps[program]:
        lines.append(row(name, steps[program][name], steps[program][OURS], options["batch"]))
      elif program in side["failed"]:
        lines.append(f"{name:<48} failed: {side['failed'][program]}")
  lines += ["", "The method's own cost in gr_jax; ratio = time over that of plain losses", heading]
  for name in found["sides"]:
    if name in steps[CHEAP] and name in steps[PLAIN]:
      lines += [row(f"{name}: cross-entropy and plain distillation", steps[CHEAP][name], steps[CHEAP][name],
                    options["batch"]),
                row(f"{name}: reweighting and DAKD", steps[PLAIN][name], steps[CHEAP][name], options["batch"])]
  waiting = ", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in found["idle_cpu_seconds"].items())
  return "\n".join([*lines, "", f"Most CPU time spent while waiting for a turn, ms: {waiting}"])


def parse_options() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--steps", type=int, help="of a program in a round; default 3 on the CPU, 200 on a GPU")
  parser.add_argument("--rounds", type=int, default=7, help="that count; one more goes before them")
  parser.add_argument("--workers", type=int,
                      help="of the released step's data loader; default 0 on the CPU, 4 on a GPU")
  parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction,
                      help="also time bfloat16 computation; default: only on a GPU")
  parser.add_argument("--json", help="where to put every measured figure")
  options = parser.parse_args()
  on_gpu = options.device == "cuda"
  for name, on_cpu, otherwise in (("steps", 3, 200), ("workers", 0, 4), ("bfloat16", False, True)):
    if getattr(options, name) is None:
      setattr(options, name, otherwise if on_gpu else on_cpu)
  return options


def main() -> None:
  options = parse_options()
  found = measure(options)
  print(f"\n{report(found)}")
  if options.json:
    with open(options.json, "w") as file:
      json.dump(found, file, indent=1)


if __name__ == "__main__":
  main()
