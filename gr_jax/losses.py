"""The losses of docs/method.md section 4: arrays in, scalars out.

Every function masks before any arithmetic: whatever a masked column contains, even -inf or NaN, the value is finite
and the gradient there is zero. All arithmetic is float32. Shapes that do not fit raise an AssertionError while tracing:
broadcasting would give a wrong loss.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from gr_jax import device_axis
from gr_jax.typing import AnyArray

# Added to every count of lost images before computing the entropy (docs/method.md section 4).
_LOST_OFFSET = 1e-3

# A vector with a squared norm below this counts as zero.
_SMALLEST_SQUARE = 1e-24


def check_shapes(logits: jax.Array, *others: jax.Array, labels: AnyArray | None = None, classes: AnyArray) -> None:
  """Logits and `others` [batch, classes], labels [batch], classes [classes]."""
  chex.assert_rank(logits, 2)
  chex.assert_equal_shape([logits, *others])
  chex.assert_shape(classes, logits.shape[1:])
  if labels is not None:
    chex.assert_shape(labels, logits.shape[:1])


def masked_log_softmax(logits: jax.Array, mask: AnyArray) -> jax.Array:
  """log softmax over the columns in `mask` [classes]; value and gradient are 0 in the others."""
  logits = jnp.where(mask, logits.astype(jnp.float32), 0.0)
  # The largest logit only keeps exp() in range and needs no gradient.
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True, where=mask, initial=-jnp.inf))
  shifted = logits - jnp.where(jnp.isfinite(top), top, 0.0)
  exponentials = jnp.where(mask, jnp.exp(jnp.where(mask, shifted, 0.0)), 0.0)
  total = jnp.sum(exponentials, axis=-1, keepdims=True)
  return jnp.where(mask, shifted - jnp.log(jnp.where(total > 0, total, 1.0)), 0.0)


def prior_regularized_cross_entropy(
    logits: jax.Array, labels: jax.Array, class_counts: AnyArray) -> jax.Array:
  """Cross-entropy over the prior-regularized softmax ([P] "regularized softmax").

  mean over the batch of -log softmax(z + log pi)[y], with pi_j = n'_j / sum_k n'_k.

  Args:
    logits: [batch, classes] float.
    labels: [batch] int, classes in learning order. Each class must have a positive count; otherwise the loss is
      infinite, which the training loop reports.
    class_counts: [classes] int or float, n'_j: training images of class j that are present now. 0: the class is
      masked out.

  Returns:
    float32 scalar.
  """
  counts, labels = jnp.asarray(class_counts, jnp.float32), jnp.asarray(labels)
  check_shapes(logits, labels=labels, classes=counts)
  seen = counts > 0
  adjusted = jnp.where(seen, logits.astype(jnp.float32), 0.0) + log_prior(counts)[None, :]
  log_probabilities = masked_log_softmax(adjusted, seen)
  picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
  return jnp.mean(jnp.where(seen[labels], -picked, jnp.inf))


def log_prior(class_counts: AnyArray) -> jax.Array:
  """log pi_j with pi_j = n'_j / sum_k n'_k; [classes] float32, 0 for a class without images."""
  counts = jnp.asarray(class_counts, jnp.float32)
  seen = counts > 0
  return jnp.where(seen, jnp.log(jnp.where(seen, counts, 1.0) / jnp.sum(jnp.where(seen, counts, 0.0))), 0.0)


def distillation(
    student: jax.Array, teacher: jax.Array, old: AnyArray, temperature: float = 2.0) -> jax.Array:
  """Plain distillation: -mean sum_j softmax(q/T)_j log softmax(z/T)_j over the old classes.

  Args:
    student, teacher: [batch, classes] float logits z and q; no gradient reaches the teacher.
    old: [classes] bool, may be traced; without old classes the loss is 0.
    temperature: T.

  Returns:
    float32 scalar, without w_kd and T^2.
  """
  check_shapes(student, teacher, classes=old)
  targets = _teacher_probabilities(teacher, old, temperature)
  return _soft_cross_entropy(targets, student.astype(jnp.float32) / temperature, old)


def distribution_aware_distillation(
    student: jax.Array, teacher: jax.Array, lost: AnyArray, old: AnyArray,
    temperature: float = 2.0) -> jax.Array:
  """Distribution-aware knowledge distillation, DAKD (docs/method.md section 4).

  -mean sum_j softmax(q/T)_j (h log softmax(z/T)_j + (1-h) log softmax(z_mix/T)_j) with
  z_mix = v z + (1-v) q. A class that lost many images keeps the student's logit and is distilled strongly; for one
  that lost few, the teacher's logit is mixed in and distillation is weak.

  Args:
    student, teacher: [batch, classes] float logits z and q; no gradient reaches the teacher.
    lost: [classes] s_j, images of the class that are gone; entries outside `old` are ignored.
    old: [classes] bool, may be traced; without old classes the loss is 0.
    temperature: T.

  Returns:
    float32 scalar, without w_kd and T^2.
  """
  lost, old = jnp.asarray(lost), jnp.asarray(old)
  check_shapes(student, teacher, classes=old)
  chex.assert_equal_shape([lost, old])
  weights = lost_weights(lost, old)
  evenness = lost_evenness(lost, old)
  student = jnp.where(old, student.astype(jnp.float32), 0.0)
  teacher = jax.lax.stop_gradient(jnp.where(old, teacher.astype(jnp.float32), 0.0))
  mixed = weights[None, :] * student + (1.0 - weights)[None, :] * teacher
  targets = _teacher_probabilities(teacher, old, temperature)
  return (evenness * _soft_cross_entropy(targets, student / temperature, old)
          + (1.0 - evenness) * _soft_cross_entropy(targets, mixed / temperature, old))


def lost_weights(lost: AnyArray, old: AnyArray) -> jax.Array:
  """v = s / ||s||_2 over the old classes, [classes] float32 in [0, 1]; all 0 if nothing was lost."""
  lost = jnp.where(old, lost, 0).astype(jnp.float32)
  # Scaled by the largest entry, because squares of ImageNet-size counts lose precision in float32.
  top = jnp.max(lost)
  scaled = lost / jnp.where(top > 0, top, 1.0)
  norm = jnp.sqrt(jnp.sum(jnp.square(scaled)))
  return scaled / jnp.where(norm > 0, norm, 1.0)


def lost_evenness(lost: AnyArray, old: AnyArray) -> jax.Array:
  """h: entropy of p = (s + 0.001) / sum(s + 0.001) over log C_o; float32 in [0, 1], 1 = evenly lost.

  1 with one old class or none, and if nothing was lost ([D], docs/method.md section 4).
  """
  lost = jnp.where(old, lost, 0).astype(jnp.float32)
  shifted = jnp.where(old, lost + _LOST_OFFSET, 0.0)
  total = jnp.sum(shifted)
  share = jnp.where(old, shifted / jnp.where(total > 0, total, 1.0), 1.0)
  entropy = -jnp.sum(share * jnp.log(share))
  old_classes = jnp.sum(old)
  spread = entropy / jnp.log(jnp.maximum(old_classes, 2).astype(jnp.float32))
  degenerate = (old_classes < 2) | (jnp.sum(lost) <= 0)
  return jnp.where(degenerate, 1.0, jnp.clip(spread, 0.0, 1.0))


def evenness(counts: AnyArray, classes: AnyArray) -> jax.Array:
  """Entropy of the shares of `classes` in the counts, over its maximum; float32 in [0, 1], 1 with one class or none.

  Args:
    counts: [classes], 0 or more; a count of 0 adds nothing.
    classes: [classes] bool.
  """
  counts = jnp.where(classes, counts, 0).astype(jnp.float32)
  total, number = jnp.sum(counts), jnp.sum(classes)
  shares = counts / jnp.where(total > 0, total, 1.0)
  entropy = -jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1.0)))
  spread = entropy / jnp.log(jnp.maximum(number, 2).astype(jnp.float32))
  return jnp.where((number < 2) | (total <= 0), 1.0, jnp.clip(spread, 0.0, 1.0))


def cross_entropy(logits: jax.Array, labels: jax.Array, classes: AnyArray) -> jax.Array:
  """Cross-entropy over the softmax of `classes` ([classes] bool); infinite for a label outside them."""
  return prior_regularized_cross_entropy(logits, labels, classes)


def soft_cross_entropy(logits: jax.Array, targets: jax.Array, classes: AnyArray) -> jax.Array:
  """-sum_bj t_bj log softmax(z_b)_j / sum_bj t_bj, with the softmax over `classes`; 0 if all targets are 0.

  Args:
    logits: [batch, classes] float.
    targets: [batch, classes], 0 or more; a row of zeros takes no part. Those outside `classes` are ignored.
    classes: [classes] bool.
  """
  targets = jnp.where(classes, targets, 0.0)
  return mean_over(-jnp.sum(targets * masked_log_softmax(logits, classes)), jnp.sum(targets))


def cross_entropies(logits: jax.Array, labels: jax.Array, classes: AnyArray) -> jax.Array:
  """`cross_entropy` of each image, [batch] float32; labels must be in `classes`."""
  check_shapes(logits, labels=labels, classes=classes)
  return -jnp.take_along_axis(masked_log_softmax(logits, classes), labels[:, None], axis=-1)[:, 0]


def sigmoid_distillation(student: jax.Array, teacher: jax.Array, old: AnyArray) -> jax.Array:
  """iCaRL: mean over the batch of sum_j BCE(sigmoid(z_j), sigmoid(q_j)) over the old classes.

  Arguments and result as for `distillation`, with temperature 1.
  """
  return binary_cross_entropy(student, jax.nn.sigmoid(jax.lax.stop_gradient(teacher)), old)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array, classes: AnyArray) -> jax.Array:
  """Mean over the batch of sum_j -[t_j log sigmoid(z_j) + (1 - t_j) log(1 - sigmoid(z_j))].

  Args:
    logits: [batch, classes] float.
    targets: [batch, classes] in [0, 1].
    classes: [classes] bool, the classes to sum over.
  """
  check_shapes(logits, targets, classes=classes)
  logits = jnp.where(classes, logits.astype(jnp.float32), 0.0)
  each = jax.nn.softplus(logits) - jnp.where(classes, targets, 0.0) * logits
  return jnp.mean(jnp.sum(jnp.where(classes, each, 0.0), axis=-1))


def less_forget(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """LUCIR: mean over the batch of 1 - cos(f, f_teacher); features [batch, features]."""
  chex.assert_rank(student, 2)
  chex.assert_equal_shape([student, teacher])
  student, teacher = (unit(values.astype(jnp.float32), axis=-1) for values in (student, teacher))
  return jnp.mean(1.0 - jnp.sum(student * jax.lax.stop_gradient(teacher), axis=-1))


def margin_ranking(scores: jax.Array, labels: jax.Array, old: AnyArray, new: AnyArray, *, margin: float = 0.5,
                   hardest: int = 2) -> jax.Array:
  """LUCIR: keeps the score of an exemplar's class a margin above those of the hardest new classes.

  Mean of max(0, margin - s_y + s_k) over the images of old classes and, for each, over the min(hardest, number of new
  classes) highest scores among new classes; 0 if the batch has no image of an old class.

  Args:
    scores: [batch, classes] float, cosines.
    labels: [batch] int.
    old, new: [classes] bool, may be traced.
    margin, hardest: as above.
  """
  check_shapes(scores, labels=labels, classes=old)
  chex.assert_equal_shape([old, new])
  scores = scores.astype(jnp.float32)
  label_scores = jnp.take_along_axis(scores, labels[:, None], axis=-1)
  # A finite floor: -inf would make the gradient NaN.
  highest = jax.lax.top_k(jnp.where(new, scores, -1e9), min(hardest, scores.shape[-1]))[0]
  counts = old[labels][:, None] & (jnp.arange(highest.shape[-1]) < jnp.sum(new))[None, :]
  hinges = jnp.where(counts, jnp.maximum(margin - label_scores + jnp.where(counts, highest, 0.0), 0.0), 0.0)
  return mean_over(jnp.sum(hinges), jnp.sum(counts))


def mean_over(total: jax.Array, weight: jax.Array) -> jax.Array:
  """A sum over this device's images, divided by the mean over the devices of their weight; 0 without any weight.

  Averaged over the devices, it is the mean over the global batch. The average of each device's mean is not, if the
  devices have different numbers of images.

  Args:
    total: float32 scalar.
    weight: scalar, 0 or more: number of summed images, or sum of their weights.
  """
  weight = device_axis.mean(jnp.asarray(weight, jnp.float32))
  return total / jnp.where(weight > 0, weight, 1.0)


def unit(values: jax.Array, axis: int) -> jax.Array:
  """L2-normalizes vectors along `axis`; a zero vector stays zero, with a finite gradient."""
  squared = jnp.sum(jnp.square(values), axis=axis, keepdims=True)
  positive = squared > _SMALLEST_SQUARE
  return jnp.where(positive, values * jax.lax.rsqrt(jnp.where(positive, squared, 1.0)), 0.0)


def distillation_weight(n_old: jax.Array | float, n_new: jax.Array | float, scale: float = 0.7):
  """w_kd = scale * sqrt(N_old / N_new), from the original image counts; float32 scalar."""
  return scale * jnp.sqrt(jnp.asarray(n_old, jnp.float32) / jnp.asarray(n_new, jnp.float32))


def _teacher_probabilities(teacher: jax.Array, old: AnyArray, temperature: float) -> jax.Array:
  teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32)) / temperature
  return jnp.where(old, jnp.exp(masked_log_softmax(teacher, old)), 0.0)


def _soft_cross_entropy(targets: jax.Array, logits: jax.Array, old: AnyArray) -> jax.Array:
  return -jnp.mean(jnp.sum(targets * masked_log_softmax(logits, old), axis=-1))
