"""Gradient Reweighting (He & Zhu, CVPR 2024), with the switches of docs/method.md sections 4 and 5."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax import losses
from gr_jax import reweighting as rules
from gr_jax.methods.base import Context, Loss, Method, Outputs, Stage, logits
from gr_jax.methods.combining import on_columns, report, summary
from gr_jax.models import heads

HEADS = ("linear", "cosine")


def make(*, reweighting: str, prior: bool, distillation: str, task_ratio: str, distillation_weight: float,
         attenuation_gamma: float, temperature: float, head: str) -> Method:
  """Builds the method.

  Args:
    reweighting: "dgr", "class" or "none", see reweighting.gradient_reweighting.
    prior: the regularized softmax; False: n'_j = 1 for all seen classes.
    distillation: "dakd", "kd" or "none".
    task_ratio: "release" or "symmetric".
    distillation_weight: 0.7 in w_kd = 0.7 sqrt(N_old / N_new).
    attenuation_gamma: gamma of a = exp(-gamma N_old / (N_old + N_new)).
    temperature: T of the distillation.
    head: "linear", or "cosine" (ours): LUCIR's head and signed features, with all seen columns trained.
  """
  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    counts = context.counts if prior else context.seen.astype(jnp.float32)
    return losses.prior_regularized_cross_entropy(student.logits, labels, counts)

  def distil(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    if distillation == "dakd":
      loss = losses.distribution_aware_distillation(
          student.logits, teacher.logits, context.lost, context.old, temperature)
    else:
      loss = losses.distillation(student.logits, teacher.logits, context.old, temperature)
    n_old, n_new = (jnp.sum(jnp.where(group, context.original, 0.0)) for group in (context.old, context.new))
    return losses.distillation_weight(n_old, n_new, distillation_weight) * temperature**2 * loss

  terms = {"cross_entropy": Loss(cross_entropy, kind="cross_entropy")}
  if distillation != "none":
    terms["distillation"] = Loss(distil, teacher=True, kind="distillation")
  rule = rules.gradient_reweighting(kind=reweighting, task_ratio=task_ratio, gamma=attenuation_gamma)
  if head == "cosine":
    # The scale belongs to no column: it takes the plain gradient of both losses.
    rule = on_columns(rule, terms)
  stage = Stage("train", terms, rule=rule, report=report, summary=summary)
  return Method("gr", (stage,), heads.cosine() if head == "cosine" else heads.linear(), {"logits": logits},
                signed_features=head == "cosine")
