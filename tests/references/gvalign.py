"""Section 16: GVAlign, a mixed view in training and a classifier aligned on features drawn from class statistics."""

import numpy as np

from . import lucir, notation


def mixed_loss(features, kernel, eta, labels, partner_labels, share, seen):
  """share CE(z, y) + (1 - share) CE(z, y of the partners), z = eta s of the mixed images.

  Args:
    features: [batch, features] of mixed images.
    kernel: [features, classes].
    eta: the learned scale.
    labels, partner_labels: [batch], seen classes.
    share: lambda in [0, 1].
    seen: [classes] bool.
  """
  logits = lucir.logits(features, kernel, eta, seen)
  return (share * notation.cross_entropy(logits, labels, seen)
          + (1 - share) * notation.cross_entropy(logits, partner_labels, seen))


def prototypes(features, labels, classes):
  """p_c [classes, features], the mean of the class's normalised features, not normalised again; 0 without images."""
  rows, result = notation.normalized(features), np.zeros((classes, np.shape(features)[1]))
  for c in set(np.asarray(labels).tolist()):
    result[c] = rows[np.asarray(labels) == c].mean(axis=0)
  return result


def variance(features, labels):
  """S [features, features]: the covariance of the normalised features of the class with most images."""
  largest = np.argmax(np.bincount(labels))
  return np.cov(notation.normalized(features)[np.asarray(labels) == largest], rowvar=False)


def alignment_loss(drawn, kernel, eta, seen):
  """Mean over the seen classes of CE(eta s, c), with one drawn feature of each class c: `drawn` [classes, features]."""
  labels = np.flatnonzero(seen)
  return notation.cross_entropy(lucir.logits(drawn[labels], kernel, eta, seen), labels, seen)
