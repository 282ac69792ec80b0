"""Losses over the softmax of each task, or of old and new classes, on its own (EEIL, SS-IL).

As in losses.py, masked columns have no influence, and all arithmetic is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax.losses import check_shapes, masked_log_softmax, mean_over
from gr_jax.typing import AnyArray

# The smallest share of a softmax that counts: its logarithm is -87.
_SMALLEST_SHARE = 1e-38


def task_log_softmax(logits: jax.Array, classes: AnyArray, task_of_class: AnyArray) -> tuple[jax.Array, jax.Array]:
  """log p and log(1 - p), with p the softmax over the classes of each task.

  Args:
    logits: [batch, classes] float.
    classes: [classes] bool, may be traced.
    task_of_class: [classes] int, below the number of classes.

  Returns:
    Two arrays [batch, classes] float32, 0 with zero gradient outside `classes`. log(1 - p) is at least -87 below the
    logarithm of the largest share, and 0 for the only class of a task.
  """
  same = _same_task(classes, task_of_class)
  logits = jnp.where(classes, logits.astype(jnp.float32), 0.0)
  # The largest logit of each task; it only keeps exp() in range and needs no gradient.
  top = jax.ops.segment_max(jnp.where(classes, jax.lax.stop_gradient(logits), -jnp.inf).T, task_of_class,
                            num_segments=logits.shape[-1])[task_of_class].T
  shifted = logits - jnp.where(classes, top, 0.0)
  exponentials = jnp.where(classes, jnp.exp(shifted), 0.0)
  total = _product(exponentials, same)
  # Summed without the class itself, because 1 - p rounds to 0 for p near 1.
  rest = _product(exponentials, same & ~jnp.eye(same.shape[0], dtype=bool))
  log_total = jnp.log(jnp.where(classes, total, 1.0))
  several = jnp.sum(same, axis=0) > 1
  log_rest = jnp.log(jnp.where(several, jnp.maximum(rest, _SMALLEST_SHARE), 1.0)) - log_total
  return jnp.where(classes, shifted - log_total, 0.0), jnp.where(several, log_rest, 0.0)


def task_binary_distillation(student: jax.Array, teacher: jax.Array, old: AnyArray, task_of_class: AnyArray,
                             temperature: float) -> jax.Array:
  """EEIL: sum over old tasks of the mean over batch and classes of -(q log p + (1 - q) log(1 - p)).

  p and q are the softmaxes of student and teacher over the task's classes. A task with one class adds 0.

  Args:
    student, teacher: [batch, classes] float logits; no gradient reaches the teacher.
    old: [classes] bool, may be traced; without old classes the loss is 0.
    task_of_class: [classes] int.
    temperature: T.
  """
  check_shapes(student, teacher, classes=old)
  log_p, log_rest = task_log_softmax(student / temperature, old, task_of_class)
  targets = task_log_softmax(jax.lax.stop_gradient(teacher) / temperature, old, task_of_class)
  q, rest = map(jnp.exp, targets)
  sizes = jnp.sum(_same_task(old, task_of_class), axis=0)
  each = -(q * log_p + rest * log_rest) / jnp.maximum(sizes, 1).astype(jnp.float32)[None, :]
  return jnp.mean(jnp.sum(jnp.where(sizes > 1, each, 0.0), axis=-1))


def task_distillation(student: jax.Array, teacher: jax.Array, old: AnyArray, task_of_class: AnyArray,
                      temperature: float) -> jax.Array:
  """SS-IL: sum over old tasks of KL(softmax(q / T) || softmax(z / T)), mean over the batch, without T^2.

  Arguments as for `task_binary_distillation`.
  """
  check_shapes(student, teacher, classes=old)
  log_p, _ = task_log_softmax(student / temperature, old, task_of_class)
  log_q, _ = task_log_softmax(jax.lax.stop_gradient(teacher) / temperature, old, task_of_class)
  return jnp.mean(jnp.sum(jnp.where(old, jnp.exp(log_q) * (log_q - log_p), 0.0), axis=-1))


def group_cross_entropy(logits: jax.Array, labels: jax.Array, group: AnyArray) -> jax.Array:
  """SS-IL: cross-entropy over the classes of a group, mean over the images of these classes; 0 if there are none.

  Args:
    logits: [batch, classes] float.
    labels: [batch] int.
    group: [classes] bool, may be traced; the new classes, or the old ones.
  """
  check_shapes(logits, labels=labels, classes=group)
  labels = jnp.asarray(labels)
  images = jnp.asarray(group)[labels]
  picked = jnp.take_along_axis(masked_log_softmax(logits, group), labels[:, None], axis=-1)[:, 0]
  return mean_over(-jnp.sum(jnp.where(images, picked, 0.0)), jnp.sum(images))


def _same_task(classes: AnyArray, task_of_class: AnyArray) -> jax.Array:
  """[classes, classes] bool: whether both take part and are of one task."""
  classes, task_of_class = jnp.asarray(classes), jnp.asarray(task_of_class)
  return classes[:, None] & classes[None, :] & (task_of_class[:, None] == task_of_class[None, :])


def _product(values: jax.Array, mask: jax.Array) -> jax.Array:
  return jnp.dot(values, mask.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
