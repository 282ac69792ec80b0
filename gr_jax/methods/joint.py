"""Joint training on all images of all seen classes: the upper bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax import losses
from gr_jax.methods.base import Context, Loss, Method, Outputs, Stage, logits
from gr_jax.models import heads


def make(*, prior: bool) -> Method:
  """Builds the method; weights are kept from the previous task, and the schedule is that of all methods.

  Args:
    prior: use the prior-regularized softmax of Gradient Reweighting instead of the plain one.
  """
  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    counts = context.counts if prior else context.seen.astype(jnp.float32)
    return losses.prior_regularized_cross_entropy(student.logits, labels, counts)

  stage = Stage("train", {"cross_entropy": Loss(cross_entropy, kind="cross_entropy")}, rows="all")
  return Method("joint", (stage,), heads.linear(), {"logits": logits})
