"""The exemplar memory: which rows of the training images are kept after a task (docs/method.md section 6).

It holds indices, never copies of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

SELECTIONS = ("herding", "random")


def herd(features: np.ndarray, m: int) -> np.ndarray:
  """Herding: picks the rows whose running mean is closest to the class mean.

  Rows are L2-normalized (a zero row stays zero); mu is their mean. Each pick is the row that brings the mean of the
  picked rows, not normalized again, closest to mu. Ties go to the lowest row; no row is picked twice. Computed in
  float64, so that ties come from the features and not from rounding.

  Args:
    features: [n, d] float.
    m: number of rows to pick at most.

  Returns:
    [min(m, n)] int32 row indices in pick order; a smaller m gives a prefix.

  Raises:
    ValueError: negative m, features that are not a matrix or not finite.
  """
  features = np.asarray(features, np.float64)
  if m < 0:
    raise ValueError(f"m is {m}; the number of exemplars cannot be negative")
  if features.ndim != 2:
    raise ValueError(f"features have shape {features.shape}; expected [images, features]")
  if not np.isfinite(features).all():
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    raise ValueError(f"features of {len(bad)} of {len(features)} rows are not finite (first: row {bad[0]})")
  norms = np.sqrt(np.square(features).sum(axis=1, keepdims=True))
  rows = features / np.where(norms > 0, norms, 1.0)
  picks = np.zeros(min(m, len(rows)), np.int32)
  if not len(picks):
    return picks
  mean, picked_sum = rows.mean(axis=0), np.zeros(rows.shape[1])
  free = np.ones(len(rows), bool)
  for k in range(len(picks)):
    # Not a matrix product: its blocks round equal rows differently, which would break ties.
    distances = np.square(mean - (picked_sum + rows) / (k + 1)).sum(axis=1)
    picks[k] = np.argmin(np.where(free, distances, np.inf))
    picked_sum += rows[picks[k]]
    free[picks[k]] = False
  return picks


def select(
    present: Sequence[np.ndarray], m: int, selection: str, *,
    features: Callable[[np.ndarray], np.ndarray], seed: int, task: int) -> tuple[np.ndarray, ...]:
  """Selects the exemplars of every seen class from its present rows.

  Args:
    present: for each seen class, the rows of its images that are present now.
    m: exemplars per class.
    selection: "herding" (docs/method.md section 6) or "random" (seeded by seed, task and class).
    features: rows [n] -> features [n, d] of the un-augmented images in evaluation mode.
    seed, task: for "random".

  Returns:
    For each seen class, the rows to keep, int32, in pick order.
  """
  if m == 0:
    return tuple(np.zeros(0, np.int32) for _ in present)
  if selection == "random":
    shuffled = [np.random.default_rng((seed, task, j)).permutation(rows) for j, rows in enumerate(present)]
    return tuple(rows[:m].astype(np.int32) for rows in shuffled)
  every = features(np.concatenate(present))
  parts = np.split(every, np.cumsum([len(rows) for rows in present])[:-1])
  return tuple(rows[herd(part, m)].astype(np.int32) for rows, part in zip(present, parts))
