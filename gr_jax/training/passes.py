"""What is read from a network: scores of pictures; and programs: features, what evaluation makes of them, and sums over
images for a method.

All process blocks of a fixed number of rows, block i on device i mod devices. The blocks do not depend on the number
of devices, so counts and features do not either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr_jax import calibration, seeding
from gr_jax.data.arrays import Data, Pool
from gr_jax.devices import parallel
from gr_jax.methods.base import Context, Growth, Method, Outputs
from gr_jax.models import Backbone, folding, frozen
from gr_jax.training import networks
from gr_jax.typing import AnyArray, AnyInteger

Prepare = Callable[[jax.Array, jax.Array], jax.Array]
# (keys [block], images, sizes) -> model inputs.
Augment = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def fold(network: dict) -> dict:
  """A network {"params", "batch_stats", "carry"} with batch norm folded, as `score` takes it."""
  return {**network, **folding.fold_teacher(network), "carry": frozen.fold_carry(network["carry"])}


def score(model: Backbone, method: Method, network: dict, x: jax.Array, context: Context) -> tuple[jax.Array, ...]:
  """The scores of a batch of model inputs, for each score of the method: float32 [batch, classes].

  A class's score is -inf if it has not been seen; the class with the largest score is the prediction.

  Args:
    model: the backbone.
    method, context: see `make_evaluate`.
    network: see `fold`.
    x: [batch, height, width, channels] float32.
  """
  outputs = _outputs(model, method, network, x, context)
  return tuple(jnp.where(context.seen, of(outputs, network["carry"], context), -jnp.inf)
               for of in method.scores.values())


def _outputs(model: Backbone, method: Method, network: dict, x: jax.Array, context: Context) -> Outputs:
  encoded = model.apply(
      {"params": network["params"]["backbone"], "batch_stats": network["batch_stats"]}, x, train=False)
  others = networks.beside(model, method.growth, network["carry"], x, context)
  return networks.outputs(method.head, method.growth, network["params"]["classifier"], encoded, others, context)


class Setting(NamedTuple):
  """What an evaluation looks at.

  Attributes:
    stop: int32 scalar; rows 0..stop-1 are evaluated.
    inverse: [variants, classes] float32, 1 / T of each class in each variant; the first variant has T = 1.
    cells: [cells, classes] bool, disjoint sets of seen classes whose spread is summed.
    groups: [groups, classes] bool, sets of seen classes in which the nearest class mean is looked for.
  """
  stop: AnyInteger
  inverse: AnyArray
  cells: AnyArray
  groups: AnyArray


class Measured(NamedTuple):
  """What an evaluation measures.

  Attributes:
    counts: [scores, 3, classes] int32. For each score of the method and each class: images classified correctly among
      all seen classes, among the classes of the image's task, and images evaluated.
    predicted: [variants, rows] int32; this and the next three by the method's first score.
    confidence, nll, brier: [variants, rows] float32, see calibration.Judged.
    class_bins: [variants, classes, bins, 3] float32, see calibration.class_bins.
    means: [classes, features] float32, class means of the features.
    within: [cells, features, features] float32, sum over a cell's images of (h - mean)(h - mean)^T.
    disagreeing: [groups] int32, images of a group for which the classifier and the nearest class mean choose different
      classes of the group.
  """
  counts: jax.Array
  predicted: jax.Array
  confidence: jax.Array
  nll: jax.Array
  brier: jax.Array
  class_bins: jax.Array
  means: jax.Array
  within: jax.Array
  disagreeing: jax.Array


def _read(method: Method, network: dict, codes: jax.Array, stacked: int, context: Context) -> Outputs:
  """Outputs from what `make_extract` computed, without maps; `stacked` columns are features of the stack."""
  features, others = (codes[:, :-stacked], codes[:, -stacked:]) if stacked else (codes, ())
  return networks.read(method.head, network["params"]["classifier"], (features, ()), others, context)


def make_evaluate(*, method: Method, num_classes: int, block: int, devices: Sequence[jax.Device], stacked: int = 0
                  ) -> Callable[..., Measured]:
  """The program that counts correct images and measures calibration and class means, from features.

  Args:
    method: provides the head and the scores that predict a class.
    num_classes: K.
    block: rows that a device processes at a time.
    devices: that share the blocks.
    stacked: as for `make_extract`, in columns.

  Returns:
    evaluate(network, features, labels, context, setting) -> Measured, where `network` is {"params", "batch_stats",
    "carry"}, `features` come from `make_extract` and `labels` [rows] int32 are padded to as many rows. Scores see no
    feature maps.
  """
  def evaluate(network: dict, features: jax.Array, labels: jax.Array, context: Context, setting: Setting) -> Measured:
    size = features.shape[-1] - stacked
    variants = setting.inverse.shape[0]

    def outputs_of(i):
      rows, valid, inside = _block_of(i, block, setting.stop)
      return rows[0], valid, labels[inside], _read(method, network, features[inside], stacked, context)

    def judge(i, sums):
      (counts, by_image, class_bins, totals), (first, valid, block_labels, outputs) = sums, outputs_of(i)
      same_task = context.task_of_class[block_labels][:, None] == context.task_of_class[None, :]
      tallied, judged = [], None
      for score in method.scores.values():
        raw = score(outputs, network["carry"], context)
        judged = judged or [calibration.judge(raw, block_labels, inverse, context.seen) for inverse in setting.inverse]
        scores = jnp.where(context.seen, raw, -jnp.inf)
        correct = jnp.argmax(scores, axis=-1) == block_labels
        aware = jnp.argmax(jnp.where(same_task, scores, -jnp.inf), axis=-1) == block_labels
        tallied.append(jnp.stack([correct, aware, jnp.ones_like(valid)]) & valid[None, :])
      counts = counts.at[:, :, block_labels].add(jnp.stack(tallied).astype(jnp.int32))
      assert judged is not None
      by_image = {name: jax.lax.dynamic_update_slice(
          values, jnp.stack([jnp.where(valid, getattr(one, name), 0) for one in judged]), (0, first))
                  for name, values in by_image.items()}
      class_bins = class_bins + jnp.stack([
          calibration.class_bins(one.probabilities, block_labels, valid) for one in judged])
      member = (block_labels[None, :] == jnp.arange(num_classes)[:, None]) & valid[None, :]
      return counts, by_image, class_bins, totals + _exact(member.astype(jnp.float32), outputs.features)

    def spread(i, sums):
      (within, disagreeing), (_, valid, block_labels, outputs) = sums, outputs_of(i)
      away = jnp.where(valid[:, None], outputs.features - means[block_labels], 0.0)
      chosen = jnp.where(setting.cells[:, block_labels][..., None], away, 0.0)
      # The term that is the same for all classes is left out.
      nearness = 2.0 * _exact(outputs.features, means.T) - jnp.sum(jnp.square(means), axis=-1)[None, :]
      here = setting.groups[:, None, :]
      differ = jnp.argmax(jnp.where(here, outputs.logits, -jnp.inf), axis=-1) != jnp.argmax(
          jnp.where(here, nearness, -jnp.inf), axis=-1)
      differ &= setting.groups[:, block_labels] & valid[None, :]
      return within + _exact(chosen.transpose(0, 2, 1), chosen), disagreeing + jnp.sum(differ, axis=-1)

    rounds, rows = _rounds(setting.stop, block), features.shape[0]
    empty = {"predicted": jnp.zeros((variants, rows), jnp.int32),
             **{name: jnp.zeros((variants, rows), jnp.float32) for name in ("confidence", "nll", "brier")}}
    counts, by_image, class_bins, totals = jax.lax.psum(jax.lax.fori_loop(0, rounds, judge, (
        jnp.zeros((len(method.scores), 3, num_classes), jnp.int32), empty,
        jnp.zeros((variants, num_classes, calibration.BINS, 3), jnp.float32),
        jnp.zeros((num_classes, size), jnp.float32))), parallel.AXIS)
    means = totals / jnp.maximum(counts[0, 2], 1)[:, None].astype(jnp.float32)
    within, disagreeing = jax.lax.psum(jax.lax.fori_loop(0, rounds, spread, (
        jnp.zeros((setting.cells.shape[0], size, size), jnp.float32),
        jnp.zeros(setting.groups.shape[0], jnp.int32))), parallel.AXIS)
    return Measured(counts=counts, class_bins=class_bins, means=means, within=within, disagreeing=disagreeing,
                    **by_image)

  return parallel.spread(evaluate, devices, num_args=5)


def make_score(*, method: Method, capacity: int, devices: Sequence[jax.Device], stacked: int = 0
               ) -> Callable[..., jax.Array]:
  """The program for the scores of a few images, from features.

  Returns:
    score(network, features, context, first) -> [capacity, classes] float32, the method's first score for rows first ..
    first + capacity - 1 of `features`.
  """
  def score(network: dict, features: jax.Array, context: Context, first: jax.Array) -> jax.Array:
    picked = jax.lax.dynamic_slice_in_dim(features, first, capacity)
    outputs = _read(method, network, picked, stacked, context)
    # The features are the same on all devices, so the scores are too.
    return next(iter(method.scores.values()))(outputs, network["carry"], context)

  return parallel.spread(score, devices, num_args=4)


def make_extract(
    *, model: Backbone, prepare: Prepare, capacity: int, block: int,
    devices: Sequence[jax.Device], growth: Growth | None = None, blocks: int = 1, stacked: int = 0
    ) -> Callable[..., jax.Array]:
  """The program that computes the head's features in evaluation mode.

  Args:
    model, prepare, block, devices: as for `make_evaluate`.
    capacity: rows of a pool.
    growth, blocks: of the method (Method.growth, Method.blocks).
    stacked: number of backbones of the stack whose features come after those for the head; 0 or all of them.

  Returns:
    extract(params, batch_stats, data, pool, context=None, carry={}) -> float32 [at least capacity, features]; row i
    belongs to pool.rows[i], rows from pool.size on are 0. Only methods with `growth` need the last two.
  """
  rounds = -(-capacity // (block * len(devices)))

  def extract(params, batch_stats, data: Data, pool: Pool, context: Any, carry: dict) -> jax.Array:
    variables, carry = folding.fold(params["backbone"], batch_stats), frozen.fold_carry(carry)

    def fill(i, filled):
      rows, valid, inside = _block_of(i, block, pool.size)
      picked = pool.rows[inside]
      x = prepare(data.images[picked], data.sizes[picked])
      features, _ = model.apply(variables, x, train=False)
      others = networks.beside(model, growth, carry, x, context)
      features = networks.joined(growth, features, others, context)
      if stacked:
        assert isinstance(others, jax.Array)
        features = jnp.concatenate([features, others], axis=1)
      return jax.lax.dynamic_update_slice(filled, jnp.where(valid[:, None], features, 0.0), (rows[0], 0))

    empty = jnp.zeros((rounds * len(devices) * block, (blocks + stacked) * model.num_features), jnp.float32)
    return jax.lax.psum(jax.lax.fori_loop(0, _rounds(pool.size, block), fill, empty), parallel.AXIS)

  run = parallel.spread(extract, devices, num_args=6)
  return lambda params, batch_stats, data, pool, context=None, carry=None: run(
      params, batch_stats, data, pool, context if growth else None, carry if growth else {})


def make_measure(
    *, model: Backbone, method: Method, measure: Callable[..., Any], prepare: Prepare, block: int,
    devices: Sequence[jax.Device], augment: Augment | None = None, stage: int = 0) -> Callable[..., Any]:
  """The program that measures what a method keeps (methods.base.Boundary).

  Args:
    model, method, prepare, block, devices: as for `make_evaluate` and `make_extract`.
    measure: of the boundary.
    augment: in place of `prepare`, for a boundary with augmented images.
    stage: number that the keys of the augmentation depend on.

  Returns:
    run(network, data, pool, context) -> the sums of `measure` over the images of `pool`, each counted once; `network`
    is {"params", "batch_stats", "carry"}. With `augment`, run(network, data, pool, context, root, first): `root` is
    jax.random.key(seed), and `first` the number of images in the calls before; image i of all has the i-th key.
  """
  def run(network: dict, data: Data, pool: Pool, context: Context, *drawing: Any) -> Any:
    folded = fold(network)

    def view(rows: jax.Array, picked: jax.Array) -> jax.Array:
      if augment is None:
        return prepare(data.images[picked], data.sizes[picked])
      root, first = drawing
      key = seeding.derive(seeding.of_stage(root, stage), context.task, 0, seeding.MEASURE)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + rows)
      return augment(keys, data.images[picked], data.sizes[picked])

    def of_block(i: Any) -> Any:
      rows, valid, inside = _block_of(i, block, pool.size)
      picked = pool.rows[inside]
      outputs = _outputs(model, method, folded, view(rows, picked), context)
      return measure(outputs, data.labels[picked], valid, context)

    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_block, 0))
    total = jax.lax.fori_loop(0, _rounds(pool.size, block), lambda i, sums: jax.tree.map(
        jnp.add, sums, of_block(i)), nothing)
    return jax.lax.psum(total, parallel.AXIS)

  return parallel.spread(run, devices, num_args=4 if augment is None else 6)


def _rounds(stop: AnyInteger, block: int) -> jax.Array:
  """Number of blocks that each device processes to cover rows 0..stop-1."""
  together = block * jax.lax.axis_size(parallel.AXIS)
  return (stop + together - 1) // together


def _block_of(i: AnyInteger, block: int, stop: AnyInteger) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rows of this device's block in round i, which of them are valid, and the rows clipped to 0..stop-1."""
  number = i * jax.lax.axis_size(parallel.AXIS) + jax.lax.axis_index(parallel.AXIS)
  rows = number * block + jnp.arange(block)
  return rows, rows < stop, jnp.clip(rows, 0, stop - 1)


def _exact(left: jax.Array, right: jax.Array) -> jax.Array:
  """A matrix product in float32, on every device."""
  return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
