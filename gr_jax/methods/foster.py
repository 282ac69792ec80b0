"""FOSTER (Wang et al., "FOSTER: Feature Boosting and Compression for Class-Incremental Learning", ECCV 2022)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gr_jax import alignment, class_weights, losses
from gr_jax.methods.base import (
  Context,
  Growth,
  HeadMask,
  HeadParams,
  Loss,
  Method,
  Networks,
  Outputs,
  Stage,
  logits,
)
from gr_jax.models import blocks, frozen, heads

OLD_FEATURES = ("train", "zero")
ALIGNMENTS = ("none", "teacher", "student", "both")


def make(*, boosting_beta: float, compression_beta: float, distillation_weight: float, temperature: float,
         compression_epochs_share: float, old_features: str, align: str, align_base: float) -> Method:
  """Builds the method.

  Boosting: a new backbone beside the frozen old one, L = CE(z / w) + CE(z_new) + distillation_weight KD_T(z, z_old),
  where z_new comes from a head on the new backbone alone. Compression: both are distilled into one backbone that
  starts as the old one, with the teacher's probabilities times w'; no weight decay. The compressed network predicts
  and is the old one of the next task; the score "dual" is that of both backbones.

  w and w' follow the numbers of images in the stage. PyCIL takes 500 for every new class of CIFAR, and reports the
  accuracies of both backbones for those of the method.

  Args:
    boosting_beta, compression_beta: of w and w', see class_weights.effective_number.
    distillation_weight: of the old classes' distillation when boosting.
    temperature: T of both distillations; no T^2.
    compression_epochs_share: epochs of the compression over those of the boosting.
    old_features: "train": the new classes see the old backbone's features; "zero": they do not (PyCIL's "az").
    align: whose new columns are scaled as in WA, times align_base^(n_old / n_new), before and after compression.
    align_base: as above.
  """
  def seen(context: Context) -> jax.Array:
    return jnp.asarray(context.seen)

  def begin(networks: Networks, context: Context, key: jax.Array) -> Networks:
    head = blocks.grow(key, networks.params["classifier"], context, block=0, columns=seen(context))
    return networks._replace(params={**networks.params, "classifier": head})

  def begin_boosting(networks: Networks, context: Context, key: jax.Array) -> Networks:
    params, carry = networks.params, networks.carry
    stack = frozen.put(carry["frozen"], _backbone(networks), 0)
    head = blocks.grow(key, params["classifier"], context, block=1, columns=seen(context))
    if old_features == "zero":
      head["kernel"] = jnp.where(_on_old_features(head, context), 0.0, head["kernel"])
    return networks._replace(params={**params, "classifier": head}, carry={
        **carry, "frozen": stack, "heads": {**carry["heads"], "old": params["classifier"]}})

  def begin_compression(networks: Networks, context: Context, key: jax.Array) -> Networks:
    boosted, carry = networks.params["classifier"], networks.carry
    old, previous = carry["heads"]["old"], frozen.take(carry["frozen"], 0)
    head = blocks.grow(key, {**boosted, "kernel": old["kernel"], "bias": old["bias"]}, context, block=0,
                       columns=seen(context), redraw_old=False)
    if align in ("teacher", "both"):
      boosted = aligned(boosted, context)
    return Networks({"backbone": previous["params"], "classifier": head}, previous["batch_stats"], {
        **carry, "frozen": frozen.put(carry["frozen"], _backbone(networks), 1),
        "heads": {"old": old, "boosted": boosted}})

  def aligned(head: HeadParams, context: Context) -> HeadParams:
    ratio = jnp.sum(context.old) / jnp.maximum(jnp.sum(context.new), 1)
    kernel = alignment.align(head["kernel"], context.old, context.new)
    return {**head, "kernel": jnp.where(context.new, align_base ** ratio * kernel, kernel)}

  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.seen)

  def weighted(student: Outputs, teacher: jax.Array, labels: jax.Array, context: Context) -> jax.Array:
    weights = class_weights.effective_number(context.counts, context.seen, boosting_beta)
    return losses.cross_entropy(student.logits / weights[None, :], labels, context.seen)

  def new_features(student: Outputs, teacher: jax.Array, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.branches["auxiliary"], labels, context.seen)

  def distil(student: Outputs, teacher: jax.Array, labels: jax.Array, context: Context) -> jax.Array:
    return distillation_weight * losses.distillation(student.logits, teacher, context.old, temperature)

  def compress(student: Outputs, teacher: jax.Array, labels: jax.Array, context: Context) -> jax.Array:
    weights = class_weights.effective_number(context.counts, context.seen, compression_beta)
    # softmax(z / T + log w) is softmax(z / T) times w, made to add up to 1.
    weighted_teacher = teacher + temperature * jnp.log(weights)[None, :]
    return losses.distillation(student.logits, weighted_teacher, context.seen, temperature)

  def not_on_old_features(head: HeadParams, context: Context) -> HeadMask:
    return {"kernel": context.seen[None, :] & ~_on_old_features(head, context), "bias": context.seen}

  def main_head(head: HeadParams, context: Context) -> HeadMask:
    never = jnp.zeros((), bool)
    return {"kernel": context.seen, "bias": context.seen, "auxiliary_kernel": never, "auxiliary_bias": never}

  def dual(outputs: Outputs, carry: Any, context: Context) -> jax.Array:
    assert isinstance(outputs.frozen, jax.Array)
    return jnp.where(context.task > 0, _of("boosted")(carry, outputs.frozen, context), outputs.logits)

  def both(context: Context) -> jax.Array:
    return jnp.where(context.task > 0, 2, 0)

  stages = (
      Stage("train", {"cross_entropy": Loss(cross_entropy)}, tasks="first", begin=begin, growth=Growth(_none, _alone),
            trainable=main_head),
      Stage("boost", {"cross_entropy": Loss(weighted), "new_features": Loss(new_features),
                      "distillation": Loss(distil)}, tasks="later", begin=begin_boosting,
            growth=Growth(lambda context: 1, lambda features, others, context: blocks.place(features, others, 1)),
            teach=_of("old"), trainable=not_on_old_features if old_features == "zero" else None),
      Stage("compress", {"distillation": Loss(compress)}, tasks="later", epochs_share=compression_epochs_share,
            weight_decay=False, begin=begin_compression, growth=Growth(lambda context: 2, _alone),
            teach=_of("boosted"), trainable=main_head,
            end=aligned if align in ("student", "both") else None))
  head = blocks.linear(lambda tasks: 2, blocks.Auxiliary(lambda context: 1, seen))
  return Method("foster", stages, head, {"compressed": logits, "dual": dual}, min_memory=1, stack=lambda tasks: 2,
                kept_heads=("old", "boosted"), blocks=lambda tasks: 2, growth=Growth(both, _alone),
                scores_frozen=True)


def _none(context: Context) -> int:
  return 0


def _alone(features: jax.Array, others: jax.Array, context: Context) -> jax.Array:
  """Features of one backbone, in the first block."""
  return blocks.place(features, jnp.zeros_like(others), 0)


def _of(name: str) -> Any:
  """(carry, features of the stack, context) -> logits of a kept head."""
  def kept_logits(carry: dict[str, Any], others: jax.Array, context: Context) -> jax.Array:
    return heads.logits(heads.mask(carry["heads"][name], context.seen), others)

  return kept_logits


def _backbone(networks: Networks) -> dict[str, Any]:
  return {"params": networks.params["backbone"], "batch_stats": networks.batch_stats}


def _on_old_features(head: HeadParams, context: Context) -> jax.Array:
  """Entries of new columns in the old backbone's block."""
  width = head["auxiliary_kernel"].shape[0]
  return (jnp.arange(head["kernel"].shape[0]) < width)[:, None] & context.new[None, :]
