"""Section 8: LUCIR, a cosine head with less-forget and margin-ranking terms."""

from typing import NamedTuple

import numpy as np

from . import notation


class Gradients(NamedTuple):
  features: np.ndarray  # [batch, features]
  kernel: np.ndarray  # [features, classes]
  eta: float


def cosines(features, kernel, seen):
  """s = cos(f_b, W_c) in [-1, 1]; -inf in unseen columns.

  Args:
    features: [batch, features], signed; a zero row has cosine 0 with everything.
    kernel: [features, classes].
    seen: [classes] bool.
  """
  columns = notation.normalized(notation.part(kernel, seen).T)
  return notation.whole(notation.normalized(features) @ columns.T, seen, -np.inf)


def logits(features, kernel, eta, seen):
  """eta s [batch, classes], within [-eta, eta]; -inf in unseen columns."""
  return notation.whole(eta * notation.part(cosines(features, kernel, seen), seen), seen, -np.inf)


def less_forget(features, old_features):
  """Mean over the batch of 1 - cos(f_b, f_b of the previous model), in [0, 2]; both [batch, features]."""
  return float((1 - (notation.normalized(features) * notation.normalized(old_features)).sum(axis=1)).mean())


def less_forget_weight(old, new, base=5.0):
  """lambda_t = base sqrt(n_old / m_t); base is 5 for CIFAR and 10 for ImageNet. 0 in the first task."""
  return float(base * np.sqrt(np.sum(old) / np.sum(new)))


def hardest(scores, new, number=2):
  """[batch, min(number, new classes)] indices of the new classes with the largest scores, the lowest of ties first."""
  columns = np.flatnonzero(new)
  order = np.argsort(-notation.part(scores, new), axis=1, kind="stable")
  return columns[order[:, :min(number, len(columns))]]


def margin_ranking(scores, labels, old, new, margin=0.5, number=2):
  """Mean over memory rows (label in `old`) and their hardest new classes k of max(0, margin - s_y + s_k).

  Args:
    scores: cosines, not times eta [batch, classes].
    labels: [batch].
    old, new: [classes] bool.

  Returns:
    A float >= 0; 0 if no row is of an old class.
  """
  terms = []
  for b, competitors in enumerate(hardest(scores, new, number)):
    if old[labels[b]]:
      terms += [max(0.0, margin - scores[b, labels[b]] + scores[b, k]) for k in competitors]
  return float(np.mean(terms)) if terms else 0.0


def margin_ranking_gradient(scores, labels, old, new, margin=0.5, number=2):
  """d(margin_ranking)/ds [batch, classes]; 0 for a term that is exactly 0."""
  result, terms = np.zeros(np.shape(scores)), 0
  for b, competitors in enumerate(hardest(scores, new, number)):
    if old[labels[b]]:
      for k in competitors:
        terms += 1
        if margin - scores[b, labels[b]] + scores[b, k] > 0:
          result[b, labels[b]] -= 1
          result[b, k] += 1
  return result / max(terms, 1)


def loss(features, kernel, eta, labels, old_features, old, new, *, base=5.0, margin=0.5, margin_weight=1.0, number=2):
  """CE(eta s, y) over all seen classes + lambda_t less_forget + margin_weight margin_ranking; first task: CE.

  Args:
    features: [batch, features].
    kernel: [features, classes].
    eta: the learned scale, one number for all classes.
    labels: [batch], seen classes.
    old_features: [batch, features] of the previous model; not read in the first task.
    old, new: [classes] bool.
  """
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  result = notation.cross_entropy(logits(features, kernel, eta, seen), labels, seen)
  if np.any(old):
    result += less_forget_weight(old, new, base) * less_forget(features, old_features)
    result += margin_weight * margin_ranking(cosines(features, kernel, seen), labels, old, new, margin, number)
  return result


def gradients(features, kernel, eta, labels, old_features, old, new, *, base=5.0, margin=0.5, margin_weight=1.0,
              number=2, frozen=True):
  """d(loss)/d(features, kernel, eta).

  With g = dL/ds: the unit features receive g times the unit columns, and the less-forget term's -lambda_t/batch times
  the previous model's unit features; the unit columns receive g^T times the unit features. A cotangent u of v/||v|| is
  (u - (u . v/||v||) v/||v||) / ||v|| for v. No feature row and no seen column may be 0.

  Args:
    frozen: True, the gradient of the old columns is 0, since the optimizer leaves them alone; False, as it falls.
  """
  features, kernel = np.asarray(features, np.float64), np.asarray(kernel, np.float64)
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  scores = cosines(features, kernel, seen)
  upon_logits = notation.cross_entropy_gradient(logits(features, kernel, eta, seen), labels, seen)
  upon_scores = eta * upon_logits
  if np.any(old):
    upon_scores = upon_scores + margin_weight * margin_ranking_gradient(scores, labels, old, new, margin, number)
  units, columns = notation.normalized(features), notation.normalized(notation.part(kernel, seen).T)
  upon_units = notation.part(upon_scores, seen) @ columns
  if np.any(old):
    upon_units -= less_forget_weight(old, new, base) / len(labels) * notation.normalized(old_features)
  upon_kernel = notation.whole(_through_length(notation.part(kernel, seen).T,
                                               notation.part(upon_scores, seen).T @ units).T, seen)
  if frozen:
    upon_kernel[:, np.flatnonzero(old)] = 0.0
  upon_eta = float((notation.part(upon_logits, seen) * notation.part(scores, seen)).sum())
  return Gradients(_through_length(features, upon_units), upon_kernel, upon_eta)


def _through_length(rows, cotangent):
  """Gradient with respect to `rows` [rows, features], given that with respect to rows / their lengths."""
  unit = notation.normalized(rows)
  along = (cotangent * unit).sum(axis=1, keepdims=True)
  return (cotangent - along * unit) / np.linalg.norm(rows, axis=1, keepdims=True)
