"""Score rectification of IL2M (Belouadah & Popescu, "IL2M: Class Incremental Learning With Dual Memory", ICCV 2019)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gr_jax.losses import check_shapes
from gr_jax.typing import AnyArray


class Statistics(NamedTuple):
  """Mean scores on training images; [classes] float32 each, 0 where nothing was measured.

  Attributes:
    initial: score of a class on its own images, at the task that introduced it.
    present: the same with the present model, on the images that are left.
    confidence: the largest score of an image, over the new images of the task that introduced the class.
  """
  initial: jax.Array
  present: jax.Array
  confidence: jax.Array


class Sums(NamedTuple):
  """Sums over images.

  Attributes:
    label_scores: [classes] float32, scores of each class on its own images.
    images: [classes] float32, their number.
    top: float32 scalar, the largest score of each image of a new class.
  """
  label_scores: jax.Array
  images: jax.Array
  top: jax.Array


def nothing(classes: int) -> Statistics:
  """Before the first task."""
  return Statistics(*jnp.zeros((3, classes), jnp.float32))


def measure(scores: jax.Array, labels: jax.Array, valid: AnyArray, old: AnyArray, new: AnyArray) -> Sums:
  """Sums over the valid images of a block.

  Args:
    scores: [images, classes] float32.
    labels: [images] int.
    valid: [images] bool.
    old, new: [classes] bool, may be traced.
  """
  check_shapes(scores, labels=labels, classes=new)
  # No scatter: on a GPU its order of additions is not fixed.
  of_label = valid[:, None] & (labels[:, None] == jnp.arange(scores.shape[-1])[None, :])
  top = jnp.max(scores, axis=-1, where=old | new, initial=-jnp.inf)
  return Sums(jnp.sum(jnp.where(of_label, scores, 0.0), axis=0), jnp.sum(of_label, axis=0, dtype=jnp.float32),
              jnp.sum(jnp.where(valid & new[labels], top, 0.0)))


def update(before: Statistics, sums: Sums, new: AnyArray) -> Statistics:
  """The statistics after a task, given the sums over its images and exemplars."""
  present = sums.label_scores / jnp.maximum(sums.images, 1.0)
  confidence = sums.top / jnp.maximum(jnp.sum(jnp.where(new, sums.images, 0.0)), 1.0)
  return Statistics(jnp.where(new, present, before.initial), present,
                    jnp.where(new, confidence, before.confidence))


def rectified(scores: jax.Array, statistics: Statistics, old: AnyArray, new: AnyArray) -> jax.Array:
  """Where a new class has the largest score, s_j (initial_j / present_j) (T / T_j) for the old classes j.

  T is the confidence of the present task, T_j that of the task of class j. A class for which any of these means is not
  positive keeps its score: there the factor would change the sign, or lower a score that it is to raise. With equal
  statistics this is the identity.

  Args:
    scores: [images, classes] float32.
    statistics: after the present task.
    old, new: [classes] bool, may be traced.

  Returns:
    [images, classes] float32.
  """
  initial, present, confidence = statistics
  task = jnp.max(jnp.where(new, confidence, -jnp.inf))
  applies = old & (initial > 0) & (present > 0) & (confidence > 0) & (task > 0)
  factor = jnp.where(applies, initial / jnp.where(applies, present, 1.0)
                     * (task / jnp.where(applies, confidence, 1.0)), 1.0)
  winner = jnp.argmax(jnp.where(old | new, scores, -jnp.inf), axis=-1)
  return jnp.where(new[winner][:, None], scores * factor[None, :], scores)
