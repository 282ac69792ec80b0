"""SS-IL (Ahn et al., "SS-IL: Separated Softmax for Incremental Learning", ICCV 2021)."""

from __future__ import annotations

import jax

from gr_jax import losses, sampling, separated
from gr_jax.methods.base import Context, Loss, Method, Outputs, Stage, logits
from gr_jax.models import heads


def make(*, weight: float, temperature: float, ratio: int) -> Method:
  """Builds the method.

  L = CE of new images over the new classes + CE of exemplars over the old classes
      + weight sum_i KL(softmax_i(q / T) || softmax_i(z / T)), one term for each old task i, over all images.

  A batch has the config's number of new images, and one exemplar besides for each `ratio` of them. Predicts by the
  logits of all seen classes. The first task, without exemplars, is cross-entropy. Where Long-Tailed-CIL's code has an
  accident, this is left out: a task with fewer new images than a batch trains nothing there, and the last exemplars of
  the memory are never used.

  Args:
    weight, temperature: of the distillation; no T^2.
    ratio: new images for each exemplar in a batch.
  """
  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.seen)

  def of_new(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return separated.group_cross_entropy(student.logits, labels, context.new)

  def of_memory(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return separated.group_cross_entropy(student.logits, labels, context.old)

  def distil(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    return weight * separated.task_distillation(
        student.logits, teacher.logits, context.old, context.task_of_class, temperature)

  terms = {"cross_entropy": Loss(of_new, kind="cross_entropy"),
           "memory_cross_entropy": Loss(of_memory, kind="cross_entropy"),
           "distillation": Loss(distil, teacher=True, kind="distillation")}
  stages = (Stage("first", {"cross_entropy": Loss(cross_entropy, kind="cross_entropy")}, tasks="first"),
            Stage("train", terms, tasks="later", sampler=sampling.new_and_memory(ratio)))
  return Method("ssil", stages, heads.linear(), {"logits": logits}, min_memory=1)
