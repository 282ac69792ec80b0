"""Nearest-mean-of-exemplars classification (Rebuffi et al., "iCaRL", CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax.losses import unit


def means(features: np.ndarray, sizes: Sequence[int], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  """The normalised mean of the normalised features of each class's exemplars.

  Args:
    features: [images, features] float, sorted by class.
    sizes: exemplars of each seen class.
    num_classes: K.

  Returns:
    (means [classes, features] float32, has_mean [classes] bool); 0 and False for a class without exemplars.
  """
  rows = _normalised(np.asarray(features, np.float64))
  class_means, has_mean = np.zeros((num_classes, rows.shape[1])), np.zeros(num_classes, bool)
  for j, part in enumerate(np.split(rows, np.cumsum(sizes)[:-1])):
    if len(part):
      class_means[j], has_mean[j] = part.mean(axis=0), True
  return _normalised(class_means).astype(np.float32), has_mean


def scores(features: jax.Array, means: jax.Array, has_mean: jax.Array) -> jax.Array:
  """Negative squared distance of normalised features [batch, features] to each mean; [batch, classes] float32.

  A class without a mean scores below all others.
  """
  # For unit vectors ||f - m||^2 = 2 - 2 f.m. A zero feature is equally far from all means.
  products = jnp.dot(unit(features.astype(jnp.float32), axis=-1), means.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.where(has_mean, 2.0 * products - 2.0, -1e9)


def _normalised(rows: np.ndarray) -> np.ndarray:
  norms = np.sqrt(np.square(rows).sum(axis=-1, keepdims=True))
  return rows / np.where(norms > 0, norms, 1.0)
