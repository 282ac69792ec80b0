"""Finetuning: only cross-entropy, on new images and exemplars (FACIL's baseline)."""

from __future__ import annotations

import jax

from gr_jax import losses
from gr_jax.methods.base import Context, HeadMask, HeadParams, Loss, Method, Outputs, Stage, logits
from gr_jax.models import heads


def make(*, memory: int) -> Method:
  """Builds the method.

  Args:
    memory: exemplars per class. 0: cross-entropy only over the new classes; old columns are not trained.
  """
  return Method("finetune", (plain_stage({}, memory),), heads.linear(), {"logits": logits})


def plain_stage(further: dict[str, Loss], memory: int) -> Stage:
  """Cross-entropy over all seen classes (without memory: over the new ones), and further terms."""
  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.seen if memory else context.new)

  def new_columns(head: HeadParams, context: Context) -> HeadMask:
    return {"kernel": context.new, "bias": context.new}

  terms = {"cross_entropy": Loss(cross_entropy, kind="cross_entropy"), **further}
  return Stage("train", terms, trainable=None if memory else new_columns)
