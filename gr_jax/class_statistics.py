"""Means and covariances of features by class, from sums that blocks of images and devices can add up."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gr_jax.typing import AnyArray


class Sums(NamedTuple):
  """Sums of features: total [classes, features], images [classes]; float32."""
  total: jax.Array
  images: jax.Array


class Moments(NamedTuple):
  """Sums over some images: total [features], second [features, features], images scalar; float32."""
  total: jax.Array
  second: jax.Array
  images: jax.Array


def sums(features: jax.Array, labels: jax.Array, valid: AnyArray, num_classes: int) -> Sums:
  """The sums over a block: features [block, features], labels [block], valid [block] bool."""
  weights = jnp.where(valid[:, None], jax.nn.one_hot(labels, num_classes), 0.0)
  return Sums(_dot(weights.T, features.astype(jnp.float32)), jnp.sum(weights, axis=0))


def means(class_sums: Sums) -> jax.Array:
  """[classes, features] float32; 0 for a class without images."""
  return class_sums.total / jnp.maximum(class_sums.images, 1.0)[:, None]


def moments(features: jax.Array, chosen: AnyArray) -> Moments:
  """The sums over the rows of `features` [block, features] for which `chosen` [block] bool holds."""
  rows = jnp.where(chosen[:, None], features.astype(jnp.float32), 0.0)
  return Moments(jnp.sum(rows, axis=0), _dot(rows.T, rows), jnp.sum(chosen, dtype=jnp.float32))


def covariance(feature_moments: Moments) -> jax.Array:
  """The unbiased covariance, as numpy.cov has it; [features, features] float32, 0 for fewer than two images."""
  mean = feature_moments.total / jnp.maximum(feature_moments.images, 1.0)
  apart = feature_moments.second - feature_moments.images * jnp.outer(mean, mean)
  return jnp.where(feature_moments.images > 1, apart / jnp.maximum(feature_moments.images - 1.0, 1.0), 0.0)


def root(matrix: jax.Array, jitter: float = 1e-6) -> jax.Array:
  """The symmetric R with R R = `matrix` + jitter I, for a covariance; eigenvalues below 0 count as 0.

  It depends continuously on the matrix, of any rank, which eigenvectors and a Cholesky factor do not.
  """
  values, vectors = jnp.linalg.eigh(matrix)
  return _dot(vectors * jnp.sqrt(jnp.maximum(values, 0.0) + jitter)[None, :], vectors.T)


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.dot(left, right, precision=jax.lax.Precision.HIGHEST)
