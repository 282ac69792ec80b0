"""Section 6: bias correction."""

import math
from fractions import Fraction

import numpy as np

from . import notation


def corrected(logits, alpha, beta, task_of_class, seen):
  """q = alpha_i z + beta_i for the classes of task i; -inf in unseen columns, so that no argmax takes them.

  Args:
    logits: [batch, classes].
    alpha, beta: [tasks]; 1 and 0 of a task whose correction is not learned yet.
    task_of_class: [classes], task in which each class arrives, from 0; not read for unseen classes.
    seen: [classes] bool.
  """
  tasks = np.asarray(task_of_class)[np.flatnonzero(seen)]
  scale, shift = np.asarray(alpha, np.float64)[tasks], np.asarray(beta, np.float64)[tasks]
  return notation.whole(scale * notation.part(logits, seen) + shift, seen, -np.inf)


def loss(logits, teacher, labels, old, new, alpha, beta, task_of_class, temperature=2.0):
  """Stage 1: (1 - lambda) CE(q, y) over all seen classes + lambda KD_2(q_old, q_hat_old), lambda = n_old / N.

  Args:
    logits, teacher: [batch, classes], both before correction. The old tasks' alpha and beta, frozen since the end of
      their stage 2, correct student and teacher alike.
    labels: [batch], seen classes.
    old, new: [classes] bool.
    alpha, beta: [tasks]; 1 and 0 for the current task.
    task_of_class: [classes].
  """
  share, seen = notation.old_share(old, new), np.asarray(old, bool) | np.asarray(new, bool)
  student = corrected(logits, alpha, beta, task_of_class, seen)
  kd = notation.distillation(student, corrected(teacher, alpha, beta, task_of_class, old), old, temperature)
  return (1 - share) * notation.cross_entropy(student, labels, seen) + share * kd


def gradient(logits, teacher, labels, old, new, alpha, beta, task_of_class, temperature=2.0):
  """d(stage 1)/dz [batch, classes] = alpha_i times that with respect to q."""
  share, seen = notation.old_share(old, new), np.asarray(old, bool) | np.asarray(new, bool)
  student = corrected(logits, alpha, beta, task_of_class, seen)
  target = corrected(teacher, alpha, beta, task_of_class, old)
  kd = notation.distillation_gradient(student, target, old, temperature)
  result = (1 - share) * notation.cross_entropy_gradient(student, labels, seen) + share * kd
  scale = np.asarray(alpha, np.float64)[np.asarray(task_of_class)[np.flatnonzero(seen)]]
  return notation.whole(scale * notation.part(result, seen), seen)


def correction_loss(logits, labels, alpha, beta, task_of_class, seen, task, decay=0.05):
  """Stage 2: CE(q, y) over all seen classes + decay beta_t^2, on the held-out pictures.

  Args:
    logits: [batch, classes], before correction, batch norm in evaluation mode.
    labels: [batch], seen classes.
    alpha, beta: [tasks].
    seen: [classes] bool.
    task: t, the current task, from 0.
  """
  q = corrected(logits, alpha, beta, task_of_class, seen)
  return notation.cross_entropy(q, labels, seen) + decay * float(beta[task]) ** 2


def correction_gradient(logits, labels, alpha, beta, task_of_class, seen, task, decay=0.05):
  """d(stage 2)/d(alpha_t, beta_t), two numbers [2].

  With g = dCE/dq: sum over rows and classes of task t of g z, and of g, the latter + 2 decay beta_t.
  """
  q = corrected(logits, alpha, beta, task_of_class, seen)
  mine = np.asarray(seen, bool) & (np.asarray(task_of_class) == task)
  g = notation.part(notation.cross_entropy_gradient(q, labels, seen), mine)
  return np.array([(g * notation.part(logits, mine)).sum(), g.sum() + 2 * decay * float(beta[task])])


def learn_correction(logits, labels, alpha, beta, task_of_class, seen, task, batches, rate=0.1, momentum=0.9):
  """Stage 2 by SGD over fixed logits: v <- momentum v + gradient, (alpha_t, beta_t) <- (alpha_t, beta_t) - rate v.

  Args:
    logits: [images, classes], of all held-out pictures.
    labels: [images].
    alpha, beta: [tasks], where the descent starts (1 and 0 at `task`); not changed.
    batches: one sequence of rows per step, all epochs one after another. The rate stays constant.

  Returns:
    alpha and beta [tasks] after the last step; only the entries of `task` differ.
  """
  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  alpha, beta, velocity = np.array(alpha, np.float64), np.array(beta, np.float64), np.zeros(2)
  for rows in batches:
    rows = np.asarray(rows)
    slope = correction_gradient(logits[rows], labels[rows], alpha, beta, task_of_class, seen, task)
    velocity = momentum * velocity + slope
    alpha[task] -= rate * velocity[0]
    beta[task] -= rate * velocity[1]
  return alpha, beta


def held_out_per_class(memory_per_class=20, share=0.1):
  """ceil(share memory_per_class): 2 of 20. Exact: ceil(0.1 * 70) in floating point would be 8."""
  return math.ceil(Fraction(str(share)) * memory_per_class)


def held_out_rows(labels, new, memory_per_class=20, share=0.1):
  """Rows, ascending, that leave training for good: the first `held_out_per_class` rows of each new class.

  Args:
    labels: [images], in the order in which the classes' pictures are drawn.
    new: [classes] bool.

  Raises:
    ValueError: if a new class would keep no row to train on.
  """
  number, rows = held_out_per_class(memory_per_class, share), []
  for c in np.flatnonzero(new):
    mine = np.flatnonzero(np.asarray(labels) == c)
    if len(mine) <= number:
      raise ValueError(f"class {c} has {len(mine)} images; holding out {number} needs at least {number + 1}")
    rows += mine[:number].tolist()
  return np.array(sorted(rows), int)
