"""Gradient reweighting of the classifier (docs/method.md section 5): Phi, alpha, r, beta.

Pure functions over a classifier's gradient, a dict with `kernel` [features, classes] and optionally `bias` [classes].
Gradients must be averaged over all devices first: the norm of a mean is not the mean of the norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

TASK_RATIOS = ("release", "symmetric")

# Below this norm the distillation gradient is rounding noise, however large the cross-entropy gradient is.
_SMALLEST_DISTILLATION_NORM = 1e-30


class ReweightingState(NamedTuple):
  """State of the method between steps; zeros at the start of each task.

  Attributes:
    phi: [classes] float32, sum over the task's steps of ||dL_ce/dW_j||_2; 0 for unseen classes.
    column: [classes] float32, the ratios r * alpha_j applied in the last step; 0 for unseen classes.
  """
  phi: jax.Array
  column: jax.Array


class Ratios(NamedTuple):
  """The balance ratios of one step: alpha, column [classes]; r_old, r_new, beta scalars; float32."""
  alpha: jax.Array
  column: jax.Array
  r_old: jax.Array
  r_new: jax.Array
  beta: jax.Array


def init(num_classes: int) -> ReweightingState:
  """The state at the start of a task."""
  return ReweightingState(phi=jnp.zeros(num_classes, jnp.float32),
                          column=jnp.zeros(num_classes, jnp.float32))


def attenuation(n_old: jax.Array | float, n_new: jax.Array | float, gamma: float = 1.0) -> jax.Array:
  """a = exp(-gamma N_old / (N_old + N_new)), from the original image counts; float32 scalar in (0, 1]."""
  n_old, n_new = jnp.asarray(n_old, jnp.float32), jnp.asarray(n_new, jnp.float32)
  return jnp.exp(-gamma * n_old / jnp.maximum(n_old + n_new, 1.0))


def accumulate(state: ReweightingState, ce_grads: dict, seen: jax.Array) -> ReweightingState:
  """Phi_j <- Phi_j + ||dL_ce/dW_j||_2 for the seen classes (bool [classes]), 0 for the others."""
  norms = _column_norms(_masked(ce_grads["kernel"], seen))
  return state._replace(phi=jnp.where(seen, state.phi + norms, 0.0))


def update(
    state: ReweightingState, ce_grads: dict, kd_grads: dict | None, *, old: jax.Array, new: jax.Array,
    attenuation: jax.Array | float, task_ratio: str = "release", eps: float = 1e-6,
) -> tuple[dict, ReweightingState, Ratios]:
  """One step of decoupled gradient reweighting (DGR), first task included.

  Args:
    state: of the previous step; `init` at the start of a task.
    ce_grads: dL_ce/d(kernel [features, classes], bias [classes] (optional)).
    kd_grads: the same for L_kd = w_kd T^2 L_dakd; entries outside `old` are ignored; None: beta = 0.
    old, new: [classes] bool, disjoint, may be traced. Without old classes the first task's rule applies.
    attenuation: a of this task.
    task_ratio: "release": both task ratios from PhiBar_new / PhiBar_old, as in the authors' release;
      "symmetric": r_new from PhiBar_old / PhiBar_new.
    eps: a distillation gradient with a norm below eps times the cross-entropy's is dropped.

  Returns:
    (gradient of the classifier, next state, ratios). Unseen columns are 0 in all of them.

  Raises:
    ValueError: unknown `task_ratio`.
  """
  _check_task_ratio(task_ratio)
  old, new = jnp.asarray(old), jnp.asarray(new)
  seen = old | new
  # Phi first: the ratios of a step include the gradient of that step.
  state = accumulate(state, ce_grads, seen)
  phi = state.phi
  alpha = jnp.where(old, _intra_phase(phi, old), jnp.where(new, _intra_phase(phi, new), 0.0))
  r_old, r_new = _inter_phase(phi, old, new, attenuation, task_ratio)
  column = jnp.where(seen, jnp.where(old, r_old, r_new) * alpha, 0.0)
  beta = _distillation_ratio(ce_grads, kd_grads, column, old, seen, eps)
  grads = combine(ce_grads, kd_grads, column=column, beta=beta, old=old, seen=seen)
  return grads, state._replace(column=column), Ratios(alpha, column, r_old, r_new, beta)


def _check_task_ratio(task_ratio: str) -> None:
  if task_ratio not in TASK_RATIOS:
    raise ValueError(f"task_ratio is {task_ratio!r}; it can be {' or '.join(map(repr, TASK_RATIOS))}")


def combine(
    ce_grads: dict, kd_grads: dict | None, *, column: jax.Array, beta: jax.Array | float,
    old: jax.Array, seen: jax.Array) -> dict:
  """column_j dL_ce/dW_j + [j old] beta dL_kd/dW_j for both kernel and bias; 0 in unseen columns."""
  def rescale(ce: jax.Array, kd: jax.Array | None) -> jax.Array:
    total = _by_column(column, ce) * _masked(ce, seen)
    if kd is not None:
      total = total + beta * _masked(kd, old)
    return total.astype(ce.dtype)
  return {name: rescale(ce, None if kd_grads is None else kd_grads.get(name))
          for name, ce in ce_grads.items()}


def _masked(grad: jax.Array, mask: jax.Array) -> jax.Array:
  return jnp.where(mask, grad.astype(jnp.float32), 0.0)


def _by_column(values: jax.Array, grad: jax.Array) -> jax.Array:
  """Values [classes] in a form that multiplies the columns of a kernel's gradient, or the entries of a bias's."""
  return jnp.expand_dims(values, range(grad.ndim - 1))


def _norm(values: jax.Array, axis: int | None = None) -> jax.Array:
  """Euclidean norm whose squares neither overflow nor underflow float32."""
  top = jnp.max(jnp.abs(values), axis=axis)
  scale = jnp.where(top > 0, top, 1.0)
  scaled = values / (scale if axis is None else jnp.expand_dims(scale, axis))
  return top * jnp.sqrt(jnp.sum(jnp.square(scaled), axis=axis))


def _column_norms(kernel: jax.Array) -> jax.Array:
  return _norm(kernel, axis=0)


def _intra_phase(phi: jax.Array, group: jax.Array) -> jax.Array:
  """alpha_j = min_k Phi_k / Phi_j inside a group; the minimum is over Phi > 0, and alpha_j = 1 where Phi_j = 0."""
  positive = group & (phi > 0)
  smallest = jnp.min(phi, where=positive, initial=jnp.inf)
  return jnp.where(positive, smallest / jnp.where(positive, phi, 1.0), 1.0)


def _inter_phase(
    phi: jax.Array, old: jax.Array, new: jax.Array, attenuation: jax.Array | float,
    task_ratio: str) -> tuple[jax.Array, jax.Array]:
  """The task ratios (r_old, r_new); both 1 without old classes, for any attenuation."""
  mean_old, mean_new = _mean(phi, old), _mean(phi, new)
  both = (mean_old > 0) & (mean_new > 0)
  new_over_old = jnp.where(both, mean_new, 1.0) / jnp.where(both, mean_old, 1.0)
  for_new = new_over_old if task_ratio == "release" else 1.0 / new_over_old
  r_old = jnp.minimum(1.0, new_over_old)
  r_new = jnp.minimum(1.0, for_new * attenuation)
  first_task = ~jnp.any(old)
  return jnp.where(first_task, 1.0, r_old), jnp.where(first_task, 1.0, r_new)


def _mean(values: jax.Array, group: jax.Array) -> jax.Array:
  """Mean over a group, zeros included; 0 for an empty group."""
  return jnp.sum(jnp.where(group, values, 0.0)) / jnp.maximum(jnp.sum(group), 1).astype(jnp.float32)


def _distillation_ratio(
    ce_grads: dict, kd_grads: dict | None, column: jax.Array, old: jax.Array, seen: jax.Array,
    eps: float) -> jax.Array:
  """beta: norm of the rescaled cross-entropy gradient over norm of the distillation gradient."""
  if kd_grads is None:
    return jnp.zeros((), jnp.float32)
  ce, kd = _masked(ce_grads["kernel"], seen), _masked(kd_grads["kernel"], old)
  ce_norm, kd_norm = _norm(ce), _norm(kd)
  # If student and teacher agree, the ratio would scale rounding noise up to the size of the other gradient.
  counts = (kd_norm > eps * ce_norm) & (kd_norm >= _SMALLEST_DISTILLATION_NORM)
  return jnp.where(counts, _norm(_by_column(column, ce) * ce) / jnp.where(counts, kd_norm, 1.0), 0.0)


class RuleState(NamedTuple):
  """State of `gradient_reweighting`: Phi, and the ratios of the last step for logging."""
  phi: jax.Array
  ratios: Ratios


KINDS = ("dgr", "class", "none")


def gradient_reweighting(
    path: tuple[str, ...] = (), *, kind: str = "dgr", task_ratio: str = "release", gamma: float = 1.0,
    eps: float = 1e-6) -> optax.GradientTransformationExtraArgs:
  """Gradient reweighting for all tasks as an optax transformation; put it before weight decay and momentum.

  Its `update` replaces the classifier's gradient in the updates. It takes these keyword arguments: `gradients`:
  {"cross_entropy": gradient of the classifier, "distillation": the same for L_kd, missing in the first task},
  averaged over devices; `old`, `new`: [classes] bool; `counts`: [classes], original training images n_j.

  Args:
    path: keys from the root of the parameter tree to the classifier; () if the tree is the classifier.
    kind: "dgr": docs/method.md section 5; "class": alpha over all seen classes together, r = 1, beta = 1; "none": the
      plain sum. All three record Phi.
    task_ratio, eps: see `update`.
    gamma: of the attenuation a, see `attenuation`.

  Raises:
    ValueError: unknown kind or task_ratio; at `init`: no classifier at `path`.
  """
  if kind not in KINDS:
    raise ValueError(f"kind is {kind!r}; it can be {', '.join(map(repr, KINDS))}")
  _check_task_ratio(task_ratio)
  path = (path,) if isinstance(path, str) else tuple(path)

  def init_fn(params: optax.Params) -> RuleState:
    classes = _find_classifier(params, path)["kernel"].shape[-1:]
    # Each array needs a separate buffer, so that the state can be donated.
    phi, alpha, column, r_old, r_new, beta = (
        jnp.zeros(shape, jnp.float32) for shape in (classes, classes, classes, (), (), ()))
    return RuleState(phi, Ratios(alpha, column, r_old, r_new, beta))

  def update_fn(updates, state, params=None, *, gradients, old, new, counts, **extra):
    del params, extra
    ce_grads, kd_grads = gradients["cross_entropy"], gradients.get("distillation")
    before, seen = ReweightingState(state.phi, state.ratios.column), old | new
    if kind == "dgr":
      n_old, n_new = (jnp.sum(jnp.where(group, counts, 0.0)) for group in (old, new))
      grads, after, ratios = update(before, ce_grads, kd_grads, old=old, new=new, eps=eps, task_ratio=task_ratio,
                                    attenuation=attenuation(n_old, n_new, gamma))
    else:
      if kind == "class":
        _, after, ratios = update(before, ce_grads, None, old=jnp.zeros_like(old), new=seen, attenuation=1.0)
      else:
        after, one = accumulate(before, ce_grads, seen), jnp.ones((), jnp.float32)
        ones = seen.astype(jnp.float32)
        ratios = Ratios(alpha=ones, column=ones, r_old=one, r_new=one, beta=one)
      ratios = ratios._replace(beta=jnp.asarray(0.0 if kd_grads is None else 1.0, jnp.float32))
      grads = combine(ce_grads, kd_grads, column=ratios.column, beta=ratios.beta, old=old, seen=seen)
    return _replace(updates, path, grads), RuleState(after.phi, ratios)

  # optax's annotation cannot say that extra arguments are needed.
  return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore[reportArgumentType]


def balance_classifier(path: tuple[str, ...]) -> optax.GradientTransformation:
  """The first task's rule as an optax transformation: each classifier column is multiplied by alpha_j.

  Put it before weight decay and momentum; gradients must be averaged over devices.

  Args:
    path: keys from the root of the parameter tree to the dict with `kernel` [features, classes] and optionally
      `bias` [classes]; all other leaves are unchanged.

  Raises:
    ValueError: at `init`, if there is no such dict at `path`; the message lists the candidates.
  """
  path = (path,) if isinstance(path, str) else tuple(path)

  def init_fn(params: optax.Params) -> ReweightingState:
    kernel = _find_classifier(params, path)["kernel"]
    return init(kernel.shape[-1])

  def update_fn(updates, state, params=None):
    del params
    every = jnp.ones(state.phi.shape, bool)
    balanced, state, _ = update(
        state, _find_classifier(updates, path), None, old=~every, new=every, attenuation=1.0)
    return _replace(updates, path, balanced), state

  return optax.GradientTransformation(init_fn, update_fn)


def _find_classifier(tree: Any, path: tuple[str, ...]) -> dict:
  node = tree
  for key in path:
    node = node[key] if isinstance(node, Mapping) and key in node else None
  if node is None or not _is_classifier(node):
    raise ValueError(f"no classifier (a dict with a two-dimensional `kernel` and perhaps a `bias`) at "
                     f"{path}; candidates: {sorted(_candidates(tree, ())) or 'none'}")
  return node


def _is_classifier(node: Any) -> bool:
  return (isinstance(node, Mapping) and "kernel" in node and set(node) <= {"kernel", "bias"}
          and jnp.ndim(node["kernel"]) == 2)


def _candidates(node: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
  if not isinstance(node, Mapping):
    return []
  paths = [path] if _is_classifier(node) else []
  return paths + [c for key in node for c in _candidates(node[key], (*path, key))]


def _replace(tree: dict, path: tuple[str, ...], value: dict) -> dict:
  if not path:
    return value
  return type(tree)({**tree, path[0]: _replace(tree[path[0]], path[1:], value)})
