"""Gradient consistency and dynamic distillation upon Gradient Reweighting: our reading of an abstract.

Sakai & Hotta, arXiv 2605.03364. Only the abstract and summaries by others were read, so this is no
reproduction, and its accuracies are not those of the paper.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gr_jax import losses
from gr_jax import reweighting as rules
from gr_jax.methods import combining
from gr_jax.methods.base import Context, HeadParams, Loss, Method, Networks, Outputs, Stage, logits
from gr_jax.models import heads

ENTROPIES = ("evenness", "imbalance")

_KERNEL, _BIAS, _STEPS = "mean_gradient_kernel", "mean_gradient_bias", "mean_gradient_steps"


class ConsistentState(NamedTuple):
  """State of `consistent`: the rule's, and the mean gradient with the number of steps behind it.

  Attributes:
    rule: of the rule inside.
    mean: {"kernel" [features, classes], "bias" [classes]} float32.
    steps: float32 scalar.
  """
  rule: Any
  mean: HeadParams
  steps: jax.Array


def make(*, distillation_weight: float, ramp_start: float, entropy: str, temperature: float, consistency: float,
         momentum: float) -> Method:
  """Builds the method: the losses and the gradient rule of Gradient Reweighting, with two changes.

  The distillation is plain, and its weight is lambda_0 sqrt(N_old / N_new) s(e / E) H T^2. s rises from `ramp_start` to
  1 with the epochs of the task. H is the normalised entropy of the images present, by class. The classifier's gradient
  g is pulled towards its moving average, which outlives the tasks: m <- momentum m + (1 - momentum) g, then
  g + consistency (m - g). The abstract says neither the schedule, nor the sign of the entropy's effect, nor which
  parameters the average covers: these are our choices.

  Args:
    distillation_weight: lambda_0.
    ramp_start: s in the first epoch; 1 for no ramp.
    entropy: "evenness": H; "imbalance": 1 - H in its place.
    temperature: T.
    consistency: share of the moving average; 0 for none.
    momentum: of the moving average, below 1.
  """
  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.prior_regularized_cross_entropy(student.logits, labels, context.counts)

  def distil(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    n_old, n_new = (jnp.sum(jnp.where(group, context.original, 0.0)) for group in (context.old, context.new))
    even = losses.evenness(context.counts, context.seen)
    scheduled = (ramp_start + (1.0 - ramp_start) * context.progress) * (even if entropy == "evenness" else 1.0 - even)
    return (losses.distillation_weight(n_old, n_new, distillation_weight) * scheduled * temperature**2
            * losses.distillation(student.logits, teacher.logits, context.old, temperature))

  def recalled(networks: Networks, context: Context, key: jax.Array) -> Networks:
    carry = networks.carry
    mean = {"kernel": carry[_KERNEL], "bias": carry[_BIAS]}
    return networks._replace(rule=networks.rule._replace(mean=mean, steps=carry[_STEPS]))

  def remembered(state: ConsistentState, carry: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {**carry, _KERNEL: state.mean["kernel"], _BIAS: state.mean["bias"], _STEPS: state.steps}

  terms = {"cross_entropy": Loss(cross_entropy, kind="cross_entropy", prior=True),
           "distillation": Loss(distil, teacher=True, kind="distillation")}
  stage = Stage("train", terms, rule=consistent(rules.gradient_reweighting(), consistency, momentum),
                report=lambda state: combining.report(state.rule),
                summary=lambda state, steps: combining.summary(state.rule, steps),
                begin=recalled, remember=remembered)
  return Method("dynamic_distillation", (stage,), heads.linear(), {"logits": logits}).carrying(
      lambda features, num_classes: {_KERNEL: jnp.zeros((features, num_classes), jnp.float32),
                                     _BIAS: jnp.zeros(num_classes, jnp.float32), _STEPS: jnp.zeros((), jnp.float32)})


def consistent(rule: optax.GradientTransformationExtraArgs, share: float, momentum: float
               ) -> optax.GradientTransformationExtraArgs:
  """g + share (m - g) for the gradient g of `rule` and its moving average m, this step included; m is g at first."""
  def init_fn(params: HeadParams) -> ConsistentState:
    return ConsistentState(rule.init(params), jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))

  def update_fn(updates, state, params=None, **arguments):
    gradients, inner = rule.update(updates, state.rule, params, **arguments)
    kept = jnp.where(state.steps > 0, momentum, 0.0)
    mean = jax.tree.map(lambda average, gradient: kept * average + (1.0 - kept) * gradient, state.mean, gradients)
    pulled = jax.tree.map(lambda average, gradient: gradient + share * (average - gradient), mean, gradients)
    return pulled, ConsistentState(inner, mean, state.steps + 1.0)

  # optax's annotation cannot say that extra arguments are needed.
  return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore[reportArgumentType]
