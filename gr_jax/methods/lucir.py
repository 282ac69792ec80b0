"""LUCIR (Hou et al., "Learning a Unified Classifier Incrementally via Rebalancing", CVPR 2019)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax import losses
from gr_jax.methods.base import Context, HeadMask, HeadParams, Loss, Method, Outputs, Stage, logits
from gr_jax.models import heads


def make(*, distillation_weight: float, ranking_weight: float, margin: float, hardest: int) -> Method:
  """Builds the method: cosine head, signed features, frozen old columns, no imprinting.

  L = CE(eta s) + distillation_weight sqrt(n_old / n_new) (1 - cos(f, f_old)) + ranking_weight MR; n counts classes.

  Args:
    distillation_weight: 5 for CIFAR, 10 for ImageNet.
    ranking_weight, margin, hardest: of the margin ranking over exemplars.
  """
  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.seen)

  def distil(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    scale = jnp.sqrt(jnp.sum(context.old) / jnp.maximum(jnp.sum(context.new), 1))
    return distillation_weight * scale * losses.less_forget(student.features, teacher.features)

  def rank(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    return ranking_weight * losses.margin_ranking(
        student.scores, labels, context.old, context.new, margin=margin, hardest=hardest)

  def new_columns(head: HeadParams, context: Context) -> HeadMask:
    return {"kernel": context.new}

  # The ranking uses no teacher, but needs old classes: teacher=True leaves it out in the first task.
  terms = {"cross_entropy": Loss(cross_entropy, kind="cross_entropy"), "distillation": Loss(distil, teacher=True),
           "ranking": Loss(rank, teacher=True)}
  return Method("lucir", (Stage("train", terms, trainable=new_columns),), heads.cosine(), {"logits": logits},
                signed_features=True, min_memory=1)
