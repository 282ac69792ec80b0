"""A linear head over blocks of features, one block a backbone, with an auxiliary head on one of them (DER, FOSTER)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr_jax.models import heads
from gr_jax.models.heads import Head
from gr_jax.typing import AnyArray, AnyInteger


class Auxiliary(NamedTuple):
  """The auxiliary head.

  Attributes:
    block: context -> the block that it sees; may be traced.
    columns: context -> its columns in use, [classes + extra] bool.
    extra: columns besides the classes, after them.
  """
  block: Callable[[Any], AnyInteger | int]
  columns: Callable[[Any], jax.Array]
  extra: int = 0


def linear(blocks: Callable[[int], int], auxiliary: Auxiliary) -> Head:
  """W^T F + b over all blocks F; `branches` has "auxiliary", the logits [batch, classes + extra] of one block.

  Unlike other heads, it is not renewed when a task begins but by `grow`, which needs to know the block.

  Args:
    blocks: number of tasks -> number of blocks.
    auxiliary: the auxiliary head.
  """
  def start(features: int, num_classes: int, tasks: int) -> dict[str, jax.Array]:
    small = heads.init(features, num_classes + auxiliary.extra)
    return {**heads.init(blocks(tasks) * features, num_classes), "auxiliary_kernel": small["kernel"],
            "auxiliary_bias": small["bias"]}

  def apply(params: dict, features: jax.Array, context: Any) -> tuple[jax.Array, jax.Array]:
    class_logits = heads.logits(heads.mask(params, context.seen), features)
    return class_logits, class_logits

  def branches(params: dict, features: jax.Array, context: Any) -> dict[str, jax.Array]:
    auxiliary_head = heads.mask({"kernel": params["auxiliary_kernel"], "bias": params["auxiliary_bias"]},
                                auxiliary.columns(context))
    block = block_of(features, auxiliary_head["kernel"].shape[0], auxiliary.block(context))
    return {"auxiliary": heads.logits(auxiliary_head, block)}

  return Head(start, lambda key, params, new: params, apply, branches=branches)


def block_of(features: jax.Array, width: int, block: AnyInteger | int) -> jax.Array:
  """Block number `block` of features [batch, blocks * width]."""
  return jax.lax.dynamic_slice_in_dim(features, block * width, width, axis=1)


def place(features: jax.Array, others: jax.Array, block: AnyInteger | int) -> jax.Array:
  """`others` [batch, blocks * width] with features [batch, width] in block number `block`."""
  return jax.lax.dynamic_update_slice_in_dim(others, features, block * features.shape[1], axis=1)


def grow(key: jax.Array, params: dict, context: Any, *, block: AnyInteger | int, columns: AnyArray,
         redraw_old: bool = True) -> dict[str, jax.Array]:
  """The head when a task begins: a copy of the old part, the rest drawn.

  In the first task, columns are drawn as for every method, from U(-1/sqrt(d), 1/sqrt(d)), bias included. In later tasks
  new entries come from U(-sqrt(3/n), sqrt(3/n)) for n inputs and new biases are 0, as in PyCIL. Blocks after `block`
  stay 0.

  Args:
    key: random key.
    params: see `linear`.
    context: of the task.
    block: the last block in use.
    columns: of the auxiliary head, which is drawn anew; see Auxiliary.
    redraw_old: whether the old classes' entries in `block` are drawn; False: they are kept.
  """
  for_kernel, for_bias = jax.random.split(key)
  width, later = params["auxiliary_kernel"].shape[0], context.task > 0
  bound = jnp.where(later, jnp.sqrt(3.0 / jnp.asarray(width * (block + 1), jnp.float32)), width ** -0.5)
  row = jnp.arange(params["kernel"].shape[0])[:, None] // width
  drawn = (row <= block) & (context.new[None, :] | ((row == block) & context.old[None, :] & redraw_old))
  return {
      "kernel": jnp.where(drawn, _uniform(for_kernel, params["kernel"], bound), params["kernel"]),
      "bias": jnp.where(context.new, jnp.where(later, 0.0, _uniform(for_bias, params["bias"], bound)), params["bias"]),
      "auxiliary_kernel": jnp.where(columns, _uniform(jax.random.fold_in(key, 2), params["auxiliary_kernel"],
                                                      (3.0 / width) ** 0.5), 0.0),
      "auxiliary_bias": jnp.zeros_like(params["auxiliary_bias"])}


def _uniform(key: jax.Array, like: jax.Array, bound: jax.Array | float) -> jax.Array:
  return jax.random.uniform(key, like.shape, like.dtype, minval=-bound, maxval=bound)
