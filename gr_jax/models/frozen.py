"""A stack of frozen backbones of fixed size: variables with one more leading axis, walked in a loop.

The number that is computed may be traced, so a network that grows with the tasks needs one program.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gr_jax.models import Backbone, folding
from gr_jax.typing import AnyArray, AnyInteger


def empty(variables: Any, size: int) -> Any:
  """A stack of zeros; `variables` {"params", "batch_stats"} of one backbone, arrays or their shapes."""
  return jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), variables)


def put(stack: Any, variables: Any, place: AnyInteger | int, *, when: AnyArray | bool = True) -> Any:
  """The stack with a backbone at `place` (from 0), where the scalar `when` holds; both may be traced."""
  return jax.tree.map(
      lambda whole, one: jnp.where(when, jax.lax.dynamic_update_index_in_dim(whole, one, place, 0), whole),
      stack, variables)


def take(stack: Any, place: AnyInteger | int) -> Any:
  """The variables of the backbone at `place` (from 0)."""
  return jax.tree.map(lambda whole: jax.lax.dynamic_index_in_dim(whole, place, 0, keepdims=False), stack)


def fold_carry(carry: dict[str, Any]) -> dict[str, Any]:
  """A carry whose stack has batch norm folded (models/folding.py), as `walk` takes it."""
  if "frozen" not in carry:
    return carry
  return {**carry, "frozen": jax.vmap(lambda one: folding.fold(one["params"], one["batch_stats"]))(carry["frozen"])}


def walk(model: Backbone, stack: Any, images: jax.Array, count: AnyInteger | int) -> jax.Array:
  """Features of the first `count` backbones in evaluation mode, without gradient.

  Args:
    model: the backbone.
    stack: its variables, folded, [size, ...] each.
    images: [batch, ...] model inputs.
    count: from 0 to size; may be traced. An int needs no loop.

  Returns:
    [batch, size * features] float32; block i is that of backbone i, and 0 from `count` on.
  """
  width, size = model.num_features, jax.tree.leaves(stack)[0].shape[0]
  blocks = jnp.zeros((images.shape[0], size * width), jnp.float32)

  def fill(i: jax.Array | int, blocks: jax.Array) -> jax.Array:
    features, _ = model.apply(take(stack, i), images, train=False)
    return jax.lax.dynamic_update_slice_in_dim(blocks, features, i * width, axis=1)

  if isinstance(count, int):
    for i in range(count):
      blocks = fill(i, blocks)
  else:
    blocks = jax.lax.fori_loop(0, count, fill, blocks)
  return jax.lax.stop_gradient(blocks)
