"""Section 2: the upper bound, trained on all data of all seen classes."""

import numpy as np

from . import notation


def rows(labels, task_of_class, task):
  """Indices, ascending, of the training rows that take part at `task`: all rows of all classes seen until then.

  Args:
    labels: [images], class of every training row of the scenario.
    task_of_class: [classes], task in which each class arrives, from 0.
    task: from 0.
  """
  return np.array([i for i, label in enumerate(labels) if task_of_class[label] <= task], int)


def counts(labels, task_of_class, task):
  """[classes] rows of each class that take part: all of a seen class, 0 of an unseen one."""
  return np.bincount(np.asarray(labels)[rows(labels, task_of_class, task)], minlength=len(task_of_class))


def loss(logits, labels, seen, counts=None):
  """Cross-entropy over all seen classes; with `counts` [classes], of z + log prior (gr's section 4).

  Args:
    logits: [batch, classes].
    labels: [batch], seen classes.
    seen: [classes] bool.
  """
  if counts is not None:
    logits, seen = notation.with_prior(logits, seen, counts)
  return notation.cross_entropy(logits, labels, seen)


def gradient(logits, labels, seen, counts=None):
  """dL/dz [batch, classes]."""
  if counts is not None:
    logits, seen = notation.with_prior(logits, seen, counts)
  return notation.cross_entropy_gradient(logits, labels, seen)
