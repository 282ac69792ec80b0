"""Reads training pictures from the original files in every epoch, for data sets too large to store decoded.

JAX draws the boxes, with the keys that the step would use; Grain's worker processes decode, crop the original, resize
with Pillow, and mirror. The device receives the final uint8 view, which the step only normalises. It differs from the
resident path by Pillow's rounding and, for pictures larger than stored_size, by the sharpness lost in storing them
smaller.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import pathlib
import tempfile
from collections.abc import Callable, Generator, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from gr_jax import seeding
from gr_jax.data import augment, image, workers
from gr_jax.data.arrays import Data
from gr_jax.data.sources.base import Split
from gr_jax.devices import parallel
from gr_jax.errors import UserError

# Steps whose boxes are drawn in one call; fixed, so that one program serves every task.
_STEPS_AT_ONCE = 16
# Seconds that workers have to exit before they are killed.
_CLOSING = 10.0
# A request is: row of the split, box (4 numbers), how: 0 plain, 1 mirrored, or _CENTRAL for the central crop.
_CENTRAL = 2


@dataclasses.dataclass(frozen=True)
class Originals:
  """Training pictures that stay in their files.

  Attributes:
    split: source of the pictures.
    rows: [images] of the split, sorted by class in learning order.
    sizes: [images, 2] int32, height and width.
    labels: [images] int32, in learning order.
  """
  split: Split
  rows: np.ndarray
  sizes: np.ndarray
  labels: np.ndarray


class _Views(grain.transforms.Map):
  """Turns a request into a view [side, side, channels] uint8; runs in Grain's workers."""

  def __init__(self, split: Split, side: int):
    self._split, self._side = split, side

  # The method of Grain's class has no annotations.
  def map(self, request: np.ndarray) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
    row, top, left, height, width, how = map(int, request)
    picture = self._split.image(row)
    if how == _CENTRAL:
      return image.central_crop(picture, self._side)
    box = picture[top:top + height, left:left + width]
    view = image.squeeze(box, self._side)
    return np.ascontiguousarray(view[:, ::-1]) if how else view


class _Requests:
  """Requests in a memory-mapped file, so that workers do not need copies."""

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
  """Makes a function that draws the boxes of whole steps exactly as the step does.

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


def reader(originals: Originals, *, side: int, mine: Callable[[int], np.ndarray], timeout: float
           ) -> Callable[..., Generator[Data, None, None]]:
  """A feed.Read that gives final views: uint8, `side` pixels square; their `sizes` are all `side`.

  Args:
    originals: the pictures.
    side: of a view.
    mine: images of a step -> their positions of this process, [its devices, share]; see parallel.shares.
    timeout: seconds without a result after which workers count as hanging.

  Raises (during iteration):
    UserError: a picture cannot be decoded, a worker died or hangs for `timeout` seconds.
  """
  draw_for = functools.cache(make_draw)

  def read(rows: Sequence[np.ndarray], starts: Sequence[int], root: jax.Array, task: int
           ) -> Generator[Data, None, None]:
    every = np.concatenate(rows)
    batch_size = every.shape[1]
    draw, places_of = draw_for(batch_size), mine(batch_size)
    steps = np.concatenate([start + np.arange(len(chosen)) for start, chosen in zip(starts, rows)])
    requests = np.zeros((len(every), batch_size, 6), np.int32)
    requests[..., 0] = originals.rows[every]
    for first in range(0, len(every), _STEPS_AT_ONCE):
      # The last block repeats the last step, so that all blocks have the same shape.
      block = np.minimum(np.arange(first, first + _STEPS_AT_ONCE), len(every) - 1)
      boxes = np.asarray(draw(root, task, jnp.asarray(steps[block], jnp.int32), originals.sizes[every[block]]))
      requests[block, :, 1:] = boxes
    (devices, share), places = places_of.shape, places_of.reshape(-1)
    views = _views(originals, requests[:, places].reshape(-1, 6), side, len(places), timeout)
    try:
      for chosen in rows:
        batches = [next(views).reshape(devices, share, side, side, -1) for _ in chosen]
        labels = originals.labels[parallel.by_device(chosen, places_of)]
        yield Data(np.concatenate(batches, axis=1), np.full((*labels.shape, 2), side, np.int32), labels)
    finally:
      views.close()

  return read


def central(originals: Originals, rows: np.ndarray, *, side: int, block: int, timeout: float
            ) -> Generator[Data, None, None]:
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
           ) -> Generator[np.ndarray, None, None]:
  """Batches of views in the order of the requests."""
  if not flags.FLAGS.is_parsed():
    # Grain passes absl's flags to its workers; in a notebook or a test they have not been parsed.
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
      # From a worker that could not read a picture; the message names it.
      raise
    except Exception as error:
      # Grain reports other worker errors, and a worker's death, with its own exception types.
      raise UserError(f"{workers.died()} ({error})") from error
    finally:
      if orderly:
        # Workers that exit normally leave no shared memory behind.
        with contextlib.suppress(concurrent.futures.TimeoutError):
          thread.submit(batches.close).result(_CLOSING)
      # Workers are killed first: closing waits for them, and one that hangs would block it.
      workers.end(before)
      thread.shutdown(wait=True, cancel_futures=True)
      batches.close()
      # Grain's threads leave reference cycles that keep the last batches, and so their shared memory, alive.
      del batches
      gc.collect()
