"""Learnable weight scaling, LWS (Liu et al., "Long-Tailed Class Incremental Learning", ECCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gr_jax import losses, sampling
from gr_jax.methods.addons import needs
from gr_jax.methods.base import Context, HeadMask, HeadParams, Loss, Method, Outputs, Stage, usual_mask
from gr_jax.models.heads import Head

_SCALE = "class_scale"


def wrap(method: Method, *, epochs_share: float, learning_rate: float, scale_rate: float) -> Method:
  """Adds a second stage, in every task: the logits are l_j z_j, with one learned scale l_j a class, initially 1.

  The first stage, its teacher included, ignores the scales. The second one trains the new columns and all scales by
  cross-entropy over the seen classes, on class-balanced batches and the frozen backbone; the rate falls as half a
  cosine. Where Long-Tailed-CIL's code has an accident, this is left out: the scales learn at a tenth of the rate from
  the first epoch on, not from the second; the first stage does not decay them; no stage is skipped or cut to one epoch.

  Args:
    method: with a linear head, a cosine head or proxies; it predicts by its logits.
    epochs_share: epochs of the second stage over those of the first, rounded up; 30 / 160 in Long-Tailed-CIL.
    learning_rate: of the second stage's first epoch.
    scale_rate: learning rate of the scales over that of the columns.

  Raises:
    UserError: a method that cannot be wrapped.
  """
  needs.head(method, "lws", ("linear", "cosine", "proxies"))
  needs.prediction_by_logits(method, "lws")

  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.seen)

  def new_columns_and_scales(head: HeadParams, context: Context) -> HeadMask:
    # Other parameters belong to all classes, such as eta of a cosine head.
    return {"kernel": context.new, "bias": context.new, _SCALE: context.seen}

  rows = method.stages[0].rows
  balance = Stage("scale_classes", {"cross_entropy": Loss(cross_entropy)}, rows=rows, backbone="frozen",
                  epochs_share=epochs_share, learning_rate=learning_rate, schedule="cosine",
                  rates={_SCALE: scale_rate}, sampler=sampling.CLASS_BALANCED, trainable=new_columns_and_scales)
  return method._replace(
      head=_scaled(method.head), stages=(*(_unscaled(stage, method.head) for stage in method.stages), balance),
      min_memory=method.min_memory if rows == "all" else max(method.min_memory, 1))


def _scaled(head: Head) -> Head:
  def init(features: int, num_classes: int, tasks: int) -> HeadParams:
    return {**head.init(features, num_classes, tasks), _SCALE: jnp.ones(num_classes, jnp.float32)}

  def renew(key: jax.Array, params: HeadParams, new: Any) -> HeadParams:
    return {**params, **head.renew(key, params, new)}

  def apply(params: HeadParams, features: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
    logits, scores = head.apply(params, features, context)
    return jnp.where(context.seen, params[_SCALE], 1.0)[None, :] * logits, scores

  return head._replace(init=init, renew=renew, apply=apply)


def _unscaled(stage: Stage, head: Head) -> Stage:
  """A stage that neither uses nor trains the scales."""
  def trainable(params: HeadParams, context: Context) -> HeadMask:
    mask = (usual_mask if stage.trainable is None else stage.trainable)(params, context)
    return {**mask, _SCALE: jnp.zeros((), bool)}

  rule = None if stage.rule is None else _without_scale(stage.rule)
  return stage._replace(head=stage.head or head, trainable=trainable, rule=rule)


def _without_scale(rule: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
  """A gradient rule that does not see the scales."""
  def rest(head: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in head.items() if name != _SCALE}

  def init_fn(params: HeadParams) -> Any:
    return rule.init(rest(params))

  def update_fn(updates: Any, state, params=None, *, gradients, **arguments):
    result = rule.update(rest(updates), state, None if params is None else rest(params),
                         gradients={name: rest(gradient) for name, gradient in gradients.items()}, **arguments)
    rescaled: Any = result[0]
    return {**updates, **rescaled}, result[1]

  # optax's annotation cannot say that extra arguments are needed.
  return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore[reportArgumentType]
