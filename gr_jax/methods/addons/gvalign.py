"""Global variance alignment, GVAlign (Kalla & Biswas, "Robust Feature Learning and Global Variance-Driven Classifier
Alignment for Long-Tail Class Incremental Learning", WACV 2024)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gr_jax import class_statistics, losses
from gr_jax.methods.addons import needs
from gr_jax.methods.base import Boundary, Context, HeadMask, HeadParams, Loss, Method, Outputs, Stage

STATISTICS = ("plain", "augmented")

_MEANS, _ROOT = "gvalign_means", "gvalign_root"


class _Measured(NamedTuple):
  """Sums of normalised features: of each class, and of the class with most images."""
  classes: class_statistics.Sums
  largest: class_statistics.Moments


def wrap(method: Method, *, mixup: float, steps: int, learning_rate: float, statistics: str) -> Method:
  """Adds a mixed view to the stages that train the backbone, and a stage that aligns the classifier.

  Clean and mixed images share one batch norm; the mixed ones add a cross-entropy over all seen classes, of weight 1.
  The second stage, in every task, trains the whole head on drawn features: in each step one of each seen class c from
  N(p_c, S). p_c is the mean of the class's normalised features; S is the covariance of those of the largest class of
  the first task, kept for the whole run. The released code's unused scales and its milestones, which 100 steps never
  reach, are left out.

  Args:
    method: with a cosine head or proxies; it predicts by its logits.
    mixup: alpha of Beta(alpha, alpha); 1 draws the share uniformly.
    steps: of the second stage.
    learning_rate: of the second stage, constant.
    statistics: whether means and covariance are those of "plain" images, or of "augmented" ones, as in the released
      code; each image counts once.

  Raises:
    UserError: a method that cannot be wrapped.
  """
  needs.head(method, "gvalign", ("cosine", "proxies"))
  needs.prediction_by_logits(method, "gvalign")
  needs.training_in_every_task(method, "gvalign")
  needs.no_mixed_view(method, "gvalign")

  def soft(student: Outputs, teacher: None, targets: jax.Array, context: Context) -> jax.Array:
    return losses.soft_cross_entropy(student.logits, targets, context.seen)

  def mixed(stage: Stage) -> Stage:
    if stage.backbone != "train":
      return stage
    return stage._replace(losses={**stage.losses, "mixed_cross_entropy": Loss(soft, view="mixed")}, mixing=mixup)

  def classifier(head: HeadParams, context: Context) -> HeadMask:
    parts = {"kernel": context.seen, "scale": jnp.ones((), bool)}
    return {name: parts.get(name, jnp.zeros((), bool)) for name in head}

  align = Stage("align", {"cross_entropy": Loss(soft)}, rows=method.stages[0].rows, backbone="frozen", steps=steps,
                learning_rate=learning_rate, trainable=classifier, source=_drawn,
                before=Boundary(_measure, _keep, augmented=statistics == "augmented"))
  # A class without images has no mean, so its column would only be pushed away from the others' features.
  wrapped = method._replace(stages=(*map(mixed, method.stages), align), min_memory=max(method.min_memory, 1))
  return wrapped.carrying(lambda features, num_classes: {
      _MEANS: jnp.zeros((num_classes, features), jnp.float32), _ROOT: jnp.zeros((features, features), jnp.float32)})


def _measure(outputs: Outputs, labels: jax.Array, valid: jax.Array, context: Context) -> _Measured:
  rows = losses.unit(outputs.features, axis=-1)
  return _Measured(class_statistics.sums(rows, labels, valid, context.old.shape[0]),
                   class_statistics.moments(rows, valid & (labels == jnp.argmax(context.counts))))


def _keep(carry: dict[str, jax.Array], measured: _Measured, context: Context) -> dict[str, jax.Array]:
  root = class_statistics.root(class_statistics.covariance(measured.largest))
  return {**carry, _MEANS: class_statistics.means(measured.classes),
          _ROOT: jnp.where(context.task == 0, root, carry[_ROOT])}


def _drawn(key: jax.Array, carry: dict[str, jax.Array], context: Context) -> tuple[jax.Array, jax.Array]:
  """One feature of each class and its target; the target of a class without a mean is 0."""
  means, root = carry[_MEANS], carry[_ROOT]
  noise = jax.random.normal(key, means.shape)
  features = means + jnp.dot(noise, root.T, precision=jax.lax.Precision.HIGHEST)
  known = context.seen & jnp.any(means != 0, axis=1)
  return features, jnp.where(known[:, None], jnp.eye(len(means)), 0.0)
