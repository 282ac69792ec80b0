"""Metrics after each task, from counts of correct test images (docs/method.md section 7).

Class j is the j-th in learning order. Values are fractions, never per cent; undefined values are None.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Matrix = list[list[float | None]]

# Few-shot classes have fewer training images than the first number, many-shot classes more than the second.
MEDIUM_SHOT = (20, 100)


def accuracy_matrix(correct: np.ndarray, total: np.ndarray, task_of_class: np.ndarray) -> Matrix:
  """a_{t,u}: accuracy on task u's test images after task t.

  Args:
    correct: [tasks done, classes] int, correct test images of each class after each task.
    total: [classes] int, test images of each class.
    task_of_class: [classes] int.

  Returns:
    N lists of N; None above the diagonal and for unfinished tasks.
  """
  correct, total = np.asarray(correct), np.asarray(total)
  members = _members(task_of_class)
  matrix: Matrix = [[None] * len(members) for _ in members]
  for t, row in enumerate(correct):
    for u in range(t + 1):
      matrix[t][u] = _share(row[members[u]].sum(), total[members[u]].sum())
  return matrix


def task_accuracies(correct: np.ndarray, total: np.ndarray, task_of_class: np.ndarray) -> list[float | None]:
  """ACC_t: accuracy over all test images of the classes seen after task t; None for unfinished tasks."""
  correct, total, task_of_class = np.asarray(correct), np.asarray(total), np.asarray(task_of_class)
  accuracies: list[float | None] = [None] * (int(task_of_class.max()) + 1)
  for t, row in enumerate(correct):
    seen = task_of_class <= t
    accuracies[t] = _share(row[seen].sum(), total[seen].sum())
  return accuracies


def task_mean_accuracies(matrix: Matrix) -> list[float | None]:
  """The unweighted mean of a_{t,u} over u <= t, which some tables show instead of ACC_t."""
  return [_mean(row[:t + 1]) for t, row in enumerate(matrix)]


def forgetting(matrix: Matrix) -> list[float | None]:
  """Mean over u < t of max_{u<=l<t} a_{l,u} - a_{t,u}; None after the first task."""
  def lost(t: int, u: int) -> float | None:
    return _difference(_largest([matrix[l][u] for l in range(u, t)]), matrix[t][u])
  return [_mean([lost(t, u) for u in range(t)]) for t in range(len(matrix))]


def backward_transfer(matrix: Matrix) -> list[float | None]:
  """Mean over u < t of a_{t,u} - a_{u,u}, as in GEM; None after the first task."""
  return [_mean([_difference(matrix[t][u], matrix[u][u]) for u in range(t)]) for t in range(len(matrix))]


def average_incremental_accuracy(accuracies: Sequence[float | None]) -> float | None:
  """mean_t ACC_t over the finished tasks, base task included."""
  return _mean([a for a in accuracies if a is not None])


def many_medium_few(correct: np.ndarray, total: np.ndarray, train_counts: np.ndarray) -> dict:
  """Accuracy over the classes with > 100, 20..100 and < 20 training images.

  Args:
    correct, total: [classes] int, of the seen classes, after the last task.
    train_counts: [classes] int, n_j.

  Returns:
    {"many" | "medium" | "few": {accuracy, classes, images}}, None for an empty group.
  """
  correct, total = np.asarray(correct), np.asarray(total)
  return {name: {"accuracy": _share(correct[group].sum(), total[group].sum()), "classes": int(group.sum()),
                 "images": int(total[group].sum())} if group.any() else None
          for name, group in shot_groups(train_counts).items()}


def shot_groups(train_counts: np.ndarray) -> dict[str, np.ndarray]:
  """[classes] bool of the "many", "medium" and "few" classes; train_counts [classes] int, n_j."""
  counts, (low, high) = np.asarray(train_counts), MEDIUM_SHOT
  return {"many": counts > high, "medium": (counts >= low) & (counts <= high), "few": counts < low}


def _members(task_of_class: np.ndarray) -> list[np.ndarray]:
  task_of_class = np.asarray(task_of_class)
  return [np.flatnonzero(task_of_class == t) for t in range(int(task_of_class.max()) + 1)]


def _share(part: int, whole: int) -> float | None:
  return float(part) / float(whole) if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
  known = [v for v in values if v is not None]
  return float(np.mean(known)) if known and len(known) == len(values) else None


def _largest(values: Sequence[float | None]) -> float | None:
  known = [v for v in values if v is not None]
  return max(known) if len(known) == len(values) else None


def _difference(a: float | None, b: float | None) -> float | None:
  return None if a is None or b is None else a - b
