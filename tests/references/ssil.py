"""Section 10: SS-IL, separated softmax."""

import numpy as np

from . import notation


def _rows(labels, old, present):
  """Indices of the rows that are no padding: (of new classes, of old classes, both)."""
  labels = np.asarray(labels)
  present = np.ones(len(labels), bool) if present is None else np.asarray(present, bool)
  of_old = present & np.asarray(old, bool)[labels]
  return np.flatnonzero(present & ~of_old), np.flatnonzero(of_old), np.flatnonzero(present)


def _task_masks(task_of_class, old):
  """[classes] bool for each old task, ascending."""
  tasks = sorted(set(np.asarray(task_of_class)[np.flatnonzero(old)].tolist()))
  return [np.asarray(old, bool) & (np.asarray(task_of_class) == task) for task in tasks]


def loss(logits, teacher, labels, old, new, task_of_class, *, present=None, weight=1.0, temperature=2.0):
  """CE of the new rows over the new classes + CE of the memory's rows over the old ones + weight times the sum over old
  tasks i of KL(softmax(z_hat_i / T) || softmax(z_i / T)), each a mean over its rows: new, memory's, and all.

  Args:
    logits, teacher: [batch, classes]; the teacher's count in the columns of `old` only.
    labels: [batch], seen classes. A row of an old class is the memory's.
    old, new: [classes] bool.
    task_of_class: [classes]; not read for unseen classes.
    present: [batch] bool, False for padding, which counts nowhere; its label may be any class. None: all True.

  Returns:
    A float. A term without rows is 0.
  """
  logits, teacher, labels = np.asarray(logits, np.float64), np.asarray(teacher, np.float64), np.asarray(labels)
  fresh, memory, all_rows = _rows(labels, old, present)
  result = 0.0
  for rows, mask in (fresh, new), (memory, old):
    if len(rows):
      result += notation.cross_entropy(logits[rows], labels[rows], mask)
  for mask in _task_masks(task_of_class, old):
    student, target = (notation.log_softmax(notation.part(z[all_rows], mask) / temperature) for z in (logits, teacher))
    result += weight * float((np.exp(target) * (target - student)).sum(axis=1).mean())
  return result


def gradient(logits, teacher, labels, old, new, task_of_class, *, present=None, weight=1.0, temperature=2.0):
  """dL/dz [batch, classes]; 0 in the rows of padding."""
  logits, teacher, labels = np.asarray(logits, np.float64), np.asarray(teacher, np.float64), np.asarray(labels)
  fresh, memory, all_rows = _rows(labels, old, present)
  result = np.zeros(logits.shape)
  for rows, mask in (fresh, new), (memory, old):
    if len(rows):
      result[rows] += notation.cross_entropy_gradient(logits[rows], labels[rows], mask)
  for mask in _task_masks(task_of_class, old):
    # KL and KD_T differ by the teacher's entropy, which has no gradient here.
    result[all_rows] += weight * notation.distillation_gradient(logits[all_rows], teacher[all_rows], mask, temperature)
  return result
