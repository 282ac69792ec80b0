"""Training pictures read from their originals, again in every epoch: for sets too large to be kept decoded.

JAX draws the boxes, with the keys that the step would take; Grain's worker processes decode, crop the original, resize
with Pillow, and mirror. What reaches the device is the view itself, uint8, which the step only normalises: against the
resident path it differs by Pillow's rounding and, where pictures are larger than stored_size, by the sharpness that
keeping them smaller costs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import gc
import multiprocessing
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from gr_jax import seeding
from gr_jax.data import augment, cache, workers
from gr_jax.data.arrays import Data
from gr_jax.data.sources.base import Split
from gr_jax.devices import parallel
from gr_jax.errors import UserError

# Steps whose boxes are drawn by one call, so that one program serves every task.
_STEPS_AT_ONCE = 16
# Seconds that workers get to end by themselves.
_CLOSING = 10.0
# Columns of a request: row of the split, box, mirrored (or the central crop).
_CENTRAL = 2


@dataclasses.dataclass(frozen=True)
class Originals:
  """Training pictures that stay in their files.

  Attributes:
    split: they come from it.
    rows: [images] of the split, class after class in learning order.
    sizes: [images, 2] int32, height and width.
    labels: [images] int32, in learning order.
  """
  split: Split
  rows: np.ndarray
  sizes: np.ndarray
  labels: np.ndarray


class _Views(grain.transforms.Map):
  """A request -> [side, side, channels] uint8; runs in Grain's workers."""

  def __init__(self, split: Split, side: int):
    self._split, self._side = split, side

  def map(self, request: np.ndarray) -> np.ndarray:
    row, top, left, height, width, how = map(int, request)
    picture = self._split.image(row)
    if how == _CENTRAL:
      return cache.central_crop(picture, self._side)
    box = picture[top:top + height, left:left + width]
    view = cache.squeeze(box, self._side)
    return np.ascontiguousarray(view[:, ::-1]) if how else view


class _Requests:
  """Rows of a file of requests: workers map it instead of taking a copy each."""

  def __init__(self, path: pathlib.Path):
    self._path, self._array = path, None
    self._length = len(np.load(path, mmap_mode="r"))

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> np.ndarray:
    if self._array is None:
      # The first request of a worker.
      workers.leave_with_the_parent()
      self._array = np.load(self._path, mmap_mode="r")
    return np.asarray(self._array[index])


def make_draw(batch_size: int) -> Callable[..., jax.Array]:
  """The boxes of whole steps, as the step itself draws them.

  Returns:
    draw(root, task, steps [n], sizes [n, batch, 2]) -> int32 [n, batch, 5]: top, left, height, width, mirrored.
  """
  def one(key, size):
    for_box, for_flip = jax.random.split(key)
    return jnp.stack([*augment.draw_box(for_box, size), jax.random.bernoulli(for_flip).astype(jnp.int32)])

  def step(root, task, number, sizes):
    key = seeding.derive(root, task, number, seeding.AUGMENT)
    return jax.vmap(one)(jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size)), sizes)

  return jax.jit(jax.vmap(step, (None, None, 0, 0)))


def reader(originals: Originals, *, side: int, batch_size: int, mine: np.ndarray, timeout: float
           ) -> Callable[..., Iterator[Data]]:
  """A feed.Read whose pictures are final views, `side` pixels square, uint8, their sizes all `side`.

  Args:
    originals: where they come from.
    side: of a view.
    batch_size: global.
    mine: places in a batch of which views are made, [this process's devices, share]; see parallel.shares.
    timeout: seconds after which workers that answer nothing count as hanging.

  Raises (while it is iterated over):
    UserError: a picture cannot be decoded, a worker died or hangs for `timeout` seconds.
  """
  draw = make_draw(batch_size)

  def read(rows: Sequence[np.ndarray], starts: Sequence[int], root: jax.Array, task: int) -> Iterator[Data]:
    every = np.concatenate(rows)
    steps = np.concatenate([start + np.arange(len(chosen)) for start, chosen in zip(starts, rows)])
    requests = np.zeros((len(every), batch_size, 6), np.int32)
    requests[..., 0] = originals.rows[every]
    for first in range(0, len(every), _STEPS_AT_ONCE):
      # The last block repeats its last step, so that every block has one shape.
      block = np.minimum(np.arange(first, first + _STEPS_AT_ONCE), len(every) - 1)
      boxes = np.asarray(draw(root, task, jnp.asarray(steps[block], jnp.int32), originals.sizes[every[block]]))
      requests[block, :, 1:] = boxes
    (devices, share), places = mine.shape, mine.reshape(-1)
    views = _views(originals, requests[:, places].reshape(-1, 6), side, len(places), timeout)
    try:
      for chosen in rows:
        batches = [next(views).reshape(devices, share, side, side, -1) for _ in chosen]
        labels = originals.labels[parallel.by_device(chosen, mine)]
        yield Data(np.concatenate(batches, axis=1), np.full((*labels.shape, 2), side, np.int32), labels)
    finally:
      views.close()

  return read


def central(originals: Originals, rows: np.ndarray, *, side: int, block: int, timeout: float) -> Iterator[Data]:
  """The central crops of these rows, `block` at a time, in order; raises as `reader`."""
  requests = np.zeros((len(rows), 6), np.int32)
  requests[:, 0], requests[:, 5] = originals.rows[rows], _CENTRAL
  views = _views(originals, requests, side, block, timeout)
  try:
    for first, images in zip(range(0, len(rows), block), views):
      yield Data(images, np.full((len(images), 2), side, np.int32), originals.labels[rows[first:first + len(images)]])
  finally:
    views.close()


def _views(originals: Originals, requests: np.ndarray, side: int, batch_size: int, timeout: float
           ) -> Iterator[np.ndarray]:
  """Batches of views in the order of the requests."""
  if not flags.FLAGS.is_parsed():
    # Grain hands absl's flags on to its workers; in a notebook or a test nobody has parsed any.
    flags.FLAGS.mark_as_parsed()
  before = set(multiprocessing.active_children())
  with tempfile.TemporaryDirectory(prefix="gr_jax-") as folder:
    path = pathlib.Path(folder) / "requests.npy"
    np.save(path, requests)
    batches = iter(grain.MapDataset.source(_Requests(path)).map(_Views(originals.split, side)).batch(batch_size)
                   .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch_size))
                   .mp_prefetch(grain.MultiprocessingOptions(num_workers=workers.count(), per_worker_buffer_size=2)))
    thread, orderly = concurrent.futures.ThreadPoolExecutor(1), False
    try:
      for _ in range(-(-len(requests) // batch_size)):
        yield thread.submit(next, batches).result(timeout)
      orderly = True
    except concurrent.futures.TimeoutError as error:
      raise UserError(workers.hanging(timeout)) from error
    except GeneratorExit:
      orderly = True
      raise
    except UserError:
      # Of a worker, that could not read a picture and names it.
      raise
    except Exception as error:
      # Grain gives back other errors of a worker, and its death, under types of its own.
      raise UserError(f"{workers.died()} ({error})") from error
    finally:
      if orderly:
        # Workers that may end by themselves leave no shared memory behind.
        with contextlib.suppress(concurrent.futures.TimeoutError):
          thread.submit(batches.close).result(_CLOSING)
      # Closing waits for a worker, and one that hangs never answers: it is killed first.
      workers.end(before)
      thread.shutdown(wait=True, cancel_futures=True)
      batches.close()
      # Grain's threads leave their last batches in cycles of references, and with them shared memory.
      del batches
      gc.collect()
