"""Losses of PODNet (Douillard et al., "PODNet: Pooled Outputs Distillation for Small-Tasks Incremental Learning", ECCV
2020): distillation of pooled maps, and the NCA loss over classes of several proxies.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gr_jax.losses import check_shapes, unit
from gr_jax.typing import AnyArray

# A squared distance of unit vectors below this counts as zero: it comes from rounding, and so does its direction.
_SMALLEST_SQUARE = 1e-12


def pooled(maps: jax.Array) -> jax.Array:
  """Squares, summed over the width and over the height, as one unit vector per image.

  Args:
    maps: [batch, height, width, channels] float.

  Returns:
    [batch, (height + width) * channels] float32; it does not depend on the scale of an image's map.
  """
  squares = jnp.square(maps.astype(jnp.float32))
  both = [jnp.sum(squares, axis=axis).reshape(len(squares), -1) for axis in (2, 1)]
  return unit(jnp.concatenate(both, axis=-1), axis=-1)


def spatial_distillation(student: Sequence[jax.Array], teacher: Sequence[jax.Array]) -> jax.Array:
  """Mean over stages and batch of ||pooled(map) - pooled(teacher's map)||_2; no gradient reaches the teacher.

  Args:
    student, teacher: a map [batch, height, width, channels] for each stage of the backbone.

  Returns:
    float32 scalar in [0, sqrt 2].
  """
  distances = []
  for ours, theirs in zip(student, teacher, strict=True):
    squared = jnp.sum(jnp.square(pooled(ours) - pooled(jax.lax.stop_gradient(theirs))), axis=-1)
    apart = squared > _SMALLEST_SQUARE
    distances.append(jnp.mean(jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)))
  return sum(distances[1:], distances[0]) / len(distances)


def nca(logits: jax.Array, labels: jax.Array, classes: AnyArray) -> jax.Array:
  """PyCIL's form of the NCA loss: in the denominator, the label's own term is 1.

  With s = z - max_k z_k, the mean over the batch of -(s_y - log(1 + sum over k != y of exp s_k)). The largest logit has
  a gradient, because of the 1. The margin of the paper is subtracted from all classes there, so it cancels; there is no
  hinge.

  Args:
    logits: [batch, classes] float z.
    labels: [batch] int; the loss of a label outside `classes` is infinite.
    classes: [classes] bool, may be traced.
  """
  check_shapes(logits, labels=labels, classes=classes)
  classes, labels = jnp.asarray(classes), jnp.asarray(labels)
  logits = jnp.where(classes, logits.astype(jnp.float32), 0.0)
  shifted = jnp.where(classes, logits - jnp.max(logits, axis=-1, keepdims=True, where=classes, initial=-jnp.inf), 0.0)
  of_label = labels[:, None] == jnp.arange(logits.shape[-1])[None, :]
  others = jnp.sum(jnp.where(classes[None, :] & ~of_label, jnp.exp(shifted), 0.0), axis=-1)
  picked = jnp.sum(jnp.where(of_label, shifted, 0.0), axis=-1)
  return jnp.mean(jnp.where(classes[labels], jnp.log1p(others) - picked, jnp.inf))
