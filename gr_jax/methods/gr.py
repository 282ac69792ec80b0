"""Gradient Reweighting (He & Zhu, CVPR 2024), with the switches of METHOD.md sections 4 and 5."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax import losses, reweighting
from gr_jax.methods.base import Method, Outputs, TaskFacts


def gradient_reweighting(
    *, reweighting_rule: str, prior: bool, distillation: str, task_ratio: str, temperature: float) -> Method:
  """The method as a value.

  Args:
    reweighting_rule: "dgr": the whole of section 5; "class": alpha over all seen classes together, r = 1,
      beta = 1; "none": the plain gradient of L. Phi is recorded in all three.
    prior: the regularized softmax; False: n'_j = 1 for all seen classes.
    distillation: "dakd", "kd" or "none".
    task_ratio: "release" or "symmetric".
    temperature: T of the distillation.
  """
  def cross_entropy(student: Outputs, labels: jax.Array, facts: TaskFacts) -> jax.Array:
    seen = facts.old | facts.new
    counts = facts.class_counts if prior else seen.astype(jnp.float32)
    return losses.prior_regularized_cross_entropy(student.logits, labels, counts)

  def distil(student: Outputs, teacher: Outputs, facts: TaskFacts) -> jax.Array:
    if distillation == "dakd":
      loss = losses.distribution_aware_distillation(
          student.logits, teacher.logits, facts.lost, facts.old, temperature)
    else:
      loss = losses.distillation(student.logits, teacher.logits, facts.old, temperature)
    return facts.distillation_weight * temperature**2 * loss

  def classifier_gradient(state, ce_grads, kd_grads, facts):
    old, new = facts.old, facts.new
    seen = old | new
    if reweighting_rule == "dgr":
      return reweighting.update(state, ce_grads, kd_grads, old=old, new=new,
                                attenuation=facts.attenuation, task_ratio=task_ratio)
    if reweighting_rule == "class":
      _, state, ratios = reweighting.update(state, ce_grads, None, old=jnp.zeros_like(old), new=seen,
                                            attenuation=1.0)
    else:
      state = reweighting.accumulate(state, ce_grads, seen)
      one, ones = jnp.ones((), jnp.float32), seen.astype(jnp.float32)
      ratios = reweighting.Ratios(alpha=ones, column=ones, r_old=one, r_new=one, beta=one)
    beta = jnp.asarray(0.0 if kd_grads is None else 1.0, jnp.float32)
    grads = reweighting.combine(ce_grads, kd_grads, column=ratios.column, beta=beta, old=old, seen=seen)
    return grads, state._replace(column=ratios.column), ratios._replace(beta=beta)

  return Method(name="gr", uses_teacher=distillation != "none", uses_maps=False, init=reweighting.init,
                cross_entropy=cross_entropy, distillation=distil, classifier_gradient=classifier_gradient)
