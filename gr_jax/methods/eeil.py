"""EEIL (Castro et al., "End-to-End Incremental Learning", ECCV 2018): distillation, then balance."""

from __future__ import annotations

import jax

from gr_jax import losses, separated
from gr_jax.methods.base import Context, Loss, Method, Outputs, Stage, logits
from gr_jax.models import heads

# What the balanced stage is distilled from.
TEACHERS = ("start", "previous")


def make(*, weight: float, temperature: float, balanced_epochs_share: float, balanced_learning_rate: float,
         balanced_teacher: str) -> Method:
  """Builds the method: L = CE + weight sum_i BCE(softmax_i(z / T), softmax_i(q / T)), one term for each old task i.

  From the second task on, a second stage trains with the same loss on balanced images: the exemplars of old classes and
  as many images of each new one. Where Long-Tailed-CIL's code has an accident, this is left out: it does not distil the
  most recent old task in the first stage, and draws new images regardless of their class, so that a long tail remains.
  Its optional gradient noise, off by default, is left out too.

  Args:
    weight, temperature: of the distillation; no T^2.
    balanced_epochs_share: epochs of the second stage over those of the first; 40 / 160 in Long-Tailed-CIL.
    balanced_learning_rate: of the second stage, constant.
    balanced_teacher: "start": the model after the first stage, as in the paper; "previous": that of the previous task,
      as in Long-Tailed-CIL.
  """
  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.seen)

  def distil(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    return weight * separated.task_binary_distillation(
        student.logits, teacher.logits, context.old, context.task_of_class, temperature)

  terms = {"cross_entropy": Loss(cross_entropy, kind="cross_entropy"),
           "distillation": Loss(distil, teacher=True, kind="distillation")}
  stages = (
      Stage("train", terms),
      Stage("balance", terms, tasks="later", rows="balanced", epochs_share=balanced_epochs_share,
            learning_rate=balanced_learning_rate, teacher=balanced_teacher))
  return Method("eeil", stages, heads.linear(), {"logits": logits}, min_memory=1)
