"""The classifier: one linear layer over all K classes of the scenario, column j = class j in learning order.

Its width never changes, so one compiled step serves all tasks; columns of unseen classes take part in nothing
(METHOD.md section 3).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def init(features: int, num_classes: int) -> dict[str, jax.Array]:
  """{kernel [features, classes], bias [classes]} float32, all zero: no class has been seen."""
  return {"kernel": jnp.zeros((features, num_classes), jnp.float32),
          "bias": jnp.zeros(num_classes, jnp.float32)}


def draw_columns(key: jax.Array, classifier: dict, new: jax.Array) -> dict[str, jax.Array]:
  """Draws the columns of the new classes (bool [classes]) from U(-1/sqrt(d), 1/sqrt(d)), bias included."""
  bound = classifier["kernel"].shape[0] ** -0.5
  def redraw(key, values):
    drawn = jax.random.uniform(key, values.shape, values.dtype, minval=-bound, maxval=bound)
    return jnp.where(new, drawn, values)
  for_kernel, for_bias = jax.random.split(key)
  return {"kernel": redraw(for_kernel, classifier["kernel"]),
          "bias": redraw(for_bias, classifier["bias"])}


def mask(classifier: dict, seen: jax.Array) -> dict[str, jax.Array]:
  """The classifier with zeros in unseen columns, so that nothing which stands there can leak."""
  return jax.tree.map(lambda values: jnp.where(seen, values, 0.0), classifier)


def logits(classifier: dict, features: jax.Array) -> jax.Array:
  """features [batch, features] -> logits [batch, classes] float32."""
  # Full precision: the ratios rest on norms of this layer's gradient, and it costs next to nothing.
  product = jnp.dot(features.astype(jnp.float32), classifier["kernel"], precision=jax.lax.Precision.HIGHEST)
  return product + classifier["bias"]


def gradient(features: jax.Array, cotangent: jax.Array) -> dict[str, jax.Array]:
  """Gradient of the classifier from dL/dlogits [batch, classes]: features^T @ dz, and its sum."""
  kernel = jnp.dot(features.astype(jnp.float32).T, cotangent, precision=jax.lax.Precision.HIGHEST)
  return {"kernel": kernel, "bias": jnp.sum(cotangent, axis=0)}


def backward(classifier: dict, cotangent: jax.Array) -> jax.Array:
  """dL/dfeatures [batch, features] from dL/dlogits [batch, classes]."""
  return jnp.dot(cotangent, classifier["kernel"].T, precision=jax.lax.Precision.HIGHEST)
