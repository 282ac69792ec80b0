"""How pictures reach the train program: they stay on the device, or are transferred one call ahead.

All paths use the same rows in the same order with the same keys: the order of an epoch comes from data.order, and the
step draws its boxes. So resident and prefetched runs are bit-identical on one CPU device. When pictures are
transferred, each device receives only its rows, and each process reads only the rows of its devices.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gr_jax.data.arrays import Data, Pool
from gr_jax.data.order import epoch_of
from gr_jax.devices import container, parallel
from gr_jax.sampling import Sampler
from gr_jax.scenario.plan import Chunk, StagePlan
from gr_jax.typing import AnyArray

MEMINFO = pathlib.Path("/proc/meminfo")
# In place of a number of bytes. It is below any, so it is the smallest of several processes' too.
UNKNOWN = -1

# Bytes of pictures transferred for one call, at most; those of the next call are prepared at the same time.
_CHUNK_BYTES = 2**29
# Share of the free memory for pictures; the rest is for activations, programs and parameters.
_SHARE = 0.6


class Inputs(NamedTuple):
  """Inputs of a call of the train program: it runs steps first..stop-1 over the rows of `pool` in `data`.

  If pictures are transferred, `data` is split over the devices and holds steps 0..stop-1; `pool` is empty. A stage that
  sees no pictures gets the carry as `data`.
  """
  data: Any
  pool: Pool
  first: np.int32
  stop: np.int32


# (plan of a stage, NumPy pool, root, chunks) -> each chunk with its inputs.
Feed = Callable[[StagePlan, Pool, jax.Array, Iterable[Chunk]], Generator[tuple[Chunk, Inputs], None, None]]
# (rows of each call [steps, batch], first global step of each call, root, task) -> iterator over the pictures of
# each call: arrays [this process's devices, steps * batch / devices, ...], see parallel.shares.
Read = Callable[[Sequence[np.ndarray], Sequence[int], jax.Array, int], Generator[Data, None, None]]


def free_bytes(device: jax.Device) -> int:
  """Free memory of a device in bytes; on a CPU, what the machine and its container have free, divided by its devices.

  UNKNOWN where the system does not tell.
  """
  memory_stats = device.memory_stats() or {}
  if "bytes_limit" in memory_stats:
    return memory_stats["bytes_limit"] - memory_stats["bytes_in_use"]
  sizes = [size for size in (_machine_bytes(), container.free_memory()) if size is not None]
  return min(sizes) // jax.local_device_count() if sizes else UNKNOWN


def _machine_bytes() -> int | None:
  """Memory of the machine that programs can have; None where the system does not tell.

  Elsewhere than on Linux (macOS) only the whole memory is known, and half of it counts as free. Windows does not tell.
  """
  lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
  for line in lines:
    if line.startswith("MemAvailable:"):
      return int(line.split()[1]) * 1024
  # Names that a system lacks are one of these errors.
  with contextlib.suppress(AttributeError, ValueError, OSError):
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    # A number that the system does not have is -1.
    if pages > 0 and size > 0:
      return pages * size // 2
  return None


def choose(wanted: str, needed: int, free: int) -> tuple[str, str]:
  """Chooses the path; returns it with a log line that says why.

  Args:
    wanted: "resident", "prefetch", "stream", or "auto": resident if the pictures are known to fit, else prefetch.
    needed, free: bytes of all pictures, and free bytes on the device or UNKNOWN.
  """
  room = "free memory not known" if free == UNKNOWN else f"{free / 1e9:.2f} GB free on the device"
  sizes = f"{needed / 1e9:.2f} GB of pictures, {room}"
  if wanted != "auto":
    return wanted, f"pictures: {wanted}, as set in the config ({sizes})"
  if free == UNKNOWN:
    return "prefetch", f"pictures: prefetch ({sizes}; if they fit, set --config.pictures=resident)"
  path = "resident" if needed <= _SHARE * free else "prefetch"
  return path, f"pictures: {path} ({sizes}; resident may use at most {_SHARE:.0%} of that)"


def steps_together(steps_per_call: int, batch_bytes: int) -> int:
  """Steps per call when pictures are transferred."""
  return max(1, min(steps_per_call, _CHUNK_BYTES // batch_bytes))


def resident(data: Data, devices: Sequence[jax.Device]) -> Feed:
  """A feed for which all pictures stay on the devices; every call reads the same arrays."""
  def feed(plan, pool, root, chunks):
    there = parallel.replicate(pool, devices)
    for chunk in chunks:
      yield chunk, Inputs(data, there, np.int32(chunk.first), np.int32(chunk.stop))

  return feed


def without_pictures(carry: Any, chunks: Iterable[Chunk], devices: Sequence[jax.Device]
                     ) -> Generator[tuple[Chunk, Inputs], None, None]:
  """The inputs of a stage that draws its features from the carry (methods.base.Stage.source)."""
  nothing = parallel.replicate(Pool(np.zeros(0, np.int32), np.int32(0)), devices)
  for chunk in chunks:
    yield chunk, Inputs(carry, nothing, np.int32(chunk.first), np.int32(chunk.stop))


def travelling(read: Read, *, samplers: Sequence[Sampler], steps: int, devices: Sequence[jax.Device]) -> Feed:
  """A feed in which a thread reads and transfers the pictures of the next call while the current call runs.

  Args:
    read: see `Read`.
    steps: the largest number per call; shorter chunks are padded to it, so that one program serves all.
    samplers: of the method's stages.
    devices: that receive the pictures.
  """
  nothing = parallel.replicate(Pool(np.zeros(0, np.int32), np.int32(0)), devices)
  prepare = jax.jit(epoch_of, static_argnums=(0, 4))

  def feed(plan, pool, root, chunks):
    sampler, batch_size, chunks, epochs = samplers[plan.index], plan.batch_size, list(chunks), {}
    count = steps * batch_size // len(devices)
    # Made local to this process: a thread must not start programs that span several processes.
    bits = np.asarray(jax.random.key_data(root))
    # It takes NumPy arrays too, which its annotation leaves out.
    root = jax.random.wrap_key_data(bits, impl=jax.random.key_impl(root))  # pyright: ignore[reportArgumentType]
    for epoch in sorted({chunk.epoch for chunk in chunks}):
      epochs[epoch] = jax.tree.map(np.asarray, prepare(sampler, pool, root, plan.context, plan.index, epoch))
    rows = [sampler.pick(epochs[chunk.epoch], np.arange(chunk.first * batch_size, chunk.stop * batch_size))
            .reshape(-1, batch_size) for chunk in chunks]
    starts = [plan.first_step + chunk.epoch * plan.steps_per_epoch + chunk.first for chunk in chunks]
    pictures = read(rows, starts, root, plan.number)
    try:
      with concurrent.futures.ThreadPoolExecutor(1) as thread:
        send = lambda: parallel.split(padded(next(pictures), count, axis=1), devices)
        coming = thread.submit(send) if chunks else None
        for number, chunk in enumerate(chunks):
          assert coming is not None
          data = coming.result()
          coming = thread.submit(send) if number + 1 < len(chunks) else None
          yield chunk, Inputs(data, nothing, np.int32(0), np.int32(chunk.stop - chunk.first))
    finally:
      pictures.close()

  return feed


def gather(pictures: Data, mine: Callable[[int], np.ndarray]) -> Read:
  """Reads pictures from the memory-mapped cache or any array in host memory.

  Args:
    pictures: all of them.
    mine: images of a step -> the positions of this process's devices among them, see parallel.shares.
  """
  def read(rows, starts, root, task):
    for chosen in rows:
      yield rows_of(pictures, parallel.by_device(chosen, mine(chosen.shape[1])))

  return read


def rows_of(pictures: Data, rows: np.ndarray | slice) -> Data:
  """Copies these rows."""
  return Data(*(np.asarray(array[rows]) for array in pictures))


def padded(data: Data, count: int, axis: int = 0) -> Data:
  """Pads with zeros to `count` rows along an axis."""
  missing = count - data.labels.shape[axis]
  if not missing:
    return data

  def pad(array: AnyArray) -> np.ndarray:
    return np.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)])
  # Sizes are at least 1, since they are divided by.
  return Data(pad(data.images), np.maximum(pad(data.sizes), 1), pad(data.labels))
