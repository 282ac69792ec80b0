"""PODNet (Douillard et al., ECCV 2020): proxies, distillation of pooled maps, balanced finetuning."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax import losses, pooled_outputs
from gr_jax.methods.base import Context, HeadMask, HeadParams, Loss, Method, Outputs, Stage, logits
from gr_jax.models import heads

LOSSES = ("long_tailed_cil", "pycil")


def make(*, loss: str, proxies: int, flat_weight: float, spatial_weight: float, balanced_epochs_share: float,
         balanced_learning_rate: float) -> Method:
  """Builds the method: cosine head with several proxies for each class, signed features, frozen old columns.

  L = classification + sqrt(N / n_new) (flat_weight (1 - cos(f, f_old)) + spatial_weight POD), with N = n_old + n_new
  classes and POD = pooled_outputs.spatial_distillation over the outputs of all stages before their last ReLU. From the
  second task on, a second stage trains with the same loss on the exemplars, those of the new classes included.

  Where a released code has an accident, this is left out: Long-Tailed-CIL scales the scores only in training, and its
  ResNet-32 for this method has no ReLU at the end of any block.

  Args:
    loss: "long_tailed_cil": cross-entropy; "pycil": see pooled_outputs.nca.
    proxies: of each class.
    flat_weight, spatial_weight: of the distillation of features and of maps; 1 and 3 in Long-Tailed-CIL, 1 and 5 in
      PyCIL and in the paper.
    balanced_epochs_share: epochs of the second stage over those of the first; 20 / 160 in PyCIL. 0: no second stage, as
      in Long-Tailed-CIL.
    balanced_learning_rate: of the second stage, constant.
  """
  classification = losses.cross_entropy if loss == "long_tailed_cil" else pooled_outputs.nca

  def classify(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return classification(student.logits, labels, context.seen)

  def scale(context: Context) -> jax.Array:
    return jnp.sqrt(jnp.sum(context.seen) / jnp.maximum(jnp.sum(context.new), 1))

  def flat(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    return flat_weight * scale(context) * losses.less_forget(student.features, teacher.features)

  def spatial(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    return spatial_weight * scale(context) * pooled_outputs.spatial_distillation(student.maps, teacher.maps)

  def new_columns(head: HeadParams, context: Context) -> HeadMask:
    return {"kernel": context.new}

  terms = {"cross_entropy" if loss == "long_tailed_cil" else "nca": Loss(
      classify, kind="cross_entropy" if loss == "long_tailed_cil" else "other"), "flat": Loss(flat, teacher=True),
           "spatial": Loss(spatial, teacher=True)}
  stages = [Stage("train", terms, trainable=new_columns)]
  if balanced_epochs_share:
    stages.append(Stage("balance", terms, tasks="later", rows="exemplars", epochs_share=balanced_epochs_share,
                        learning_rate=balanced_learning_rate, trainable=new_columns))
  return Method("podnet", tuple(stages), heads.proxies(proxies), {"logits": logits}, signed_features=True,
                uses_maps=True, min_memory=1)
