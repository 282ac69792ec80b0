"""Classifier heads over all K classes of the scenario; column j = class j in learning order.

Their width never changes, so one compiled step serves all tasks. Columns of unseen classes are masked everywhere
(docs/method.md section 3). Products are exact float32: ratios and angles depend on norms of this layer, and the cost is
small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr_jax.losses import unit
from gr_jax.typing import AnyArray


class Head(NamedTuple):
  """A head as pure functions over its parameters, a dict with at least "kernel" [features, ..., classes].

  Attributes:
    init: (features, classes, tasks) -> parameters before any class has been seen.
    renew: (key, params, new [classes] bool) -> parameters with freshly drawn new columns.
    apply: (params, features [batch, features], context) -> (logits, scores), each [batch, classes] float32. `context`
      is a methods.base.Context.
    kind: "linear": W^T f + b; "cosine": eta cos(f, w_j); "proxies"; "other". Parts and add-ons read it.
    branches: (params, features, context) -> further logits by name, for losses and scores.
  """
  init: Callable[[int, int, int], dict[str, jax.Array]]
  renew: Callable[[jax.Array, dict, AnyArray], dict[str, jax.Array]]
  apply: Callable[[dict, jax.Array, Any], tuple[jax.Array, jax.Array]]
  kind: str = "other"
  branches: Callable[[dict, jax.Array, Any], dict[str, jax.Array]] = lambda params, features, context: {}


def init(features: int, num_classes: int) -> dict[str, jax.Array]:
  """{kernel [features, classes], bias [classes]} float32, all zero, before any class has been seen."""
  return {"kernel": jnp.zeros((features, num_classes), jnp.float32),
          "bias": jnp.zeros(num_classes, jnp.float32)}


def draw_columns(key: jax.Array, classifier: dict, new: AnyArray) -> dict[str, jax.Array]:
  """Draws the columns of the new classes (bool [classes]) from U(-1/sqrt(d), 1/sqrt(d)), bias included."""
  for_kernel, for_bias = jax.random.split(key)
  drawn = {"kernel": _draw(for_kernel, classifier["kernel"], new, classifier["kernel"].shape[0])}
  if "bias" in classifier:
    drawn["bias"] = _draw(for_bias, classifier["bias"], new, classifier["kernel"].shape[0])
  return {**classifier, **drawn}


def _draw(key: jax.Array, values: jax.Array, new: AnyArray, features: int) -> jax.Array:
  bound = features ** -0.5
  drawn = jax.random.uniform(key, values.shape, values.dtype, minval=-bound, maxval=bound)
  return jnp.where(new, drawn, values)


def mask(classifier: dict, seen: AnyArray) -> dict[str, jax.Array]:
  """The classifier with zeros in unseen columns, so that their values cannot leak."""
  return {name: jnp.where(seen, values, 0.0) if name in ("kernel", "bias") else values
          for name, values in classifier.items()}


def logits(classifier: dict, features: jax.Array) -> jax.Array:
  """features [batch, features] -> logits [batch, classes] float32."""
  product = jnp.dot(features.astype(jnp.float32), classifier["kernel"], precision=jax.lax.Precision.HIGHEST)
  return product + classifier["bias"][None, :]


def linear() -> Head:
  """W^T f + b."""
  def apply(params: dict, features: jax.Array, context: Any) -> tuple[jax.Array, jax.Array]:
    class_logits = logits(mask(params, context.old | context.new), features)
    return class_logits, class_logits
  return Head(lambda features, classes, tasks: init(features, classes), draw_columns, apply, kind="linear")


def cosine() -> Head:
  """eta cos(f, w_j), with one learned scale eta for all classes, initially 1, and no bias (LUCIR)."""
  def start(features: int, num_classes: int, tasks: int) -> dict[str, jax.Array]:
    del tasks
    return {"kernel": init(features, num_classes)["kernel"], "scale": jnp.ones((), jnp.float32)}

  def apply(params: dict, features: jax.Array, context: Any) -> tuple[jax.Array, jax.Array]:
    kernel = mask(params, context.old | context.new)["kernel"]
    scores = jnp.dot(unit(features.astype(jnp.float32), axis=-1), unit(kernel, axis=0),
                     precision=jax.lax.Precision.HIGHEST)
    return params["scale"] * scores, scores

  return Head(start, draw_columns, apply, kind="cosine")


def bias_corrected() -> Head:
  """alpha_i z_j + beta_i for class j of task i, z from the linear head; initially alpha = 1, beta = 0 (BiC)."""
  def start(features: int, num_classes: int, tasks: int) -> dict[str, jax.Array]:
    return {**init(features, num_classes), "alpha": jnp.ones(tasks, jnp.float32),
            "beta": jnp.zeros(tasks, jnp.float32)}

  def apply(params: dict, features: jax.Array, context: Any) -> tuple[jax.Array, jax.Array]:
    plain = logits(mask(params, context.old | context.new), features)
    alpha, beta = (params[name][context.task_of_class][None, :] for name in ("alpha", "beta"))
    return alpha * plain + beta, plain

  return Head(start, draw_columns, apply)


def proxies(number: int) -> Head:
  """eta s_j with s_j = sum_p softmax_p(u_j)_p u_jp and u_jp = cos(f, proxy p of class j); eta as in `cosine` (PODNet).

  Args:
    number: of proxies of each class; the kernel is [features, number, classes].
  """
  def start(features: int, num_classes: int, tasks: int) -> dict[str, jax.Array]:
    del tasks
    return {"kernel": jnp.zeros((features, number, num_classes), jnp.float32), "scale": jnp.ones((), jnp.float32)}

  def apply(params: dict, features: jax.Array, context: Any) -> tuple[jax.Array, jax.Array]:
    kernel = mask(params, context.old | context.new)["kernel"]
    similarities = jnp.einsum("bd,dpj->bpj", unit(features.astype(jnp.float32), axis=-1), unit(kernel, axis=0),
                              precision=jax.lax.Precision.HIGHEST)
    scores = jnp.sum(jax.nn.softmax(similarities, axis=1) * similarities, axis=1)
    return params["scale"] * scores, scores

  return Head(start, draw_columns, apply, kind="proxies")
