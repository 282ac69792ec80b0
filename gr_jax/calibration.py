"""Calibration of confidences (docs/method.md section 7): per image on the device, figures and temperatures in float64.

The confidence of an image is the largest probability of the softmax over the seen classes. Bins are (lower, upper].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax.typing import AnyArray

BINS = 15

# Smallest and largest temperature. Where every held-out image is correct, the best one would be 0.
LIMITS = (0.01, 100.0)


class Judged(NamedTuple):
  """Predictions for a batch.

  Attributes:
    predicted: [batch] int32.
    confidence: [batch] float32, probability of the predicted class.
    nll: [batch] float32, -log probability of the label.
    brier: [batch] float32, squared distance of the probabilities to the one-hot label, in [0, 2].
    probabilities: [batch, classes] float32; 0 for unseen classes.
  """
  predicted: jax.Array
  confidence: jax.Array
  nll: jax.Array
  brier: jax.Array
  probabilities: jax.Array


def judge(scores: jax.Array, labels: jax.Array, inverse: AnyArray, seen: AnyArray) -> Judged:
  """Predictions by the softmax of scores / T.

  Args:
    scores: [batch, classes] float.
    labels: [batch] int, seen classes.
    inverse: [classes] float, 1 / T of each class.
    seen: [classes] bool.
  """
  scaled = jnp.where(seen, scores.astype(jnp.float32) * inverse[None, :], -jnp.inf)
  log_probabilities = jax.nn.log_softmax(scaled, axis=-1)
  probabilities = jnp.exp(log_probabilities)
  log_of_label = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
  return Judged(
      jnp.argmax(scaled, axis=-1).astype(jnp.int32), jnp.max(probabilities, axis=-1), -log_of_label,
      jnp.sum(jnp.square(probabilities), axis=-1) - 2.0 * jnp.exp(log_of_label) + 1.0, probabilities)


def class_bins(probabilities: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
  """Bins of each class's probability, over all images; the images in each bin, their sum, and those of the class.

  Args:
    probabilities: [batch, classes] float.
    labels: [batch] int.
    valid: [batch] bool, images that count.

  Returns:
    [classes, BINS, 3] float32.
  """
  place = jnp.clip(jnp.ceil(probabilities * BINS) - 1, 0, BINS - 1)
  # Compared and summed, not scattered: on a GPU, the order of a scatter's additions changes from call to call.
  inside = (place[..., None] == jnp.arange(BINS, dtype=jnp.float32)[None, None, :]) & valid[:, None, None]
  of_label = labels[:, None] == jnp.arange(probabilities.shape[-1])[None, :]
  return jnp.stack([
      jnp.sum(inside, axis=0, dtype=jnp.float32),
      jnp.sum(jnp.where(inside, probabilities[..., None], 0.0), axis=0),
      jnp.sum(inside & of_label[..., None], axis=0, dtype=jnp.float32)], axis=-1)


def reliability_bins(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
  """Bins of equal width.

  Args:
    confidence: [images] float in [0, 1].
    correct: [images] bool.

  Returns:
    [BINS, 3] float64: images, sum of their confidences, correct images.
  """
  confidence = np.asarray(confidence, np.float64)
  return _binned(np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int), confidence, correct)


def adaptive_bins(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
  """Bins between quantiles, so that each holds about as many images; as `reliability_bins`."""
  confidence = np.asarray(confidence, np.float64)
  if not len(confidence):
    return np.zeros((BINS, 3))
  edges = np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1])
  # Equal confidences share a bin, whatever their order.
  return _binned(np.searchsorted(edges, confidence, side="left"), confidence, correct)


def _binned(place: np.ndarray, confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
  return np.stack([np.bincount(place, weights, BINS) for weights in (
      None, confidence, np.asarray(correct, np.float64))], axis=-1).astype(np.float64)


def expected_error(bins: np.ndarray) -> float | None:
  """ECE: sum_b n_b / N |accuracy_b - confidence_b|; None without images. Of adaptive bins: the adaptive ECE."""
  return _weighted(bins, lambda accuracy, confidence: np.abs(accuracy - confidence))


def over_confidence(bins: np.ndarray) -> float | None:
  """sum_b n_b / N confidence_b max(0, confidence_b - accuracy_b), as in RankMixup."""
  return _weighted(bins, lambda accuracy, confidence: confidence * np.maximum(confidence - accuracy, 0))


def under_confidence(bins: np.ndarray) -> float | None:
  """sum_b n_b / N confidence_b max(0, accuracy_b - confidence_b), as in RankMixup."""
  return _weighted(bins, lambda accuracy, confidence: confidence * np.maximum(accuracy - confidence, 0))


def classwise_error(bins: np.ndarray) -> float | None:
  """Mean over classes of the ECE of each class's probability; bins [classes, BINS, 3] as in `class_bins`."""
  errors = [expected_error(one) for one in bins]
  return float(np.mean([error for error in errors if error is not None])) if len(bins) and bins.sum() else None


