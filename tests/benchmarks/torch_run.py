"""A whole run in PyTorch in the structure of the authors' release, to measure gr_jax's against.

  python tests/benchmarks/torch_run.py --config=configs/cifar100_lt.py [--epochs=3] [--milestones=80,120]
      [--data_dir=..] [--precision=float32|bfloat16] [--device=cpu|cuda] [--workers=0] [--json=..]

Written from docs/method.md. The scenario and its pictures are drawn by gr_jax's own code, so both runs learn the
same images in the same tasks. Everything else is PyTorch: a linear head for each task, `ReleasedStep`, pictures
one at a time through a DataLoader with Pillow, herding class by class. It takes configs whose data set holds
colour pictures of one size, with the default switches of the method. JAX is not needed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import copy
import importlib.util
import json
import os
import pathlib
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch_steps
from torch import nn

# What ReleasedStep computes: a config that asks for something else is refused.
_FIXED = {"method": "gr", "schedule": "steps", "augmentation": "pad_resized_crop_flip"}
# The same of method_options, all of them gr_jax's defaults.
_FIXED_OPTIONS = {"reweighting": "dgr", "prior": True, "distillation": "dakd", "task_ratio": "release",
                  "temperature": torch_steps.TEMPERATURE}
# Options that a config may set, and gr_jax's defaults.
_OPTIONS = {"distillation_weight": 0.7, "attenuation_gamma": 1.0}
_FLOAT32, _BFLOAT16 = "float32", "bfloat16"


class Clock:
  """Seconds spent in each part of a run."""

  def __init__(self):
    self.seconds: dict[str, float] = defaultdict(float)

  @contextlib.contextmanager
  def measure(self, part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    self.seconds[part] += time.perf_counter() - start


class Network:
  """The backbone and a list of heads that grows by one for each task."""

  def __init__(self, depth: int, device: torch.device):
    self.backbone, self.heads, self.device = torch_steps.Backbone(depth).to(device), [], device
    for module in self.backbone.modules():
      if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

  def grow(self, classes: int) -> None:
    # PyTorch draws a new layer as docs/method.md section 3 asks: U(-1/sqrt(d), 1/sqrt(d)).
    self.heads.append(nn.Linear(self.backbone.num_features, classes, device=self.device))

  def teacher(self) -> tuple[torch_steps.Backbone, list[nn.Linear]] | None:
    """A copy; None before the first task."""
    return copy.deepcopy((self.backbone, self.heads)) if self.heads else None


def task_accuracies(data: dict[str, Any], counts: np.ndarray, tasks: Sequence[tuple[int, int]], config: Any, *,
                    device: torch.device, bfloat16: bool = False, workers: int = 0, clock: Clock | None = None,
                    say: Callable[[str], None] = lambda line: None) -> list[float]:
  """Learns all tasks; returns the accuracy over the seen classes after each, 0 to 1.

  Args:
    data: "train" and "test": (images [images, side, side, 3] uint8, labels [images] in learning order), class
      after class; "mean", "std" of the channels.
    counts: [classes] int, training images of each class.
    tasks: (first class, stop) of each.
    config: as gr_jax's config files give it; `seed` is that of PyTorch and of NumPy here.
    device, bfloat16: what computes, and whether under autocast.
    workers: of the data loaders; 0: in this process.
    clock: takes the seconds of training, evaluation and selection.
    say: takes a line for each task.
  """
  clock, options = clock or Clock(), {**_OPTIONS, **config.method_options}
  torch.manual_seed(config.seed)
  np.random.seed(config.seed)
  network = Network(int(config.model.removeprefix("resnet")), device)
  look = {"device": device, "bfloat16": bfloat16}

  def pictures(split: str, augment: bool) -> torch_steps.HostPictures:
    return torch_steps.HostPictures(*data[split], data["mean"], data["std"], augment=augment)

  def loader(dataset: torch_steps.HostPictures, rows: Sequence[int], batch: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(dataset, batch_size=batch, sampler=rows, num_workers=workers,
                                       worker_init_fn=_seed_worker, pin_memory=device.type == "cuda")

  augmented, plain, tests = pictures("train", True), pictures("train", False), pictures("test", False)
  stops, exemplars, accuracies = np.cumsum(counts), [], []
  for number, (first, stop) in enumerate(tasks):
    # For each seen class the rows that are there: its exemplars, or all its images.
    present = [*exemplars, *(np.arange(stops[j] - counts[j], stops[j]) for j in range(first, stop))]
    rows = np.concatenate(present)
    with clock.measure("training"):
      task = torch_steps.task_facts(counts, first, stop, per_class=config.memory.per_class,
                                    weight_scale=options["distillation_weight"],
                                    gamma=options["attenuation_gamma"])
      teacher = network.teacher()
      network.grow(stop - first)
      step = torch_steps.ReleasedStep(
          network.backbone, network.heads, task, teacher, learning_rate=config.learning_rate,
          momentum=config.momentum, weight_decay=config.weight_decay, bfloat16=bfloat16)
      for epoch in range(config.epochs):
        finished = sum(epoch >= milestone for milestone in config.milestones)
        for group in step.optimizer.param_groups:
          group["lr"] = config.learning_rate * config.learning_rate_decay**finished
        order = np.random.permutation(rows)
        # The last batch is filled from the front, as in gr_jax: the same number of pictures on both sides.
        filled = np.resize(order, -(-len(order) // config.batch_size) * config.batch_size)
        for images, labels in loader(augmented, filled.tolist(), config.batch_size):
          losses = step(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
      loss = float(losses.cross_entropy + losses.distillation)
    if not np.isfinite(loss):
      raise FloatingPointError(f"the loss is {loss} at the end of task {number + 1}")
    with clock.measure("evaluation"):
      seen = np.flatnonzero(tests.labels < stop).tolist()
      accuracies.append(accuracy(network, loader(tests, seen, config.evaluation_block), **look))
    with clock.measure("selection"):
      vectors = features(network.backbone, loader(plain, rows.tolist(), config.evaluation_block), **look)
      parts = torch.split(vectors, [len(kept) for kept in present])
      exemplars = [kept[herd(part, config.memory.per_class)] for kept, part in zip(present, parts)]
    say(f"task {number + 1}/{len(tasks)}: accuracy {100 * accuracies[-1]:.2f} %, loss of the last step {loss:.3f}")
  return accuracies


def _seed_worker(worker: int) -> None:
  # A worker's NumPy would draw what its parent's, and every other worker's, draws.
  np.random.seed(torch.initial_seed() % 2**32)


@torch.no_grad()
def accuracy(network: Network, batches: Any, *, device: torch.device, bfloat16: bool) -> float:
  """Share of pictures whose largest logit among the classes of all heads is that of their own class."""
  network.backbone.eval()
  correct = looked_at = 0
  for images, labels in batches:
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
      encoded = network.backbone(images.to(device))
    logits = torch.cat([head(encoded) for head in network.heads], dim=1)
    correct += (logits.argmax(1).cpu() == labels).sum().item()
    looked_at += len(labels)
  return correct / looked_at


@torch.no_grad()
def features(backbone: torch_steps.Backbone, batches: Any, *, device: torch.device, bfloat16: bool) -> torch.Tensor:
  """[pictures, features] float32 in evaluation mode, on the host."""
  backbone.eval()
  blocks = []
  for images, _ in batches:
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
      blocks.append(backbone(images.to(device)).cpu())
  return torch.cat(blocks)


def herd(features: torch.Tensor, m: int) -> list[int]:
  """Rows of features [n, d] in the order in which herding picks them, min(m, n) of them (docs/method.md section 6)."""
  rows = features.double()
  norms = rows.norm(dim=1, keepdim=True)
  rows = rows / torch.where(norms > 0, norms, 1.0)
  mean, picked_sum, picks = rows.mean(0), torch.zeros(rows.shape[1], dtype=torch.float64), []
  for k in range(min(m, len(rows))):
    distances = (mean - (picked_sum + rows) / (k + 1)).square().sum(1)
    distances[picks] = torch.inf
    # The first of equal ones, which argmin does not promise.
    picks.append(int((distances == distances.min()).nonzero()[0]))
    picked_sum += rows[picks[-1]]
  return picks


# -------------------------------------------------------------------------------------------------- the command


def load_config(path: str) -> Any:
  """What get_config() of a config file returns, unlocked.

  Raises:
    SystemExit: it asks for what this run does not do.
  """
  spec = importlib.util.spec_from_file_location("config_file", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config().unlock()
  wrong = [f"{key} = {config[key]!r}" for key, value in _FIXED.items() if config[key] != value]
  wrong += [f"method_options.{key} = {config.method_options[key]!r}" for key, value in _FIXED_OPTIONS.items()
            if config.method_options.get(key, value) != value]
  if wrong or config.memory.selection != "herding":
    raise SystemExit(f"error: {path} has {', '.join(wrong) or 'memory.selection other than herding'}; the PyTorch run "
                     f"does only what configs/cifar100_lt.py asks for")
  return config


def load_data(config: Any) -> tuple[dict[str, Any], np.ndarray, list[tuple[int, int]], str]:
  """(data, counts, tasks as `task_accuracies` takes them, digest of the scenario), from the prepared records."""
  from gr_jax import scenario
  from gr_jax.data.sources import catalogue
  source = catalogue.load(config.dataset, config.data_dir)
  drawn = scenario.make_scenario(
      labels=source.train.labels, ids=source.train.ids, class_names=source.class_names, properties=source.properties,
      validation_fraction=config.validation_fraction, **config.scenario.to_dict())

  def decode(split: Any, rows_of_class: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    rows = [int(row) for rows in rows_of_class for row in rows]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      return (np.stack(list(pool.map(split.image, rows))),
              np.repeat(np.arange(len(rows_of_class)), [len(rows) for rows in rows_of_class]))

  tests = [np.flatnonzero(source.test.labels == label) for label in drawn.class_order]
  data = {"train": decode(source.train, drawn.train), "test": decode(source.test, tests), "mean": source.mean,
          "std": source.std}
  return data, drawn.counts, [(task.first, task.stop) for task in drawn.tasks], drawn.digest


def run(options: argparse.Namespace) -> dict[str, Any]:
  """The whole run; returns what the JSON file holds."""
  config, clock, device = load_config(options.config), Clock(), torch.device(options.device)
  for key in ("epochs", "milestones", "data_dir", "seed"):
    if getattr(options, key) is not None:
      config[key] = getattr(options, key)
  if device.type == "cuda":
    # Convolutions use TF32 by default there, products do not; XLA uses it for both.
    torch.set_float32_matmul_precision("high")
  with clock.measure("loading"):
    data, counts, tasks, digest = load_data(config)
  accuracies = task_accuracies(
      data, counts, tasks, config, device=device, bfloat16=options.precision == _BFLOAT16, workers=options.workers,
      clock=clock, say=lambda line: print(line, flush=True))
  return {"python": platform.python_version(), "torch": torch.__version__, "precision": options.precision,
          "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads",
          "workers": options.workers, "scenario_digest": digest, "task_accuracies": accuracies,
          "seconds": dict(clock.seconds)}


def milestones(text: str) -> tuple[int, ...]:
  """"80,120" -> (80, 120); "" -> ()."""
  return tuple(int(part) for part in text.split(",") if part)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", required=True)
  parser.add_argument("--epochs", type=int, help="of a task; default: the config's")
  parser.add_argument("--milestones", type=milestones, help="joined by commas; default: the config's")
  parser.add_argument("--data_dir", help="TFDS's data folder; default: TFDS_DATA_DIR, else TFDS's own")
  parser.add_argument("--seed", type=int)
  parser.add_argument("--precision", choices=(_FLOAT32, _BFLOAT16), default=_FLOAT32)
  parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
  parser.add_argument("--workers", type=int, default=0, help="of the data loaders; 0: in the main process")
  parser.add_argument("--json", help="where to put what was found")
  options = parser.parse_args()
  record = run(options)
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  main()
