"""Nearest class mean on features frozen after the first task: the rule of SimpleCIL (Zhou et al., "Revisiting
Class-Incremental Learning with Pre-Trained Models", IJCV 2024), here on a backbone trained by the first task."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gr_jax import class_statistics, losses, nearest_mean
from gr_jax.methods.base import Boundary, Context, HeadMask, HeadParams, Loss, Method, Outputs, Stage
from gr_jax.models import heads


def make() -> Method:
  """Builds the method: a floor that neither forgets nor learns features after the first task, and keeps no exemplars.

  The first task trains by cross-entropy. In every task the mean feature of each new class, over all its images, is
  kept; the largest cosine with a mean is the answer. SimpleCIL takes a pretrained backbone and trains nothing.
  """
  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.seen)

  def nothing(head: HeadParams, context: Context) -> HeadMask:
    return {name: jnp.zeros((), bool) for name in head}

  def nearest(outputs: Outputs, carry: Any, context: Context) -> jax.Array:
    return nearest_mean.scores(outputs.features, carry["class_means"], carry["has_class_mean"])

  terms = {"cross_entropy": Loss(cross_entropy)}
  # The second stage is there for its measurement. Its one step trains nothing: checkpoints are numbered by steps, so
  # every task needs one.
  stages = (Stage("train", terms, tasks="first", rows="new"),
            Stage("class_means", terms, rows="new", backbone="frozen", steps=1, trainable=nothing,
                  before=Boundary(_measure, _keep)))
  return Method("simplecil", stages, heads.linear(), {"nearest_mean": nearest}).carrying(
      lambda features, num_classes: {"class_means": jnp.zeros((num_classes, features), jnp.float32),
                                     "has_class_mean": jnp.zeros(num_classes, bool)})


def _measure(outputs: Outputs, labels: jax.Array, valid: jax.Array, context: Context) -> class_statistics.Sums:
  return class_statistics.sums(outputs.features, labels, valid, context.old.shape[0])


def _keep(carry: dict[str, jax.Array], sums: class_statistics.Sums, context: Context) -> dict[str, jax.Array]:
  means = losses.unit(class_statistics.means(sums), axis=-1)
  return {**carry, "class_means": jnp.where(context.new[:, None], means, carry["class_means"]),
          "has_class_mean": carry["has_class_mean"] | context.new}
