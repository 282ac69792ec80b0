"""iCaRL (Rebuffi et al., CVPR 2017): sigmoid distillation, nearest mean of exemplars."""

from __future__ import annotations

import jax

from gr_jax import losses
from gr_jax.methods.base import (
  NEAREST_MEAN,
  Context,
  Loss,
  Method,
  Outputs,
  Stage,
  logits,
  nearest_exemplar_mean,
)
from gr_jax.models import heads

LOSSES = ("long_tailed_cil", "paper", "pycil")

_PYCIL_TEMPERATURE = 2.0


def make(*, loss: str, weight: float) -> Method:
  """Builds the method.

  The patience schedule of iCaRL in Long-Tailed-CIL is left out: all methods share one schedule.

  Args:
    loss: "long_tailed_cil": cross-entropy over all seen classes and sigmoid distillation; "paper": binary
      cross-entropy for every class, with targets from the label for new classes and from the teacher for old ones;
      "pycil": cross-entropy over all seen classes and distillation of the softmax at T = 2.
    weight: of the distillation, except with "paper".
  """
  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    if loss == "paper":
      targets = jax.nn.one_hot(labels, student.logits.shape[-1])
      return losses.binary_cross_entropy(student.logits, targets, context.new)
    return losses.cross_entropy(student.logits, labels, context.seen)

  def distil(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    if loss == "pycil":
      return weight * losses.distillation(student.logits, teacher.logits, context.old, _PYCIL_TEMPERATURE)
    return (1.0 if loss == "paper" else weight) * losses.sigmoid_distillation(
        student.logits, teacher.logits, context.old)

  terms = {"cross_entropy": Loss(cross_entropy, kind="other" if loss == "paper" else "cross_entropy"),
           "distillation": Loss(distil, teacher=True, kind="distillation")}
  stage = Stage("train", terms)
  return Method("icarl", (stage,), heads.linear(), {NEAREST_MEAN: nearest_exemplar_mean, "logits": logits},
                exemplar_means=True, min_memory=1)
