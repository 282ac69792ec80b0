"""Section 1: cross-entropy, with and without a memory."""

import numpy as np

from . import notation


def taking_part(old, new, memory):
  """[classes] bool: all seen classes with a memory, only the current task's without one."""
  return np.asarray(old, bool) | np.asarray(new, bool) if memory else np.asarray(new, bool)


def loss(logits, labels, old, new, *, memory=True, counts=None):
  """Cross-entropy over all seen classes, or, without a memory, over the new ones alone.

  Args:
    logits: [batch, classes].
    labels: [batch], seen classes; new ones if there is no memory.
    old, new: [classes] bool.
    memory: whether exemplars of old classes take part.
    counts: [classes] images present now, for the prior-regularized softmax (gr's section 4); None is plain softmax.

  Raises:
    ValueError: if a label is a class that takes no part.
  """
  mask = taking_part(old, new, memory)
  if counts is not None:
    logits, mask = notation.with_prior(logits, mask, counts)
  return notation.cross_entropy(logits, labels, mask)


def gradient(logits, labels, old, new, *, memory=True, counts=None):
  """dL/dz [batch, classes]. Without a memory it is 0 in the old columns, which the optimizer leaves alone too."""
  mask = taking_part(old, new, memory)
  if counts is not None:
    logits, mask = notation.with_prior(logits, mask, counts)
  return notation.cross_entropy_gradient(logits, labels, mask)


def present_counts(original, old, new, memory_per_class):
  """[classes] images present now: min(n, memory_per_class) of an old class, n of a new one, 0 of an unseen one."""
  original = np.asarray(original)
  return np.where(old, np.minimum(original, memory_per_class), np.where(new, original, 0))
