"""Section 5: end-to-end incremental learning, a distillation term per old task and a balanced phase."""

import numpy as np

from . import notation


def distilled_tasks(task_of_class, old, skip_last=False):
  """Old tasks, ascending, that are distilled: all of them.

  Args:
    task_of_class: [classes], task in which each class arrives.
    old: [classes] bool.
    skip_last: True leaves out the most recent one, as the released code does, by accident, in its first phase.
  """
  tasks = sorted(set(np.asarray(task_of_class)[np.flatnonzero(old)].tolist()))
  return tasks[:-1] if skip_last else tasks


def distillation(logits, teacher, mask, temperature=2.0):
  """One task's term: mean over batch and classes of -(q log p + (1 - q) log(1 - p)), p and q softmaxes at T.

  Args:
    logits, teacher: [batch, classes].
    mask: [classes] bool, the classes of one old task. With a single class p = q = 1 and the term is 0.
  """
  student, target = (notation.part(values, mask) / temperature for values in (logits, teacher))
  if student.shape[1] == 1:
    return 0.0
  q = np.exp(notation.log_softmax(target))
  return float(-(q * notation.log_softmax(student) + (1 - q) * _log_others(student)).mean())


def distillation_gradient(logits, teacher, mask, temperature=2.0):
  """d(distillation)/dz [batch, classes].

  With r_c the softmax over all classes but c (0 at c), log(1 - p_c) has the gradient r_c - p, so over C classes
  -sum_c (q_c log p_c + (1 - q_c) log(1 - p_c)) has C p - q - sum_c (1 - q_c) r_c; over T, the batch and C here.
  """
  student, target = (notation.part(values, mask) / temperature for values in (logits, teacher))
  if student.shape[1] == 1:
    return np.zeros(np.shape(logits))
  p, q = np.exp(notation.log_softmax(student)), np.exp(notation.log_softmax(target))
  result = p.shape[1] * p - q
  for c in range(p.shape[1]):
    others = np.arange(p.shape[1]) != c
    result[:, others] -= (1 - q[:, [c]]) * np.exp(notation.log_softmax(student[:, others]))
  return notation.whole(result / (student.size * temperature), mask)


def _log_others(logits):
  """log(1 - softmax(z)_c) [batch, classes]: the log-sum-exp of all others over that of all, exact for p_c near 1."""
  result = np.empty_like(logits)
  for c in range(logits.shape[1]):
    others = np.delete(logits, c, axis=1)
    result[:, c] = np.logaddexp.reduce(others, axis=1) - np.logaddexp.reduce(logits, axis=1)
  return result


def loss(logits, teacher, labels, old, new, task_of_class, *, weight=1.0, temperature=2.0, skip_last=False):
  """CE over all seen classes + weight times the sum of the old tasks' terms; the same in both phases.

  Args:
    logits, teacher: [batch, classes]; the teacher's count in the columns of `old` only.
    labels: [batch], seen classes.
    old, new: [classes] bool.
    task_of_class: [classes]; not read for unseen classes.
  """
  result = notation.cross_entropy(logits, labels, np.asarray(old, bool) | np.asarray(new, bool))
  for task in distilled_tasks(task_of_class, old, skip_last):
    result += weight * distillation(logits, teacher, old & (np.asarray(task_of_class) == task), temperature)
  return result


def gradient(logits, teacher, labels, old, new, task_of_class, *, weight=1.0, temperature=2.0, skip_last=False):
  """dL/dz [batch, classes]."""
  result = notation.cross_entropy_gradient(logits, labels, np.asarray(old, bool) | np.asarray(new, bool))
  for task in distilled_tasks(task_of_class, old, skip_last):
    mine = old & (np.asarray(task_of_class) == task)
    result = result + weight * distillation_gradient(logits, teacher, mine, temperature)
  return result


def balanced_rows(memory_rows, shuffled_new_rows):
  """Rows of the balanced phase, ascending: the memory and as many rows of the task, drawn evenly over its images.

  Args:
    memory_rows: rows of the exemplars, |M|.
    shuffled_new_rows: the task's rows in drawn order; the first |M| are taken, all of them if there are fewer.
  """
  return np.sort(np.concatenate([memory_rows, np.asarray(shuffled_new_rows)[:len(memory_rows)]]).astype(int))


def gradient_noise(epoch, eta=0.3, gamma=0.55):
  """Standard deviation of the optional gradient noise in `epoch`, from 0: eta / (1 + epoch)^gamma. Off by default."""
  return eta / (1 + epoch) ** gamma
