"""Parts of Gradient Reweighting that combine with other methods: the prior, DAKD and the gradient rule.

He & Zhu, "Gradient Reweighting: Towards Imbalanced Class-Incremental Learning", CVPR 2024; docs/method.md, sections 4
and 5. A part finds the terms that it changes by `Loss.kind`, so it is written once for all methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gr_jax import losses
from gr_jax import reweighting as rules
from gr_jax.errors import UserError
from gr_jax.methods.base import Context, HeadParams, Loss, Method, Outputs, Stage
from gr_jax.methods.options import Option, weight

# Options that every method has besides those it defines; where a method defines one of the same name, that one counts.
OPTIONS: dict[str, Option] = {
    "reweighting": Option("none", rules.KINDS), "prior": Option(False), "distillation": Option("own", ("own", "dakd")),
    "task_ratio": Option("release", rules.TASK_RATIOS), "attenuation_gamma": weight(1.0)}
# Options that mean something only with reweighting="dgr".
_OF_DGR = ("task_ratio", "attenuation_gamma")

# Heads in which each column of the kernel belongs to one class, and whose logits are those of the softmax.
_HEADS = ("linear", "cosine", "proxies")
# A logit whose softmax is 0 in float32, and whose gradient is 0 too.
_NEVER = -1e9


def resolve(given: Mapping[str, Any]) -> dict[str, Any]:
  """The options of the parts that are switched on, complete; those of other parts are left out.

  So a run without parts is saved, and resumed, as before there were any.

  Args:
    given: checked options, by their names in OPTIONS.

  Raises:
    UserError: an option of a part that is off.
  """
  switched_on = {key: value for key, value in given.items() if key not in _OF_DGR and value != OPTIONS[key].default}
  dgr = switched_on.get("reweighting") == "dgr"
  for key in _OF_DGR:
    if dgr:
      switched_on[key] = given.get(key, OPTIONS[key].default)
    elif key in given:
      raise UserError(f"method_options.{key} is set, but it belongs to reweighting='dgr', which is off; add "
                      f"--config.method_options.reweighting=dgr or leave it out")
  return switched_on


def combine(method: Method, *, reweighting: str = "none", prior: bool = False, distillation: str = "own",
            task_ratio: str = "release", attenuation_gamma: float = 1.0) -> Method:
  """A method with parts of Gradient Reweighting, in every stage that trains the backbone.

  The prior is added to the logits of the method's cross-entropy. With DAKD the method's own distillation is computed
  twice, on the student's logits and on logits mixed with the teacher's; its weight and temperature stay. The gradient
  rule rescales the columns of the cross-entropy's gradient and that of the distillation of logits; the gradients of
  all other terms are added as they are. With several proxies a class, these together are its column.

  Args:
    method: with a linear or a cosine head, or with proxies.
    reweighting, task_ratio, attenuation_gamma: see reweighting.gradient_reweighting.
    prior: the prior-regularized softmax.
    distillation: "dakd", or "own" for the method's.

  Raises:
    UserError: a part that does not combine with the method, and why.
  """
  if (reweighting, prior, distillation) == ("none", False, "own"):
    return method
  asked = [f"{name}={value}" for name, value, off in (
      ("reweighting", reweighting, "none"), ("prior", prior, False), ("distillation", distillation, "own"))
           if value != off]
  if method.head.kind not in _HEADS:
    raise _refusal(method, asked, f"its head is none of {', '.join(_HEADS)} ({method.head.kind})")
  terms = [loss for stage in method.stages if stage.backbone == "train" for loss in stage.losses.values()]
  kinds = {loss.kind for loss in terms}
  if "cross_entropy" not in kinds and (prior or reweighting != "none"):
    raise _refusal(method, asked[:-1] if distillation != "own" else asked,
                   "it has no cross-entropy of a softmax over the classes")
  if prior and any(loss.prior for loss in terms):
    raise _refusal(method, ["prior=True"], "it has the prior already")
  if "distillation" not in kinds and distillation != "own":
    raise _refusal(method, asked[-1:], "it does not distil logits")
  if reweighting != "none" and any(stage.rule is not None for stage in method.stages):
    raise _refusal(method, asked[:1], "it has a gradient rule of its own")

  def changed(stage: Stage) -> Stage:
    if stage.backbone != "train":
      return stage
    terms = {name: _changed(loss, prior, distillation == "dakd") for name, loss in stage.losses.items()}
    if reweighting == "none":
      return stage._replace(losses=terms)
    rule = rules.gradient_reweighting(kind=reweighting, task_ratio=task_ratio, gamma=attenuation_gamma)
    return stage._replace(losses=terms, rule=on_columns(rule, terms), report=report, summary=summary)

  return method._replace(stages=tuple(map(changed, method.stages)))


def _refusal(method: Method, asked: list[str], reason: str) -> UserError:
  return UserError(f"method {method.name!r} does not combine with {' and '.join(asked)}, because {reason}; remove the "
                   f"option, or choose another method")


def _changed(loss: Loss, prior: bool, dakd: bool) -> Loss:
  if prior and loss.kind == "cross_entropy":
    return loss._replace(value=_with_prior(loss.value))
  return loss._replace(value=_by_lost_images(loss.value)) if dakd and loss.kind == "distillation" else loss


def _with_prior(value: Any) -> Any:
  """A cross-entropy over z + log pi; a class without images takes no part."""
  def with_prior(student: Outputs, teacher: Any, labels: jax.Array, context: Context) -> jax.Array:
    counts = jnp.asarray(context.counts)
    shifted = jnp.where(counts > 0, student.logits + losses.log_prior(counts)[None, :], _NEVER)
    return value(student._replace(logits=shifted), teacher, labels, context)

  return with_prior


def _by_lost_images(value: Any) -> Any:
  """DAKD of any distillation D of logits: h D(z, q) + (1 - h) D(v z + (1 - v) q, q)."""
  def by_lost_images(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    evenness = losses.lost_evenness(context.lost, context.old)
    weights = losses.lost_weights(context.lost, context.old)[None, :]
    mixed = weights * student.logits + (1.0 - weights) * jax.lax.stop_gradient(teacher.logits)
    return (evenness * value(student, teacher, labels, context)
            + (1.0 - evenness) * value(student._replace(logits=mixed), teacher, labels, context))

  return by_lost_images


def on_columns(rule: optax.GradientTransformationExtraArgs, terms: Mapping[str, Loss]
               ) -> optax.GradientTransformationExtraArgs:
  """The gradient rule on a head that may have more than kernel and bias, in a stage that may have other terms.

  Args:
    rule: a `reweighting.gradient_reweighting`.
    terms: of the stage, by name. The rule combines those of kind "cross_entropy" with those of kind "distillation".
      Gradients of other terms, also of such that are not in `terms`, are added; other parameters get the sum over all.
  """
  def init_fn(params: HeadParams) -> Any:
    return rule.init(_columns(params))

  def update_fn(updates: Any, state, params=None, *, gradients, **arguments):
    by_kind: dict[str, list] = {"cross_entropy": [], "distillation": [], "other": []}
    for name, gradient in gradients.items():
      # An add-on may have added terms to the stage since.
      by_kind[terms[name].kind if name in terms else "other"].append(_columns(gradient))
    taken = {kind: _sum(by_kind[kind]) for kind in ("cross_entropy", "distillation") if by_kind[kind]}
    rescaled, state = rule.update(_columns(updates), state, None if params is None else _columns(params),
                                  gradients=taken, **arguments)
    rescaled_columns: Any = rescaled
    columns: Any = {name: values.reshape(updates[name].shape) for name, values in rescaled_columns.items()}
    others = [{name: tree[name].reshape(values.shape) for name, values in columns.items()} for tree in by_kind["other"]]
    return {**updates, **_sum([columns, *others])}, state

  # optax's annotation cannot say that extra arguments are needed.
  return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore[reportArgumentType]


def _columns(head: Any) -> HeadParams:
  """Kernel [all parameters of a class, classes] and bias [classes]."""
  return {name: head[name].reshape(*shape, head[name].shape[-1]) for name, shape in (("kernel", (-1,)), ("bias", ()))
          if name in head}


def _sum(trees: list[HeadParams]) -> HeadParams:
  return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)


def report(state: rules.RuleState) -> dict[str, jax.Array]:
  """What the gradient rule reports of a step, see methods.base.Stage."""
  ratios = state.ratios
  return {"alpha": ratios.alpha, "r_old": ratios.r_old, "r_new": ratios.r_new, "beta": ratios.beta}


def summary(state: rules.RuleState, steps: int) -> dict[str, jax.Array]:
  """What the gradient rule reports of a stage."""
  # Phi is the sum of the column norms over the stage's steps, so it also gives their mean.
  return {"gradient_norms": state.phi / steps, "phi": state.phi, "column": state.ratios.column}
