"""From backbones to outputs: the functions that the train step, evaluation and feature extraction share."""

from __future__ import annotations

from typing import Any

import jax

from gr_jax.methods.base import Context, Growth, HeadParams, Method, Outputs
from gr_jax.models import Backbone, frozen
from gr_jax.models.heads import Head


def beside(model: Backbone, growth: Growth | None, carry: dict[str, Any] | None, images: jax.Array, context: Context
           ) -> jax.Array | tuple[()]:
  """Features of the frozen backbones, [batch, size * features]; () without `growth`.

  `carry` holds their stack, folded (frozen.fold_carry).
  """
  if growth is None:
    return ()
  assert carry is not None
  return frozen.walk(model, carry["frozen"], images, growth.walked(context))


def joined(growth: Growth | None, features: jax.Array, others: jax.Array | tuple[()], context: Context) -> jax.Array:
  """Features for the head, from those of the trained backbone and those of `beside`."""
  if growth is None:
    return features
  assert isinstance(others, jax.Array)
  return growth.join(features, others, context)


def outputs(reader: Head, growth: Growth | None, head: HeadParams, encoded: tuple[jax.Array, tuple[jax.Array, ...]],
            others: jax.Array | tuple[()], context: Context) -> Outputs:
  """Outputs of a network; `reader` reads its head, `encoded` are its backbone's features and maps, `others` as in
  `beside`."""
  return read(reader, head, (joined(growth, encoded[0], others, context), encoded[1]), others, context)


def read(reader: Head, head: HeadParams, encoded: tuple[jax.Array, tuple[jax.Array, ...]],
         others: jax.Array | tuple[()], context: Context) -> Outputs:
  """Outputs from the features for the head, and maps; `others` as for `outputs`."""
  features, maps = encoded
  return Outputs(*reader.apply(head, features, context), features, maps,
                 reader.branches(head, features, context), others)


def extra_bytes(method: Method, backbone: Any, tasks: int) -> int:
  """Bytes of the backbones beyond one that the method's first score needs after `tasks` tasks.

  Args:
    method: the method.
    backbone: parameters of one backbone, arrays or their shapes.
    tasks: finished tasks, 1 or more.
  """
  return (method.backbones(tasks) - 1) * _bytes(backbone)


def stack_bytes(method: Method, backbone: Any, tasks: int) -> int:
  """Bytes of the frozen backbones that are kept during the whole training of `tasks` tasks; see `extra_bytes`."""
  return method.stack(tasks) * _bytes(backbone)


def _bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
