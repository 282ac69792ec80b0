"""Bias correction, BiC (Wu et al., "Large Scale Incremental Learning", CVPR 2019)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from gr_jax import losses
from gr_jax.methods.base import Context, HeadMask, HeadParams, Loss, Method, Outputs, Stage, logits
from gr_jax.methods.wa import shared_losses
from gr_jax.models import heads

# Share of a class's exemplars reserved for the correction.
_HELD_OUT_SHARE = 0.1


def make(*, memory: int, temperature: float, bias_epochs_share: float, bias_learning_rate: float,
         bias_penalty: float) -> Method:
  """Builds the method.

  The first stage trains the network on corrected logits, with all corrections frozen. The second stage, from the
  second task on, trains only alpha and beta of the new task, on images that the first stage has not seen: the first
  tenth of a class's exemplars (2 of 20).

  Args:
    memory: exemplars per class, held-out ones included.
    temperature: T of the distillation; no T^2.
    bias_epochs_share: epochs of the second stage over those of the first; 200 / 160 in BiC.
    bias_learning_rate: of the second stage, constant.
    bias_penalty: factor of beta^2 of the new task in the loss.
  """
  def network_only(head: HeadParams, context: Context) -> HeadMask:
    never = jnp.zeros((), bool)
    return {"kernel": context.seen, "bias": context.seen, "alpha": never, "beta": never}

  def correction_only(head: HeadParams, context: Context) -> HeadMask:
    never = jnp.zeros((), bool)
    # alpha and beta are indexed by task number.
    this = jnp.arange(head["alpha"].shape[0]) == context.task
    return {"kernel": never, "bias": never, "alpha": this, "beta": this}

  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.seen)

  def penalty(head: HeadParams, tracked: Any, context: Context) -> jax.Array:
    del tracked
    return bias_penalty * jnp.square(head["beta"][context.task])

  stages = (
      Stage("train", shared_losses(temperature), trainable=network_only),
      Stage("correct_bias", {"cross_entropy": Loss(cross_entropy)}, tasks="later", rows="held_out", backbone="frozen",
            epochs_share=bias_epochs_share, learning_rate=bias_learning_rate, weight_decay=False,
            trainable=correction_only, penalty=penalty))
  return Method("bic", stages, heads.bias_corrected(), {"logits": logits}, held_out=held_out(memory), min_memory=3)


def held_out(memory: int) -> int:
  """Number of images of each class that the correction reserves from `memory` exemplars."""
  # Rounded first, because 0.1 * 70 is more than 7 in floating point.
  return math.ceil(round(_HELD_OUT_SHARE * memory, 9))