def _weighted(bins: np.ndarray, gap: Any) -> float | None:
  images, confidence, correct = np.asarray(bins, np.float64).T
  if not images.sum():
    return None
  # An empty bin has weight 0.
  some = np.maximum(images, 1)
  return float(np.sum(images * gap(correct / some, confidence / some)) / images.sum())


def figures(judged: dict[str, np.ndarray], correct: np.ndarray, class_bins: np.ndarray) -> dict[str, Any]:
  """The figures of a group of images.

  Args:
    judged: "confidence", "nll", "brier": [images] float each, at least one image.
    correct: [images] bool.
    class_bins: [classes, BINS, 3] of the group's classes, over all images.
  """
  bins = reliability_bins(judged["confidence"], correct)
  return {
      "images": len(correct), "accuracy": float(np.mean(correct)),
      "confidence": float(np.mean(judged["confidence"], dtype=np.float64)), "ece": expected_error(bins),
      "adaptive_ece": expected_error(adaptive_bins(judged["confidence"], correct)),
      "classwise_ece": classwise_error(class_bins), "over_confidence": over_confidence(bins),
      "under_confidence": under_confidence(bins), "nll": float(np.mean(judged["nll"], dtype=np.float64)),
      "brier": float(np.mean(judged["brier"], dtype=np.float64))}


def fit_temperatures(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """The temperatures with the smallest NLL on held-out images; every class weighs the same.

  The NLL is convex in the inverse temperatures, so Newton's method with backtracking finds the minimum in `LIMITS`.

  Args:
    scores: [images, classes] float, finite, of the classes that take part.
    labels: [images] int.
    groups: [classes] int, 0..G-1: the temperature that a class's score is divided by.

  Returns:
    [G] float64.

  Raises:
    ValueError: no image, or scores that are not finite.
  """
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
  if not len(labels) or not np.isfinite(scores).all():
    raise ValueError(f"fit_temperatures: {len(labels)} images, {np.sum(~np.isfinite(scores))} scores not finite")
  sizes = np.bincount(labels, minlength=scores.shape[1])
  weights = 1.0 / (sizes[labels] * np.count_nonzero(sizes))
  parts = [np.where(groups == g, scores, 0.0) for g in range(int(np.max(groups)) + 1)]
  label_scores = np.stack([part[np.arange(len(labels)), labels] for part in parts], axis=-1)

  def terms(inverse: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """NLL, gradient [G] and Hessian [G, G] at inverse temperatures [G]."""
    scaled = scores * inverse[groups]
    scaled -= scaled.max(axis=1, keepdims=True)
    exponentials = np.exp(scaled)
    totals = exponentials.sum(axis=1)
    probabilities = exponentials / totals[:, None]
    nll = weights @ (np.log(totals) - scaled[np.arange(len(labels)), labels])
    means = np.stack([(probabilities * part).sum(axis=1) for part in parts], axis=-1)
    squares = np.diag([weights @ (probabilities * np.square(part)).sum(axis=1) for part in parts])
    return float(nll), weights @ (means - label_scores), squares - (means * weights[:, None]).T @ means

  low, high = 1 / LIMITS[1], 1 / LIMITS[0]
  inverse = np.ones(len(parts))
  value, gradient, curvature = terms(inverse)
  for _ in range(200):
    # At a limit, with the gradient pointing outwards, a temperature stays there.
    free = ~((inverse <= low) & (gradient > 0) | (inverse >= high) & (gradient < 0))
    if not np.any(free) or np.max(np.abs(gradient * inverse)[free]) < 1e-12:
      break
    inner = curvature[np.ix_(free, free)]
    newton, steepest = np.zeros(len(parts)), np.where(free, -gradient, 0.0)
    newton[free] = np.linalg.solve(inner + (1e-14 * np.trace(inner) + 1e-300) * np.eye(len(inner)), -gradient[free])
    for direction, size in [(way, 0.5**k) for way in (newton, steepest) for k in range(40)]:
      there = np.clip(inverse + size * direction, low, high)
      candidate = terms(there)
      if candidate[0] < value and candidate[0] <= value + 1e-4 * gradient @ (there - inverse):
        break
    else:
      # Rounding: no step is smaller any more.
      break
    inverse, (value, gradient, curvature) = there, candidate
  return 1.0 / inverse
