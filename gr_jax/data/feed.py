"""How pictures reach the train program: they stay on the device, or travel there a call ahead of it.

All paths take the same rows in the same order under the same keys: the order of an epoch comes from data.order,
and the step draws its boxes itself. So resident and prefetched runs are equal to the bit on one CPU device. Of pictures
that travel, each device receives the rows that it works on, and each process reads those of its own devices.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from gr_jax.data.arrays import Data, Pool
from gr_jax.data.order import epoch_order
from gr_jax.devices import parallel
from gr_jax.scenario.plan import Chunk, StagePlan

# Pictures of one call that travel together; the next call's are made ready beside them.
_CHUNK_BYTES = 2**29
# Of the free memory; the rest is for activations, programs, and parameters.
_SHARE = 0.6


class Inputs(NamedTuple):
  """What a call of the train program reads: steps first..stop-1 of the rows of `pool` in `data`.

  Where pictures travel: steps 0..stop-1 of data that are split over the devices; `pool` is empty.
  """
  data: Data
  pool: Pool
  first: np.int32
  stop: np.int32


# (plan of a stage, NumPy pool, root, chunks) -> each chunk with its inputs.
Feed = Callable[[StagePlan, Pool, jax.Array, Iterable[Chunk]], Iterator[tuple[Chunk, Inputs]]]
# (rows of each call [steps, batch], its first global step, root, task) -> the pictures of each call, one after another:
# arrays [this process's devices, steps * batch / devices, ...], see parallel.shares.
Read = Callable[[Sequence[np.ndarray], Sequence[int], jax.Array, int], Iterator[Data]]


def free_bytes(device: jax.Device) -> int:
  """Memory that new arrays on a device may take; on a CPU the machine's available memory over its devices."""
  found = device.memory_stats() or {}
  if "bytes_limit" in found:
    return found["bytes_limit"] - found["bytes_in_use"]
  lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
  available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
  return available // jax.local_device_count()


def choose(wanted: str, needed: int, free: int) -> tuple[str, str]:
  """The path, and the line of the log that says why.

  Args:
    wanted: "resident", "prefetch", "stream", or "auto": resident where the pictures fit, else prefetch.
    needed, free: bytes of all pictures, and of the device.
  """
  sizes = f"{needed / 1e9:.2f} GB of pictures, {free / 1e9:.2f} GB free on the device"
  if wanted != "auto":
    return wanted, f"pictures: {wanted}, as the config says ({sizes})"
  path = "resident" if needed <= _SHARE * free else "prefetch"
  return path, f"pictures: {path} ({sizes}; resident takes at most {_SHARE:.0%} of that)"


def steps_together(steps_per_call: int, batch_bytes: int) -> int:
  """Steps of one call whose pictures travel together."""
  return max(1, min(steps_per_call, _CHUNK_BYTES // batch_bytes))


def resident(data: Data, devices: Sequence[jax.Device]) -> Feed:
  """Every call reads the same arrays, which are on the devices already."""
  def feed(plan, pool, root, chunks):
    there = parallel.replicate(pool, devices)
    for chunk in chunks:
      yield chunk, Inputs(data, there, np.int32(chunk.first), np.int32(chunk.stop))

  return feed


def travelling(read: Read, *, steps: int, batch_size: int, devices: Sequence[jax.Device]) -> Feed:
  """A thread reads the pictures of the next call and sends them off while the current call runs.

  Args:
    read: see `Read`.
    steps: the most of one call; shapes are those of so many, so that one program serves every chunk.
    batch_size: global.
    devices: where the pictures go.
  """
  count = steps * batch_size // len(devices)
  nothing = parallel.replicate(Pool(np.zeros(0, np.int32), np.int32(0)), devices)
  order_of = jax.jit(epoch_order, static_argnums=3)

  def feed(plan, pool, root, chunks):
    chunks, orders = list(chunks), {}
    # Of this process alone: a thread must not start programs that others take part in.
    root = jax.random.wrap_key_data(np.asarray(jax.random.key_data(root)), impl=jax.random.key_impl(root))
    for epoch in sorted({chunk.epoch for chunk in chunks}):
      orders[epoch] = np.asarray(order_of(pool, root, plan.number, plan.index, epoch))
    rows = [orders[chunk.epoch][np.arange(chunk.first * batch_size, chunk.stop * batch_size) % int(pool.size)]
            .reshape(-1, batch_size) for chunk in chunks]
    starts = [plan.first_step + chunk.epoch * plan.steps_per_epoch + chunk.first for chunk in chunks]
    pictures = read(rows, starts, root, plan.number)
    try:
      with concurrent.futures.ThreadPoolExecutor(1) as thread:
        send = lambda: parallel.split(padded(next(pictures), count, axis=1), devices)
        coming = thread.submit(send) if chunks else None
        for number, chunk in enumerate(chunks):
          data = coming.result()
          coming = thread.submit(send) if number + 1 < len(chunks) else None
          yield chunk, Inputs(data, nothing, np.int32(0), np.int32(chunk.stop - chunk.first))
    finally:
      pictures.close()

  return feed


def gather(pictures: Data, mine: np.ndarray) -> Read:
  """Reads pictures of the memory-mapped cache, or of any array in host memory; `mine`: see parallel.shares."""
  def read(rows, starts, root, task):
    for chosen in rows:
      yield rows_of(pictures, parallel.by_device(chosen, mine))

  return read


def rows_of(pictures: Data, rows: np.ndarray) -> Data:
  """These rows as arrays of their own."""
  return Data(*(np.asarray(array[rows]) for array in pictures))


def padded(data: Data, count: int, axis: int = 0) -> Data:
  """Zeros after the last row, up to `count` rows along an axis."""
  missing = count - data.labels.shape[axis]
  if not missing:
    return data

  def pad(array: np.ndarray) -> np.ndarray:
    return np.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)])
  # A size of zero would divide by zero where it is looked at.
  return Data(pad(data.images), np.maximum(pad(data.sizes), 1), pad(data.labels))
