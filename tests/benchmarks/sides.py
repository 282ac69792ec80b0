"""The sides that against_torch.py compares, each in a process of its own: python sides.py, asked over its stdin.

Only the side that a process is asked for imports JAX or PyTorch.
"""

from __future__ import annotations

import argparse
import functools
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import interpreters
import numpy as np

CLASSES, TASK_SIZE, SIDE = 100, 10, 32
FIRST = CLASSES - TASK_SIZE
MEAN, STD = (0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)
LEARNING_RATE = 0.1
# Exemplars a class.
MEMORY = 20

PLAIN, AUGMENTED, CHEAP = "plain", "augmented", "cheap"
BFLOAT16 = ", bfloat16"
OURS, RELEASED, EAGER, COMPILED = "gr_jax", "released step", "best step, eager", "best step, compiled"


def make_counts() -> np.ndarray:
  """Long-tailed images of each class, dealt out at random; the classes from FIRST on are the task's own."""
  from gr_jax import scenario
  return np.random.default_rng(0).permutation(scenario.long_tailed_counts(CLASSES, 500, 100))


def make_pictures(present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(images [images, 32, 32, 3] uint8, labels int32) of what is present in the task; noise."""
  labels = np.repeat(np.arange(CLASSES, dtype=np.int32), present.astype(int))
  images = np.random.default_rng(1).integers(0, 256, (len(labels), SIDE, SIDE, 3), np.uint8)
  return images, labels


def normalised(images: np.ndarray) -> np.ndarray:
  return (images.astype(np.float32) / 255 - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)


# ---------------------------------------------------------------------------------------------------- the sides
# Each returns (program name -> what builds it: run(steps), which returns when the device is done; what it runs on).


def jax_side(options: argparse.Namespace, *, bfloat16: bool = False):
  from gr_jax.devices import convolution_library, processor
  # As every command does, before JAX starts.
  convolution_library.enable()
  import jax
  import jax.numpy as jnp

  from gr_jax import methods, models, optimizer, origin, scenario
  from gr_jax.data import augment
  from gr_jax.data.arrays import Data, Pool
  from gr_jax.devices import parallel
  from gr_jax.models import folding
  from gr_jax.scenario import plan
  from gr_jax.training.program import Window, make_program
  from gr_jax.training.state import TrainState
  from gr_jax.training.step import make_train_step

  devices = jax.devices()[:1]
  replicate = functools.partial(parallel.replicate, devices=devices)
  context = plan.make_context(make_counts(), scenario.Task(FIRST, CLASSES), FIRST // TASK_SIZE, per_class=MEMORY)
  images, labels = make_pictures(context.counts)
  # TF32 on a GPU, as PyTorch's convolutions are there.
  exact = "tf32" if devices[0].platform == "gpu" else "float32"
  model = models.make_backbone("resnet32", platform=devices[0].platform, axis_name=parallel.AXIS,
                               precision="bfloat16" if bfloat16 else exact)
  # A rate for each call, which is an epoch of its own: that of building, and one in every round.
  tx = optimizer.sgd((LEARNING_RATE,) * (options.rounds + 2), momentum=0.9, weight_decay=5e-4)

  def draw(method, seed, columns):
    variables = model.init(jax.random.key(seed), jnp.zeros((1, SIDE, SIDE, 3)), train=False)
    empty = method.head.init(model.num_features, CLASSES, CLASSES // TASK_SIZE)
    head = method.head.renew(jax.random.key(seed), empty, columns)
    return {"params": {"backbone": variables["params"], "classifier": head},
            "batch_stats": variables["batch_stats"]}

  def program(name: str) -> Callable[[int], None]:
    changes = {"reweighting": "none", "distillation": "kd"} if name == CHEAP else {}
    method = methods.make("gr", changes, memory=MEMORY)
    stage, = method.stages
    view = augment.make_augment("pad_resized_crop_flip", image_size=SIDE, mean=MEAN, std=STD)
    step = make_train_step(model=model, method=method, stage=stage, tx=tx, axis_name=parallel.AXIS,
                           augment=view if name == AUGMENTED else None)
    run = make_program(step, stage=stage, number=0, batch_size=options.batch, devices=devices)
    start = draw(method, 0, context.seen)
    state = replicate(TrainState(jnp.int32(0), start["params"], start["batch_stats"], tx.init(start["params"]),
                                 stage.rule.init(start["params"]["classifier"])))
    stored = images if name == AUGMENTED else normalised(images)
    data = Data(stored, np.full((len(labels), 2), SIDE, np.int32), labels)
    pool = Pool(np.arange(len(labels), dtype=np.int32), np.int32(len(labels)))
    teacher = folding.fold_teacher(draw(method, 1, context.old))
    *fixed, (pool, root) = replicate((teacher, context, data, (pool, jax.random.key(0))))
    epoch = 0

    def advance(steps: int) -> None:
      nonlocal state, epoch
      window = Window(pool, root, *replicate((np.int32(epoch), np.int32(0), np.int32(steps))))
      state, _ = run(state, *fixed, window)
      jax.block_until_ready(state)
      epoch += 1

    return advance

  return {name: functools.partial(program, name) for name in (PLAIN, AUGMENTED, CHEAP)}, \
      {"device": devices[0].device_kind, "processor": processor.describe(), "commit": origin.commit(),
       "jax": jax.__version__,
       "convolutions": convolution_library.describe() if devices[0].platform == "cpu" else None}


def torch_side(options: argparse.Namespace, *, released: bool = False, bfloat16: bool = False,
               compile_mode: str | None = None):
  import torch
  import torch_steps

  device = torch.device(options.device)
  if device.type == "cuda":
    # Convolutions use TF32 by default there, products do not; XLA uses it for both.
    torch.set_float32_matmul_precision("high")
  task = torch_steps.task_facts(make_counts(), FIRST, CLASSES, per_class=MEMORY)
  images, labels = make_pictures(task.counts)
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
      return torch_steps.ReleasedStep(backbone(), heads(tasks), task, (backbone(), heads(tasks - 1)),
                                      learning_rate=LEARNING_RATE, bfloat16=bfloat16)
    view = torch_steps.DeviceAugment(MEAN, STD, device) if name == AUGMENTED else None
    return torch_steps.BestStep(
        backbone(), whole_head(task.old | task.new), task, (backbone(), whole_head(task.old)),
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
      {"device": kind, "torch": torch.__version__}


class Side(NamedTuple):
  """A row of the tables.

  Attributes:
    framework: interpreters.JAX or TORCH.
    bfloat16: whether it computes in bfloat16; else in float32.
    changes: further arguments of torch_side.
  """
  framework: str
  bfloat16: bool = False
  changes: dict[str, Any] = {}

  def build(self, options: argparse.Namespace) -> tuple[dict[str, Callable], dict[str, Any]]:
    make = jax_side if self.framework == interpreters.JAX else torch_side
    return make(options, bfloat16=self.bfloat16, **self.changes)


def make_sides(options: argparse.Namespace) -> dict[str, Side]:
  """The sides that a run compares, in the order of the tables; gr_jax first."""
  sides = {}
  for bfloat16 in (False, True) if options.bfloat16 else (False,):
    best = functools.partial(Side, interpreters.TORCH, bfloat16)
    rows = {OURS: Side(interpreters.JAX, bfloat16), RELEASED: best({"released": True}), EAGER: best(),
            COMPILED: best({"compile_mode": "default"})}
    if options.device == "cuda":
      rows[f"{COMPILED} with CUDA graphs"] = best({"compile_mode": "reduce-overhead"})
    sides |= {name + BFLOAT16 * bfloat16: side for name, side in rows.items()}
  return sides


# -------------------------------------------------------------------------------------------------- the process


class Server:
  """Builds the programs of one side, then runs what it is asked for."""

  def __init__(self):
    self._programs: dict[str, Callable[[int], None]] = {}
    self._steps, self._idle_since = 0, 0.0

  def __call__(self, question: dict[str, Any]) -> dict[str, Any]:
    """{"side", "options"} -> what was built; {"run": program} -> seconds, and CPU seconds spent since the last turn."""
    idle = time.process_time() - self._idle_since
    answer = self._build(**question) if "side" in question else self._run(question["run"], idle)
    self._idle_since = time.process_time()
    return answer

  def _build(self, side: str, options: dict[str, Any]) -> dict[str, Any]:
    chosen = argparse.Namespace(**options)
    self._steps, built = chosen.steps, {"about": {"python": platform.python_version()}, "first call": {}, "failed": {}}
    try:
      builders, about = make_sides(chosen)[side].build(chosen)
      built["about"] |= about
    except Exception as error:
      builders, built["failed"] = {}, {PLAIN: describe(error), AUGMENTED: describe(error)}
    for name, build in builders.items():
      try:
        start = time.perf_counter()
        program = build()
        program(self._steps)
        self._programs[name], built["first call"][name] = program, time.perf_counter() - start
      except Exception as error:  # a table with a hole says more than no table
        built["failed"][name] = describe(error)
    return built

  def _run(self, name: str, idle: float) -> dict[str, float]:
    start = time.perf_counter()
    self._programs[name](self._steps)
    return {"seconds": time.perf_counter() - start, "idle": idle}


def describe(error: Exception) -> str:
  return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


if __name__ == "__main__":
  interpreters.serve(Server())
