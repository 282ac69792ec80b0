"""Calibration figures and temperatures (sections 1 and 10 of the notes on mixing), in float64.

Bins are (lower, upper]. Written with loops over bins and images, so that nothing is shared with what it checks.
"""

import numpy as np

from references import notation


def softmax(scores):
  return np.exp(notation.log_softmax(np.asarray(scores, np.float64)))


def gaps(confidence, correct, edges):
  """(share of the images, confidence, accuracy) of every bin that has images."""
  confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct)
  bins = []
  for number, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
    # The first bin has its lower edge too.
    inside = (confidence <= high) & ((confidence > low) | (number == 0))
    if inside.any():
      bins.append((inside.mean(), confidence[inside].mean(), correct[inside].mean()))
  return bins


def expected_error(confidence, correct, bins=15):
  return sum(share * abs(sure - right) for share, sure, right in gaps(confidence, correct, np.linspace(0, 1, bins + 1)))


def adaptive_error(confidence, correct, bins=15):
  """Edges at the quantiles of the confidences; the outer two at 0 and 1."""
  edges = np.quantile(np.asarray(confidence, np.float64), np.linspace(0, 1, bins + 1))
  edges[0], edges[-1] = 0, 1
  return sum(share * abs(sure - right) for share, sure, right in gaps(confidence, correct, edges))


def classwise_error(probabilities, labels, bins=15):
  return np.mean([expected_error(probabilities[:, c], labels == c, bins) for c in range(probabilities.shape[1])])


def over_confidence(confidence, correct, bins=15):
  return sum(share * sure * max(sure - right, 0)
             for share, sure, right in gaps(confidence, correct, np.linspace(0, 1, bins + 1)))


def under_confidence(confidence, correct, bins=15):
  return sum(share * sure * max(right - sure, 0)
             for share, sure, right in gaps(confidence, correct, np.linspace(0, 1, bins + 1)))


def nll(scores, labels, weights=None):
  log_probabilities = notation.log_softmax(np.asarray(scores, np.float64))
  return np.average(-log_probabilities[np.arange(len(labels)), labels], weights=weights)


def brier(scores, labels):
  hot = np.eye(scores.shape[1])[labels]
  return np.mean(np.sum((softmax(scores) - hot) ** 2, axis=1))


def class_weights(labels):
  """Every class weighs the same."""
  labels = np.asarray(labels)
  return np.asarray([1 / np.sum(labels == label) for label in labels])


def scaled(scores, groups, temperatures):
  return np.asarray(scores, np.float64) / np.asarray(temperatures, np.float64)[groups]
