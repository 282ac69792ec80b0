"""Section 12: DER, dynamically expandable representation, in PyCIL's form."""

import numpy as np

from . import notation


def super_feature(frozen, current):
  """F = concat_i phi_i(x), [batch, features (t + 1)]; `frozen` t arrays [batch, features], `current` another."""
  return np.concatenate([*frozen, current], axis=1).astype(np.float64)


def auxiliary_labels(labels, old, new):
  """0 for any old class, 1 .. m_t for the new classes in order.

  Raises:
    ValueError: if a label is neither old nor new.
  """
  place = {c: number + 1 for number, c in enumerate(np.flatnonzero(new))}
  place.update({c: 0 for c in np.flatnonzero(old)})
  missing = [c for c in np.asarray(labels).tolist() if c not in place]
  if missing:
    raise ValueError(f"labels {missing} are neither old nor new")
  return np.array([place[c] for c in np.asarray(labels).tolist()])


def loss(logits, auxiliary, labels, old, new, weight=1.0):
  """CE of the head on F + weight CE of the auxiliary head; the first task has no auxiliary term.

  Args:
    logits: [batch, classes].
    auxiliary: [batch, 1 + m_t], logits of "any old class" and of the new ones.
    labels: [batch], seen classes.
    old, new: [classes] bool.
    weight: lambda_a.
  """
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  total = notation.cross_entropy(logits, labels, seen)
  if np.any(old):
    every = np.ones(np.shape(auxiliary)[1], bool)
    total += weight * notation.cross_entropy(auxiliary, auxiliary_labels(labels, old, new), every)
  return total


def gradients(logits, auxiliary, labels, old, new, weight=1.0):
  """(dL/dz [batch, classes], dL/d auxiliary [batch, 1 + m_t])."""
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  on_logits = notation.cross_entropy_gradient(logits, labels, seen)
  if not np.any(old):
    return on_logits, np.zeros(np.shape(auxiliary))
  every = np.ones(np.shape(auxiliary)[1], bool)
  return on_logits, weight * notation.cross_entropy_gradient(
      auxiliary, auxiliary_labels(labels, old, new), every)


def bound(inputs):
  """Of PyCIL's draws of new entries: Kaiming-uniform of a linear layer with so many inputs."""
  return float(np.sqrt(3.0 / inputs))


def is_copied(old, features, blocks):
  """[features blocks, classes] bool: the entries of the new kernel that are those of the kernel before.

  Old classes' columns, in the blocks of the backbones before the newest one.
  """
  row = np.arange(features * blocks) < features * (blocks - 1)
  return row[:, None] & np.asarray(old, bool)
