"""Samplers: which images the batches of an epoch have.

A place counts the images of an epoch, batch after batch, from 0. Devices take consecutive places of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr_jax.typing import AnyArray


class Sampler(NamedTuple):
  """Draws the batches of a stage.

  Attributes:
    prepare: (pool, key, context) -> arrays of an epoch. `pool` is a data.arrays.Pool whose rows are sorted by class in
      learning order; class j has context.counts[j] of them.
    pick: (arrays, places [...] int) -> rows [...] int. It takes JAX arrays or NumPy arrays, and returns the same kind.
    batch: the config's batch size -> images of a step.
    steps: (counts [classes], old [classes] bool, the config's batch size) -> steps of an epoch.
    multiple: the config's batch size must be a multiple of this number times the number of devices.
  """
  prepare: Callable[[Any, jax.Array, Any], Any]
  pick: Callable[[Any, Any], Any]
  batch: Callable[[int], int]
  steps: Callable[[AnyArray, AnyArray, int], int]
  multiple: int = 1


def shuffled(rows: AnyArray, present: AnyArray, key: jax.Array) -> jax.Array:
  """The rows in `present` [capacity] bool in random order, then the others; [capacity] int32.

  No shape depends on the number of rows, so no task needs a new compilation.
  """
  draws = jnp.where(present, jax.random.uniform(key, rows.shape), 2.0)
  return jnp.asarray(rows)[jnp.argsort(draws)]


def _every_row(pool: Any, key: jax.Array, context: Any) -> tuple[jax.Array, Any]:
  del context
  return shuffled(pool.rows, jnp.arange(pool.rows.size) < pool.size, key), pool.size


# Every image once an epoch, in random order; the last batch is filled up from the start of the order
# (docs/method.md section 6).
EVERY_IMAGE = Sampler(
    prepare=_every_row, pick=lambda epoch, places: epoch[0][places % epoch[1]], batch=lambda size: size,
    steps=lambda counts, old, size: -(-int(counts.sum()) // size))


def new_and_memory(ratio: int) -> Sampler:
  """Batches of new images and exemplars, `ratio` new images for each exemplar (SS-IL).

  A batch has the config's number of new images, and exemplars besides. An epoch uses every new image at least once,
  however few there are; exemplars are drawn anew in each epoch, without repetition until all have been used. The groups
  of `ratio` new images and one exemplar stay together, so that all devices have equally many of both.

  Args:
    ratio: 1 or more; it must divide the config's batch size.
  """
  def prepare(pool: Any, key: jax.Array, context: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    exemplars = jnp.sum(jnp.where(context.old, context.counts, 0.0)).astype(jnp.int32)
    place, (for_new, for_memory) = jnp.arange(pool.rows.size), jax.random.split(key)
    # Old classes come first.
    new = shuffled(pool.rows, (place >= exemplars) & (place < pool.size), for_new)
    return new, pool.size - exemplars, shuffled(pool.rows, place < exemplars, for_memory), exemplars

  def pick(epoch: tuple[Any, Any, Any, Any], places: Any) -> Any:
    new, fresh, memory, exemplars = epoch
    group, within = places // (ratio + 1), places % (ratio + 1)
    # An empty memory leaves its places to new images.
    of_memory = (within == ratio) & (exemplars > 0)
    at_least_one = exemplars + (exemplars == 0).astype(exemplars.dtype)
    exemplar, image = memory[group % at_least_one], new[(group * ratio + within) % fresh]
    # Products, which NumPy arrays and JAX arrays share.
    return of_memory.astype(memory.dtype) * exemplar + (~of_memory).astype(new.dtype) * image

  def batch(size: int) -> int:
    return size + size // ratio

  def steps(counts: AnyArray, old: AnyArray, size: int) -> int:
    return -(-int(counts[~old].sum()) // size)

  return Sampler(prepare, pick, batch, steps, multiple=ratio)


# Images of a class that follow each other.
_REPEATS = 4


def _class_after_class(pool: Any, key: jax.Array, context: Any) -> tuple[jax.Array, Any]:
  counts, capacity = context.counts.astype(jnp.int32), pool.rows.size
  for_classes, for_rows = jax.random.split(key)
  place, ends = jnp.arange(capacity), jnp.cumsum(counts)
  # The rows are sorted by class; they are shuffled inside each class.
  class_of_row = jnp.searchsorted(ends, place, side="right")
  rows = pool.rows[jnp.lexsort((jax.random.uniform(for_rows, (capacity,)), class_of_row))]
  # Blocks of one class each; round r has one block of each class that has images, in random order. More blocks than
  # needed, so that the last round is drawn from all of these classes.
  present = jnp.argsort(counts == 0, stable=True)
  classes = jnp.maximum(jnp.sum(counts > 0), 1)
  block = jnp.arange(-(-capacity // _REPEATS) + counts.size)
  order = jnp.lexsort((jax.random.uniform(for_classes, block.shape), block // classes))
  class_of_place = present[order % classes][place // _REPEATS]
  # Each class cycles through its images.
  turn = place // _REPEATS // classes * _REPEATS + place % _REPEATS
  first, count = (ends - counts)[class_of_place], jnp.maximum(counts[class_of_place], 1)
  return rows[first + turn % count], pool.size


# As many images as EVERY_IMAGE, but class after class: four images of one, then of the next, in rounds over all classes
# that have images, each round in random order. A class cycles through its images, which are shuffled in each epoch
# (the class-aware sampler of Long-Tailed-CIL).
CLASS_BALANCED = EVERY_IMAGE._replace(prepare=_class_after_class)
