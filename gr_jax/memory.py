"""The exemplar memory: which rows of the training images are kept after a task (docs/method.md section 6).

It holds indices, never copies of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

SELECTIONS = ("herding", "random", "entropy", "distance", "closest_to_mean")


def quota(seen: int, *, per_class: int | None, total: int | None) -> int:
  """m, exemplars of each class once `seen` classes have been learned: per_class, or floor(total / seen).

  Raises:
    ValueError: both or neither are given.
  """
  if per_class is not None and total is None:
    return per_class
  if total is not None and per_class is None:
    return total // max(seen, 1)
  raise ValueError(f"per_class is {per_class} and total is {total}; exactly one of them must be a number")


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
  rows = _unit_rows(_checked(features, m, "features"))
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


def closest_to_mean(features: np.ndarray, m: int) -> np.ndarray:
  """Picks the rows closest to the class mean; rows, mean, ties and errors as in `herd`.

  Unlike herding, a pick does not depend on those before it, so near copies are picked together. The first pick is that
  of `herd`.

  Returns:
    [min(m, n)] int32 row indices, closest first.
  """
  rows = _unit_rows(_checked(features, m, "features"))
  return _lowest(np.square(rows.mean(axis=0) - rows).sum(axis=1), m) if len(rows) else np.zeros(0, np.int32)


def highest_entropy(logits: np.ndarray, m: int) -> np.ndarray:
  """Picks the rows whose softmax over the seen classes has the highest entropy (RWalk, Chaudhry et al., ECCV 2018).

  Args:
    logits: [n, seen classes] float.
    m: number of rows to pick at most.

  Returns:
    [min(m, n)] int32 row indices, highest entropy first; ties go to the lowest row.

  Raises:
    ValueError: negative m, logits that are not a matrix or not finite.
  """
  logits = _checked(logits, m, "logits")
  shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
  log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
  # exp(log p) log p is 0 for p = 0, as it should be.
  return _lowest((np.exp(log_shares) * log_shares).sum(axis=1), m)


def lowest_logit(logits: np.ndarray, label: int, m: int) -> np.ndarray:
  """Picks the rows whose logit of their own class is lowest: those closest to the decision boundary.

  RWalk's pseudo-distance, "distance" in FACIL.

  Args:
    logits: [n, seen classes] float.
    label: index of the rows' class.
    m: number of rows to pick at most.

  Returns, raises: see `highest_entropy`; lowest first.
  """
  return _lowest(_checked(logits, m, "logits")[:, label], m)


def select(
    present: Sequence[np.ndarray], m: int, selection: str, *, features: Callable[[np.ndarray], np.ndarray],
    logits: Callable[[np.ndarray], np.ndarray], seed: int, task: int) -> tuple[np.ndarray, ...]:
  """Selects the exemplars of every seen class from its present rows.

  Args:
    present: for each seen class, the rows of its images that are present now.
    m: exemplars per class.
    selection: one of SELECTIONS: `herd`, a seeded draw (by seed, task and class), `highest_entropy`, `lowest_logit`,
      `closest_to_mean`.
    features: rows [n] -> features [n, d] of the un-augmented images in evaluation mode.
    logits: features [n, d] -> logits [n, seen classes].
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
  if selection in ("entropy", "distance"):
    every = logits(every)
  parts = np.split(every, np.cumsum([len(rows) for rows in present])[:-1])
  picks = {"herding": lambda part, j: herd(part, m), "closest_to_mean": lambda part, j: closest_to_mean(part, m),
           "entropy": lambda part, j: highest_entropy(part, m),
           "distance": lambda part, j: lowest_logit(part, j, m)}[selection]
  return tuple(rows[picks(part, j)].astype(np.int32) for j, (rows, part) in enumerate(zip(present, parts)))


def _checked(values: np.ndarray, m: int, name: str) -> np.ndarray:
  """The values in float64; raises ValueError if they or m cannot be used."""
  values = np.asarray(values, np.float64)
  if m < 0:
    raise ValueError(f"m is {m}; the number of exemplars cannot be negative")
  if values.ndim != 2:
    raise ValueError(f"{name} have shape {values.shape}; expected [images, {'classes' if name == 'logits' else name}]")
  if not np.isfinite(values).all():
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    raise ValueError(f"{name} of {len(bad)} of {len(values)} rows are not finite (first: row {bad[0]})")
  return values


def _unit_rows(features: np.ndarray) -> np.ndarray:
  """The rows L2-normalized; a zero row stays zero."""
  norms = np.sqrt(np.square(features).sum(axis=1, keepdims=True))
  return features / np.where(norms > 0, norms, 1.0)


def _lowest(values: np.ndarray, m: int) -> np.ndarray:
  """Indices of the m lowest values, lowest first; ties go to the lowest index."""
  return np.argsort(values, kind="stable")[:m].astype(np.int32)
