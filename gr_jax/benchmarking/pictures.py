"""How fast pictures of mixed sizes are decoded and reach the device; rows of gr_jax.benchmark."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import PIL.Image

from gr_jax.config import Config
from gr_jax.data import cache, feed, resident, workers
from gr_jax.data.sources import tfds_source
from gr_jax.devices import parallel
from gr_jax.runs import console
from gr_jax.scenario.plan import Chunk, chunks
from gr_jax.training import pictures as loading
from gr_jax.training.experiment import Experiment
from gr_jax.training.program import Window
from gr_jax.training.programs import Programs, make_programs, pool

PATHS = ("resident", "prefetch", "stream")
# Number of pictures decoded with Pillow only, and read from the cache.
_SAMPLE = 512


@contextlib.contextmanager
def empty_cache(config: Config) -> Iterator[Config]:
  """The config with resident pictures and a temporary, empty cache on the same disk as the real one."""
  folder = tfds_source.data_folder(config.data_dir)
  place = cache.writable(cache.folders(None if config.cache_dir == "off" else config.cache_dir, folder))
  with tempfile.TemporaryDirectory(prefix="benchmark-", dir=place) as empty:
    yield dataclasses.replace(config, cache_dir=empty, pictures="resident")


def reading(experiment: Experiment) -> tuple[dict[str, float], Any, Any]:
  """Decodes the scenario into an empty cache, then opens it as a second start does.

  Returns:
    ({"cold_seconds", "warm_seconds": for both splits, "decoded": number of pictures, "decoded_per_core": pictures per
    second and core, all costs included, "pillow_per_core": the same for Pillow only, in this process,
    "cached_per_second": pictures read from the cache in random order, "cache_bytes"}, training pictures, test
    pictures).
  """
  def load() -> list[Any]:
    return [loading.load(experiment, split, console.decoding) for split in ("train", "test")]

  cold, (pictures, tests) = _seconds(load)
  warm, (pictures, tests) = _seconds(load)
  rows, _ = resident.flat_rows(experiment.scenario.train)
  sample = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int))]
  side = pictures.images.shape[1]
  alone, _ = _seconds(lambda: [_pillow(experiment.source.train.encoded(row), side) for row in sample])
  chosen = np.random.default_rng(0).permutation(len(pictures.labels))[:_SAMPLE]
  # The second run counts: the first access to a mapped file costs more than copying.
  copying = [_seconds(lambda: feed.rows_of(pictures, chosen))[0] for _ in range(2)][1]
  count = len(pictures.labels) + len(tests.labels)
  # empty_cache has set it.
  assert experiment.config.cache_dir is not None
  files = pathlib.Path(experiment.config.cache_dir).rglob("*.npy")
  return ({"cold_seconds": cold, "warm_seconds": warm, "decoded": count,
           "decoded_per_core": count / cold / workers.count(), "pillow_per_core": len(sample) / alone,
           "cached_per_second": len(chosen) / copying, "cache_bytes": sum(path.stat().st_size for path in files)},
          pictures, tests)


def _pillow(encoded: bytes, side: int) -> np.ndarray:
  with PIL.Image.open(io.BytesIO(encoded)) as picture:
    return np.asarray(picture.convert("RGB").resize((side, side), PIL.Image.Resampling.BILINEAR))


def on_their_way(experiment: Experiment, *, count: int, steps: int) -> dict[str, dict[str, float]]:
  """Path -> pictures per second that reach the device, and that the base task trains on.

  Args:
    experiment: the one to measure.
    count: chunks to time, after one that is not timed.
    steps: per chunk when training; without training, chunks are as long as in a run.

  Returns:
    For each of PATHS {"delivered" (not for "resident"), "trained": pictures per second, "first_call_seconds": until
    the first chunk's pictures have arrived, including the start of worker processes}.
  """
  report = {}
  for path in PATHS:
    on_path = dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, pictures=path))
    pictures = loading.load(on_path, "train", console.decoding)
    report[path] = {}
    if path != "resident":
      programs = make_programs(on_path, pictures)
      waiting, rate = _paced(on_path, programs, count, lambda chunk, inputs: jax.block_until_ready(inputs.data))
      report[path] |= {"first_call_seconds": waiting, "delivered": rate}
    short = dataclasses.replace(on_path, config=dataclasses.replace(on_path.config, steps_per_call=steps))
    programs = make_programs(short, pictures)
    report[path]["trained"] = _paced(short, programs, count, _training(short, programs))[1]
  return report


def _training(experiment: Experiment, programs: Programs) -> Callable[[Chunk, feed.Inputs], None]:
  replicate = functools.partial(parallel.replicate, devices=experiment.devices)
  root, plan = experiment.root, experiment.plans[0].stages[0]
  state, context = programs.init(root), replicate(plan.context)

  def train(chunk: Chunk, inputs: feed.Inputs) -> None:
    nonlocal state
    window = Window(inputs.pool, root, *replicate((np.int32(chunk.epoch), inputs.first, inputs.stop)))
    state, metrics = programs.stages[0].run(state, None, context, inputs.data, window)
    jax.block_until_ready((state, metrics))

  return train


def _paced(experiment: Experiment, programs: Programs, count: int,
           use: Callable[[Chunk, feed.Inputs], None]) -> tuple[float, float]:
  """(seconds until the first chunk is done, pictures per second after it), in the base task's first stage."""
  plan, batch = experiment.plans[0].stages[0], experiment.config.batch_size
  per_epoch = -(-plan.steps_per_epoch // programs.steps_per_call)
  # More epochs than the plan has, if needed.
  longer = dataclasses.replace(plan, epochs=-(-(count + 1) // per_epoch))
  wanted = list(chunks(longer, steps_per_call=programs.steps_per_call))[:count + 1]
  among = pool(np.arange(plan.size), experiment.capacity)
  started = time.perf_counter()
  ends = []
  with contextlib.closing(programs.feed(plan, among, experiment.root, wanted)) as fed:
    for chunk, inputs in fed:
      use(chunk, inputs)
      ends.append(time.perf_counter())
  pictures = sum((chunk.stop - chunk.first) * batch for chunk in wanted[1:])
  return ends[0] - started, pictures / (ends[-1] - ends[0])


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
  started = time.perf_counter()
  result = work()
  return time.perf_counter() - started, result
