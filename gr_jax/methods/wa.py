"""Weight aligning, WA (Zhao et al., CVPR 2020): distillation, then scaling of new columns."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax import alignment, losses
from gr_jax.methods.base import Context, HeadParams, Loss, Method, Outputs, Stage, logits
from gr_jax.models import heads


def make(*, temperature: float) -> Method:
  """Builds the method: L = (1 - w) CE + w KD_T with w = n_old / N (numbers of classes).

  The aligned head predicts and is the next task's teacher. The paper's clipping of negative weights is left out, as in
  PyCIL.

  Args:
    temperature: T of the distillation; no T^2.
  """
  def end(head: HeadParams, context: Context) -> HeadParams:
    return {**head, "kernel": alignment.align(head["kernel"], context.old, context.new)}

  stage = Stage("train", shared_losses(temperature), end=end)
  return Method("wa", (stage,), heads.linear(), {"logits": logits})


def shared_losses(temperature: float) -> dict[str, Loss]:
  """(1 - w) CE and w KD_T with w = n_old / N; also used by BiC's first stage."""
  def share(context: Context) -> jax.Array:
    return jnp.sum(context.old) / jnp.maximum(jnp.sum(context.seen), 1)

  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return (1.0 - share(context)) * losses.cross_entropy(student.logits, labels, context.seen)

  def distil(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    return share(context) * losses.distillation(student.logits, teacher.logits, context.old, temperature)

  return {"cross_entropy": Loss(cross_entropy, kind="cross_entropy"),
          "distillation": Loss(distil, teacher=True, kind="distillation")}
