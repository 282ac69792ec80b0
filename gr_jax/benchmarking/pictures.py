"""How fast pictures of mixed sizes are decoded and reach the device; rows of gr_jax.benchmark."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import PIL.Image

from gr_jax.data import cache, feed, resident, workers
from gr_jax.data.sources import tfds_source
from gr_jax.devices import parallel
from gr_jax.runs import console
from gr_jax.scenario.plan import Call, calls
from gr_jax.training import experiment as experiments
from gr_jax.training.experiment import Experiment

PATHS = ("resident", "prefetch", "stream")
# Pictures that Pillow decodes alone, and that are gathered from the cache.
_SAMPLE = 512


@contextlib.contextmanager
def empty_cache(config: ml_collections.ConfigDict) -> Iterator[ml_collections.ConfigDict]:
  """The config with an empty cache on the disk of the real one, removed afterwards, and with resident pictures."""
  folder = tfds_source.data_folder(config.data_dir)
  place = cache.writable(cache.folders(None if config.cache_dir == "off" else config.cache_dir, folder))
  with tempfile.TemporaryDirectory(prefix="benchmark-", dir=place) as empty:
    yield _changed(config, cache_dir=empty, pictures="resident")


def reading(found: Experiment) -> tuple[dict[str, float], Any, Any]:
  """Decodes the scenario into an empty cache, then opens it as a second start does.

  Returns:
    ({"cold_seconds", "warm_seconds": both splits, "decoded": how many pictures, "decoded_per_core": pictures a second
    and core, all costs included, "pillow_per_core": the same by Pillow alone in this process, "cached_per_second":
    pictures copied out of the cache in a random order, "cache_bytes"}, training pictures, test pictures).
  """
  def load() -> list[Any]:
    return [loading.load(found, split, console.decoding) for split in ("train", "test")]

  cold, (pictures, tests) = _seconds(load)
  warm, (pictures, tests) = _seconds(load)
  rows, _ = resident.flat_rows(found.scenario.train)
  sample = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int))]
  side = pictures.images.shape[1]
  alone, _ = _seconds(lambda: [_pillow(found.source.train.encoded(row), side) for row in sample])
  chosen = np.random.default_rng(0).permutation(len(pictures.labels))[:_SAMPLE]
  # Once before: the first look at a mapped file costs more than copying it.
  copying = [_seconds(lambda: feed.rows_of(pictures, chosen))[0] for _ in range(2)][1]
  count = len(pictures.labels) + len(tests.labels)
  files = pathlib.Path(found.config.cache_dir).rglob("*.npy")
  return ({"cold_seconds": cold, "warm_seconds": warm, "decoded": count,
           "decoded_per_core": count / cold / workers.count(), "pillow_per_core": len(sample) / alone,
           "cached_per_second": len(chosen) / copying, "cache_bytes": sum(path.stat().st_size for path in files)},
          pictures, tests)


def _pillow(encoded: bytes, side: int) -> np.ndarray:
  with PIL.Image.open(io.BytesIO(encoded)) as picture:
    return np.asarray(picture.convert("RGB").resize((side, side), PIL.Image.Resampling.BILINEAR))


def on_their_way(found: Experiment, *, count: int, steps: int) -> dict[str, dict[str, float]]:
  """Path -> pictures a second that reach the device, and that the base task trains on.

  Args:
    found: what is measured.
    count: calls that are timed; one more comes first.
    steps: of one call where it trains; where nothing trains, calls are as long as in a run.

  Returns:
    For each of PATHS {"delivered" (not for resident ones), "trained": pictures a second, "first_call_seconds": until
    the first call's pictures are there, worker processes included}.
  """
  report = {}
  for path in PATHS:
    own = dataclasses.replace(found, config=_changed(found.config, pictures=path))
    pictures = loading.load(own, "train", console.decoding)
    report[path] = {}
    if path != "resident":
      programs = compiled.make_programs(own, pictures)
      waiting, rate = _paced(own, programs, count, lambda call, inputs: jax.block_until_ready(inputs.data))
      report[path] |= {"first_call_seconds": waiting, "delivered": rate}
    short = dataclasses.replace(own, config=_changed(own.config, steps_per_call=steps))
    programs = compiled.make_programs(short, pictures)
    report[path]["trained"] = _paced(short, programs, count, _training(short, programs))[1]
  return report


def _changed(config: ml_collections.ConfigDict, **keys: Any) -> ml_collections.ConfigDict:
  changed = config.copy_and_resolve_references()
  changed.update(keys)
  return changed.lock()


def _training(found: Experiment, programs: experiments.TrainPrograms) -> Callable[[Call, feed.Inputs], None]:
  everywhere = functools.partial(parallel.replicate, devices=found.devices)
  state, facts, root = programs.init(found.root), everywhere(found.plans[0].facts), found.root

  def train(call: Call, inputs: feed.Inputs) -> None:
    nonlocal state
    state, metrics = programs.run_epoch(
        state, None, facts, inputs.data, inputs.pool, root,
        *everywhere((np.int32(call.epoch), inputs.first, inputs.stop, np.float32(1e-3))))
    jax.block_until_ready((state, metrics))

  return train


def _paced(found: Experiment, programs: experiments.TrainPrograms, count: int,
           use: Callable[[Call, feed.Inputs], None]) -> tuple[float, float]:
  """(seconds until the first call is done, pictures a second of the calls after it), in the base task."""
  plan, batch = found.plans[0], found.config.batch_size
  per_epoch = -(-plan.steps_per_epoch // programs.steps_per_call)
  wanted = list(calls(plan, epochs=-(-(count + 1) // per_epoch), steps_per_call=programs.steps_per_call))[:count + 1]
  rows = np.arange(plan.size)
  started = time.perf_counter()
  ends = []
  fed = programs.feed(plan, compiled.pool(rows, found.capacity), found.root, wanted)
  with contextlib.closing(fed) as inputs_of:
    for call, inputs in inputs_of:
      use(call, inputs)
      ends.append(time.perf_counter())
  pictures = sum((call.stop - call.first) * batch for call in wanted[1:])
  return ends[0] - started, pictures / (ends[-1] - ends[0])


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
  started = time.perf_counter()
  result = work()
  return time.perf_counter() - started, result


def lines(report: dict[str, Any], start: dict[str, float]) -> Iterable[str]:
  """The rows of the table, as Markdown.

  Args:
    report: {**reading(...), "paths": on_their_way(...)}.
    start: {"with", "without"}: seconds until the first step, with and without a cache that is there.
  """
  yield from (
      f"decoding: {report['decoded']} pictures in {report['cold_seconds']:.1f} s, "
      f"{report['decoded_per_core']:.0f} a second and core; Pillow alone {report['pillow_per_core']:.0f}; out of the "
      f"cache {report['cached_per_second']:.0f} a second; the cache takes {report['cache_bytes'] / 1e9:.2f} GB",
      f"first step: after {start['with']:.1f} s with the cache, {start['without']:.1f} s without it", "",
      "| pictures | reach the device, a second | the first ones after, s | trained in the base task, a second |",
      "|---|---|---|---|")
  for path, row in report["paths"].items():
    there = [f"{row[name]:.{digits}f}" if name in row else "-"
             for name, digits in (("delivered", 0), ("first_call_seconds", 1))]
    yield f"| {path} | {' | '.join(there)} | {row['trained']:.1f} |"
