"""What is read from a network: scores of pictures; and three programs: evaluation, features for selecting exemplars,
and sums over images for a method.

All process blocks of a fixed number of rows, block i on device i mod devices. The blocks do not depend on the number
of devices, so counts and features do not either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr_jax.data.arrays import Data, Pool
from gr_jax.devices import parallel
from gr_jax.methods.base import Context, Method, Outputs
from gr_jax.models import Backbone, folding
from gr_jax.typing import AnyInteger

Prepare = Callable[[jax.Array, jax.Array], jax.Array]


def fold(network: dict) -> dict:
  """A network {"params", "batch_stats", "carry"} with batch norm folded, as `score` takes it."""
  return {**network, **folding.fold_teacher(network)}


def score(model: Backbone, method: Method, network: dict, x: jax.Array, context: Context) -> tuple[jax.Array, ...]:
  """The scores of a batch of model inputs, for each score of the method: float32 [batch, classes].

  A class's score is -inf if it has not been seen; the class with the largest score is the prediction.

  Args:
    model, method, context: see `make_evaluate`.
    network: see `fold`.
    x: [batch, height, width, channels] float32.
  """
  outputs = _outputs(model, method, network, x, context)
  return tuple(jnp.where(context.seen, of(outputs, network["carry"], context), -jnp.inf)
               for of in method.scores.values())


def _outputs(model: Backbone, method: Method, network: dict, x: jax.Array, context: Context) -> Outputs:
  features, maps = model.apply(
      {"params": network["params"]["backbone"], "batch_stats": network["batch_stats"]}, x, train=False)
  return Outputs(*method.head.apply(network["params"]["classifier"], features, context), features, maps)


def make_evaluate(
    *, model: Backbone, method: Method, prepare: Prepare, num_classes: int, block: int,
    devices: Sequence[jax.Device]) -> Callable[..., jax.Array]:
  """The program that counts correct test images.

  Args:
    model: the backbone.
    method: provides the head and the scores that predict a class.
    prepare: (images, sizes) -> model inputs, no augmentation.
    num_classes: K.
    block: rows that a device processes at a time.
    devices: that share the blocks.

  Returns:
    evaluate(network, data, context, stop) -> int32 [scores, 3, classes], where `network` is {"params", "batch_stats",
    "carry"}. For each score of the method and each class: images classified correctly among all seen classes, among
    the classes of the image's task, and images evaluated. Rows 0..stop-1 of `data` are evaluated, each once.
  """
  def evaluate(network: dict, data: Data, context: Context, stop: jax.Array) -> jax.Array:
    network = fold(network)

    def add(i, counts):
      rows, valid, inside = _block_of(i, block, stop)
      x = prepare(data.images[inside], data.sizes[inside])
      labels = data.labels[inside]
      own_task = context.task_of_class[labels][:, None] == context.task_of_class[None, :]
      tallied = []
      for scores in score(model, method, network, x, context):
        correct = jnp.argmax(scores, axis=-1) == labels
        aware = jnp.argmax(jnp.where(own_task, scores, -jnp.inf), axis=-1) == labels
        tallied.append(jnp.stack([correct, aware, jnp.ones_like(valid)]) & valid)
      return counts.at[:, :, labels].add(jnp.stack(tallied).astype(jnp.int32))

    zeros = jnp.zeros((len(method.scores), 3, num_classes), jnp.int32)
    return jax.lax.psum(jax.lax.fori_loop(0, _rounds(stop, block), add, zeros), parallel.AXIS)

  return parallel.spread(evaluate, devices, num_args=4)


def make_extract(
    *, model: Backbone, prepare: Prepare, capacity: int, block: int,
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


def _rounds(stop: AnyInteger, block: int) -> jax.Array:
  """Number of blocks that each device processes to cover rows 0..stop-1."""
  together = block * jax.lax.axis_size(parallel.AXIS)
  return (stop + together - 1) // together


def _block_of(i: jax.Array, block: int, stop: AnyInteger) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rows of this device's block in round i, which of them are valid, and the rows clipped to 0..stop-1."""
  number = i * jax.lax.axis_size(parallel.AXIS) + jax.lax.axis_index(parallel.AXIS)
  rows = number * block + jnp.arange(block)
  return rows, rows < stop, jnp.clip(rows, 0, stop - 1)


def make_measure(
    *, model: Backbone, method: Method, measure: Callable[..., Any], prepare: Prepare, block: int,
    devices: Sequence[jax.Device]) -> Callable[..., Any]:
  """The program that measures what a method keeps after a task (methods.base.Boundary).

  Returns:
    run(network, data, pool, context) -> the sums of `measure` over the images of `pool`, each counted once; `network`
    is {"params", "batch_stats"}.
  """
  def run(network: dict, data: Data, pool: Pool, context: Context) -> Any:
    folded = folding.fold_teacher(network)

    def of_block(i: AnyInteger) -> Any:
      _, valid, inside = _block_of(i, block, pool.size)
      picked = pool.rows[inside]
      outputs = _outputs(model, method, folded, prepare(data.images[picked], data.sizes[picked]), context)
      return measure(outputs, data.labels[picked], valid, context)

    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_block, 0))
    total = jax.lax.fori_loop(0, _rounds(pool.size, block), lambda i, sums: jax.tree.map(
        jnp.add, sums, of_block(i)), nothing)
    return jax.lax.psum(total, parallel.AXIS)

  return parallel.spread(run, devices, num_args=4)
