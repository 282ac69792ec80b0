"""Section 4: iCaRL, its three training losses and the nearest mean of exemplars."""

import numpy as np

from . import lwf, notation


def binary_cross_entropy(logits, targets):
  """-(q log sigmoid(z) + (1 - q) log(1 - sigmoid(z))), elementwise; targets in [0, 1]."""
  return np.logaddexp(0.0, logits) - targets * logits


def loss(logits, teacher, labels, old, new, weight=1.0):
  """Long-Tailed-CIL's form: CE over all seen classes + weight sum over old c of mean_b BCE(sigmoid(z), sigmoid(z_hat)).

  Args:
    logits, teacher: [batch, classes]; the teacher's count in the columns of `old` only.
    labels: [batch], seen classes.
    old, new: [classes] bool.
  """
  z, q = notation.part(logits, old), notation.sigmoid(notation.part(teacher, old))
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  return notation.cross_entropy(logits, labels, seen) + weight * float(binary_cross_entropy(z, q).sum(axis=1).mean())


def gradient(logits, teacher, labels, old, new, weight=1.0):
  """dL/dz [batch, classes] = that of CE + weight (sigmoid(z) - sigmoid(z_hat)) / batch in the old columns."""
  z, q = notation.part(logits, old), notation.sigmoid(notation.part(teacher, old))
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  distilled = notation.whole((notation.sigmoid(z) - q) / len(labels), old)
  return notation.cross_entropy_gradient(logits, labels, seen) + weight * distilled


def binary_targets(teacher, labels, old, new):
  """[batch, classes] targets of the original paper: sigmoid(z_hat) for old classes, one-hot for new ones, 0 for unseen.

  A row of an old class, from the memory, has target 0 for every new class; its label is not used otherwise.
  """
  hot = np.asarray(labels)[:, None] == np.arange(len(old))
  targets = notation.whole(notation.sigmoid(notation.part(teacher, old)), old)
  return np.where(new, hot, targets)


def paper_loss(logits, teacher, labels, old, new):
  """The original paper's form: BCE for every seen class, summed over classes, mean over the batch."""
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  targets = notation.part(binary_targets(teacher, labels, old, new), seen)
  return float(binary_cross_entropy(notation.part(logits, seen), targets).sum(axis=1).mean())


def paper_gradient(logits, teacher, labels, old, new):
  """d(the paper's form)/dz [batch, classes] = (sigmoid(z) - target) / batch over the seen classes."""
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  targets = notation.part(binary_targets(teacher, labels, old, new), seen)
  return notation.whole((notation.sigmoid(notation.part(logits, seen)) - targets) / len(labels), seen)


def pycil_loss(logits, teacher, labels, old, new):
  """PyCIL's form: CE over all seen classes + KD_2, which is LwF with a memory."""
  return lwf.loss(logits, teacher, labels, old, new)


def pycil_gradient(logits, teacher, labels, old, new):
  """d(PyCIL's form)/dz [batch, classes]."""
  return lwf.gradient(logits, teacher, labels, old, new)


def exemplar_means(features, labels, classes):
  """nu_c = normalized(mean over the exemplars of class c of their normalized features).

  Args:
    features: [exemplars, features], of un-augmented pictures.
    labels: [exemplars].
    classes: number of classes.

  Returns:
    nu [classes, features], 0 for a class without exemplars; which classes have exemplars [classes] bool.
  """
  features, labels = np.asarray(features, np.float64), np.asarray(labels)
  means, present = np.zeros((classes, features.shape[1])), np.zeros(classes, bool)
  for c in range(classes):
    mine = [notation.normalized(row) for row, label in zip(features, labels) if label == c]
    if mine:
      means[c], present[c] = notation.normalized(sum(mine) / len(mine)), True
  return means, present


def nearest_mean_scores(features, means, present):
  """-||normalized(f_b) - nu_c||^2 [images, classes] by exhaustive search, -inf for a class without exemplars.

  Args:
    features: [images, features].
    means: [classes, features]; rows of absent classes are not read.
    present: [classes] bool.
  """
  scores = np.full((len(features), len(means)), -np.inf)
  for b, row in enumerate(features):
    unit = notation.normalized(row)
    for c, mean in enumerate(np.asarray(means, np.float64)):
      if present[c]:
        scores[b, c] = -sum((x - m) ** 2 for x, m in zip(unit, mean))
  return scores


def nearest_mean(features, means, present):
  """[images] class of the largest score; the lowest of equal ones."""
  return nearest_mean_scores(features, means, present).argmax(axis=1)
