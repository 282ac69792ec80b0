"""Section 7: weight aligning."""

import numpy as np

from . import notation


def loss(logits, teacher, labels, old, new, temperature=2.0):
  """(1 - lambda) CE over all seen classes + lambda KD_T over the old ones, lambda = n_old / N.

  Args:
    logits, teacher: [batch, classes]; the teacher (its head aligned) counts in the columns of `old` only.
    labels: [batch], seen classes.
    old, new: [classes] bool.
  """
  share, seen = notation.old_share(old, new), np.asarray(old, bool) | np.asarray(new, bool)
  kd = notation.distillation(logits, teacher, old, temperature)
  return (1 - share) * notation.cross_entropy(logits, labels, seen) + share * kd


def gradient(logits, teacher, labels, old, new, temperature=2.0):
  """dL/dz [batch, classes]."""
  share, seen = notation.old_share(old, new), np.asarray(old, bool) | np.asarray(new, bool)
  kd = notation.distillation_gradient(logits, teacher, old, temperature)
  return (1 - share) * notation.cross_entropy_gradient(logits, labels, seen) + share * kd


def mean_norm(kernel, mask):
  """Mean over the classes of `mask` of the length of their columns of `kernel` [features, classes]."""
  return float(np.linalg.norm(notation.part(kernel, mask), axis=0).mean())


def gamma(kernel, old, new):
  """Mean length of the old columns of `kernel` [features, classes] over that of the new ones.

  1 where there is no old class (the first task is not aligned) or where all new columns are 0.
  """
  if not np.any(old) or mean_norm(kernel, new) == 0:
    return 1.0
  return mean_norm(kernel, old) / mean_norm(kernel, new)


def aligned(kernel, old, new):
  """`kernel` [features, classes] with its new columns times gamma. Old and unseen columns, and the bias, stay."""
  result = np.array(kernel, np.float64)
  result[:, np.flatnonzero(new)] *= gamma(kernel, old, new)
  return result


def clipped(kernel, old, new):
  """Option of the paper, after every step: seen columns of `kernel` [features, classes], negative entries made 0."""
  result, columns = np.array(kernel, np.float64), np.flatnonzero(np.asarray(old, bool) | np.asarray(new, bool))
  result[:, columns] = np.maximum(result[:, columns], 0.0)
  return result
