"""Geometric prototype alignment, GPA (ICCV 2025)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gr_jax import class_statistics
from gr_jax.losses import unit
from gr_jax.methods.addons import needs
from gr_jax.methods.base import (
    Boundary,
    Context,
    HeadMask,
    HeadParams,
    Method,
    Networks,
    Outputs,
    Stage,
    Track,
    usual_mask,
)

VARIANTS = ("published", "robust")

_MEANS = "gpa_means"
# Our choice: the paper has an epsilon in the logarithm, without its value.
_SHARE_OFFSET = 1e-6


def wrap(method: Method, *, variant: str, weight: float, momentum: float) -> Method:
  """New columns start as the normalised class means of the previous model's features, and stay near the centroids.

  "published": W_c = mu_c / ||mu_c||, b_c = -log(N_c / N_ref + eps), old columns are frozen, and
  weight sum_c ||W_c - m_c / ||m_c|| ||^2 over the new classes is added to the loss, with m_c a moving average of the
  class's features. The paper does not give N_ref (here the mean N_c of the new classes), eps, the rate of the average
  and the start of the first task (here drawn as ever, since no model has learned anything). An independent group could
  not reproduce its numbers and found that bias and anchor do harm.
  "robust": the columns alone, with bias 0; no anchor, and the method trains the columns that it would train.

  Args:
    method: with a linear or a cosine head.
    variant: one of VARIANTS.
    weight: lambda of the anchor; 0.12 for CIFAR-100-LT.
    momentum: of the moving average, below 1.

  Raises:
    UserError: a method that cannot be wrapped.
  """
  needs.head(method, "gpa", ("linear", "cosine"))
  needs.training_in_every_task(method, "gpa")
  needs.nothing_before(method, "gpa")
  published = variant == "published"
  first = next(i for i, stage in enumerate(method.stages) if stage.backbone == "train" and stage.tasks == "all")

  def begin(networks: Networks, context: Context, key: jax.Array) -> Networks:
    method_begin = method.stages[first].begin
    networks = networks if method_begin is None else method_begin(networks, context, key)
    head = imprinted(networks.params["classifier"], networks.carry[_MEANS], context, with_bias=published)
    return networks._replace(params={**networks.params, "classifier": head})

  def changed(index: int, stage: Stage) -> Stage:
    if stage.backbone != "train":
      return stage
    if index == first:
      stage = stage._replace(before=Boundary(_measure, _keep), begin=begin)
    if not published:
      return stage
    return stage._replace(trainable=_new_columns(stage.trainable), penalty=_anchored(stage.penalty, weight),
                          track=_centroids(momentum))

  stages = tuple(changed(index, stage) for index, stage in enumerate(method.stages))
  return method._replace(stages=stages).carrying(
      lambda features, num_classes: {_MEANS: jnp.zeros((num_classes, features), jnp.float32)})


def imprinted(head: HeadParams, means: jax.Array, context: Context, *, with_bias: bool) -> HeadParams:
  """The head with unit columns along the class means of the new classes; unchanged in the first task.

  Args:
    head: its parameters.
    means: [classes, features] float32; a class without a mean keeps its column.
    context: `counts` gives N_c.
    with_bias: whether a bias is -log(N_c / N_ref + eps), else 0.
  """
  chosen = context.new & jnp.any(context.old) & jnp.any(means != 0, axis=1)
  renewed = {**head, "kernel": jnp.where(chosen, unit(means, axis=1).T, head["kernel"])}
  if "bias" in head:
    counts = jnp.where(context.new, context.counts, 0.0)
    reference = jnp.sum(counts) / jnp.maximum(jnp.sum(context.new), 1).astype(jnp.float32)
    compensation = -jnp.log(counts / jnp.maximum(reference, 1e-12) + _SHARE_OFFSET)
    renewed["bias"] = jnp.where(chosen, compensation if with_bias else 0.0, head["bias"])
  return renewed


def _measure(outputs: Outputs, labels: jax.Array, valid: jax.Array, context: Context) -> class_statistics.Sums:
  return class_statistics.sums(outputs.features, labels, valid, context.old.shape[0])


def _keep(carry: dict[str, jax.Array], sums: class_statistics.Sums, context: Context) -> dict[str, jax.Array]:
  del context
  return {**carry, _MEANS: class_statistics.means(sums)}


def _new_columns(trainable: Callable[[HeadParams, Context], HeadMask] | None
                 ) -> Callable[[HeadParams, Context], HeadMask]:
  def masked(head: HeadParams, context: Context) -> HeadMask:
    mask = (usual_mask if trainable is None else trainable)(head, context)
    return {name: part & context.new if name in ("kernel", "bias") else part for name, part in mask.items()}

  return masked


def _centroids(momentum: float) -> Track:
  """Moving averages of the features of each class, [classes, features]; 0 for a class that has not been met."""
  def step(state: jax.Array, student: Outputs, labels: jax.Array, total: Callable[[Any], Any]) -> jax.Array:
    batch_sums = total(class_statistics.sums(student.features, labels, jnp.ones(labels.shape, bool), len(state)))
    moved = momentum * state + (1.0 - momentum) * class_statistics.means(batch_sums)
    return jnp.where((batch_sums.images > 0)[:, None], moved, state)

  return Track(lambda head: jnp.zeros(head["kernel"].shape[::-1], jnp.float32), step)


def _anchored(penalty: Callable[[HeadParams, Any, Context], jax.Array] | None, weight: float
              ) -> Callable[[HeadParams, Any, Context], jax.Array]:
  """The stage's penalty and weight sum_c ||W_c - m_c / ||m_c|| ||^2 over the new classes that have a centroid."""
  def value(head: HeadParams, tracked: jax.Array, context: Context) -> jax.Array:
    # The scale of a centroid cancels, so the average needs no correction of its start.
    met = context.new & jnp.any(tracked != 0, axis=1)
    apart = jnp.where(met, head["kernel"] - unit(tracked, axis=1).T, 0.0)
    anchor = weight * jnp.sum(jnp.square(apart))
    return anchor if penalty is None else anchor + penalty(head, tracked, context)

  return value
