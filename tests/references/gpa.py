"""Section 17: geometric prototype alignment, imprinted columns and an anchor at the moving centroids."""

import numpy as np

from . import notation


def columns(means):
  """[features, classes] of length 1: mu_c / ||mu_c|| for `means` [classes, features]."""
  return notation.normalized(means).T


def bias(counts, new, offset):
  """-log(N_c / N_ref + offset) of the new classes, with N_ref their mean number of images (our choice); 0 elsewhere."""
  chosen = notation.part(counts, new)
  return notation.whole(-np.log(chosen / chosen.mean() + offset), new)


def centroids(before, features, labels, momentum):
  """m_c <- momentum m_c + (1 - momentum) mean of the class's features in the batch; classes not in it stay."""
  after = np.array(before, np.float64)
  for c in set(np.asarray(labels).tolist()):
    after[c] = momentum * after[c] + (1 - momentum) * np.asarray(features, np.float64)[np.asarray(labels) == c].mean(0)
  return after


def anchor(kernel, centroid, new, weight):
  """weight sum_c ||W_c - m_c / ||m_c|| ||^2 over the new classes that have a centroid."""
  return weight * sum(float(((kernel[:, c] - notation.normalized(centroid[c])) ** 2).sum())
                      for c in np.flatnonzero(new) if np.any(centroid[c]))


def anchor_gradient(kernel, centroid, new, weight):
  """d(anchor)/dW [features, classes]."""
  result = np.zeros(np.shape(kernel))
  for c in np.flatnonzero(new):
    if np.any(centroid[c]):
      result[:, c] = 2 * weight * (kernel[:, c] - notation.normalized(centroid[c]))
  return result
