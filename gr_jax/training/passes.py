"""The two programs that only look: test accuracy, and features for the selection of exemplars.

Both walk over blocks of a fixed number of rows, block i on device i mod devices: whatever the number of
devices, the same rows meet in the same block, so counts and features are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr_jax.data.arrays import Data, Pool
from gr_jax.devices import parallel
from gr_jax.models import folding
from gr_jax.models import heads as classifier

Prepare = Callable[[jax.Array, jax.Array], jax.Array]


def make_evaluate(
    *, model: nn.Module, prepare: Prepare, num_classes: int, block: int,
    devices: Sequence[jax.Device]) -> Callable[..., jax.Array]:
  """The program that counts correct test images.

  Args:
    model: the backbone.
    prepare: (images, sizes) -> model inputs, no augmentation.
    num_classes: K.
    block: rows that one device takes at a time.
    devices: over which the blocks are spread.

  Returns:
    evaluate(params, batch_stats, data, task_of_class, seen, stop) -> int32 [3, classes]: for each class the
    correct images among all seen classes, among its own task's classes, and the images looked at. Rows
    0..stop-1 of `data` are looked at, each once.
  """
  def evaluate(params, batch_stats, data: Data, task_of_class, seen, stop):
    variables = folding.fold(params["backbone"], batch_stats)
    head = classifier.mask(params["classifier"], seen)

    def add(i, counts):
      rows, valid, inside = _block_of(i, block, stop)
      x = prepare(data.images[inside], data.sizes[inside])
      features, _ = model.apply(variables, x, train=False)
      scores = jnp.where(seen, classifier.logits(head, features), -jnp.inf)
      labels = data.labels[inside]
      own_task = task_of_class[labels][:, None] == task_of_class[None, :]
      correct = jnp.argmax(scores, axis=-1) == labels
      aware = jnp.argmax(jnp.where(own_task, scores, -jnp.inf), axis=-1) == labels
      tallied = jnp.stack([correct, aware, jnp.ones_like(valid)]) & valid
      return counts.at[:, labels].add(tallied.astype(jnp.int32))

    zeros = jnp.zeros((3, num_classes), jnp.int32)
    return jax.lax.psum(jax.lax.fori_loop(0, _rounds(stop, block), add, zeros), parallel.AXIS)

  return parallel.spread(evaluate, devices, num_args=6)


def make_extract(
    *, model: nn.Module, prepare: Prepare, capacity: int, block: int,
    devices: Sequence[jax.Device]) -> Callable[..., jax.Array]:
  """The program that computes features in evaluation mode.

  Returns:
    extract(params, batch_stats, data, pool) -> float32 [at least capacity, features]; row i belongs to
    pool.rows[i], rows from pool.size on are 0.
  """
  rounds = -(-capacity // (block * len(devices)))

  def extract(params, batch_stats, data: Data, pool: Pool) -> jax.Array:
    variables = folding.fold(params["backbone"], batch_stats)

    def fill(i, found):
      rows, valid, inside = _block_of(i, block, pool.size)
      picked = pool.rows[inside]
      features, _ = model.apply(variables, prepare(data.images[picked], data.sizes[picked]), train=False)
      return jax.lax.dynamic_update_slice(found, jnp.where(valid[:, None], features, 0.0), (rows[0], 0))

    empty = jnp.zeros((rounds * len(devices) * block, model.num_features), jnp.float32)
    return jax.lax.psum(jax.lax.fori_loop(0, _rounds(pool.size, block), fill, empty), parallel.AXIS)

  return parallel.spread(extract, devices, num_args=4)


def _rounds(stop: jax.Array, block: int) -> jax.Array:
  """How often every device takes a block until rows 0..stop-1 are done."""
  together = block * jax.lax.axis_size(parallel.AXIS)
  return (stop + together - 1) // together


def _block_of(i: jax.Array, block: int, stop: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rows of this device's block in round i, which of them count, and the same rows kept inside 0..stop-1."""
  number = i * jax.lax.axis_size(parallel.AXIS) + jax.lax.axis_index(parallel.AXIS)
  rows = number * block + jnp.arange(block)
  return rows, rows < stop, jnp.clip(rows, 0, stop - 1)
