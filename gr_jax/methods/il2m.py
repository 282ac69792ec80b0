"""IL2M (Belouadah & Popescu, ICCV 2019): finetuning, and scores rectified at test time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gr_jax import losses, rectification
from gr_jax.methods.base import Boundary, Context, Method, Outputs, logits
from gr_jax.methods.finetune import plain_stage
from gr_jax.models import heads

SCORES = ("logits", "probabilities")


def make(*, memory: int, scores: str) -> Method:
  """Builds the method: trained as finetuning with exemplars; see rectification.rectified for the scores.

  Statistics come from images as they are; Long-Tailed-CIL measures them on augmented ones. Its logits may be negative,
  which turns the correction around: here such a class keeps its score.

  Args:
    memory: exemplars per class.
    scores: "logits", as in Long-Tailed-CIL, or "probabilities", the softmax over the seen classes.
  """
  def score_of(outputs: Outputs, context: Context) -> jax.Array:
    if scores == "logits":
      return outputs.logits
    return jnp.where(context.seen, jnp.exp(losses.masked_log_softmax(outputs.logits, context.seen)), 0.0)

  def measure(outputs: Outputs, labels: jax.Array, valid: jax.Array, context: Context) -> rectification.Sums:
    return rectification.measure(score_of(outputs, context), labels, valid, context.old, context.new)

  def keep(carry: Any, sums: rectification.Sums, context: Context) -> Any:
    return {**carry, **rectification.update(_statistics(carry), sums, context.new)._asdict()}

  def rectified(outputs: Outputs, carry: Any, context: Context) -> jax.Array:
    return rectification.rectified(
        score_of(outputs, context), _statistics(carry), context.old, context.new)

  return Method("il2m", (plain_stage({}, memory),), heads.linear(), {"rectified": rectified, "logits": logits},
                carry=lambda features, classes: rectification.nothing(classes)._asdict(),
                after_memory=Boundary(measure, keep), min_memory=1)


def _statistics(carry: Any) -> rectification.Statistics:
  return rectification.Statistics(carry["initial"], carry["present"], carry["confidence"])
