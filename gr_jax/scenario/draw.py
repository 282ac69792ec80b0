"""Draws which images of which class arrive in which task (docs/method.md section 2).

Uses no files or devices, only labels and stable image ids. Every random choice is the order of SHA-256 hashes of
(seed, purpose, id), so a `scenario.seed` draws the same scenario on every machine, with every library version, and for
any order of the records in the files.
"""

from __future__ import annotations

import dataclasses
import fractions
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from gr_jax.errors import UserError

KINDS = ("lt", "ltio", "conv", "natural")

# The iCaRL order (seed 1993), docs/method.md section 2: CIFAR-100's classes, and ImageNet-Subset's 100 indices.
ICARL_ORDER = (
    68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38, 58, 70, 77, 1, 85, 19, 17,
    50, 28, 53, 13, 81, 45, 82, 6, 59, 83, 16, 15, 44, 91, 41, 72, 60, 79, 52, 20, 10, 31, 54, 37, 95, 14,
    71, 96, 98, 97, 2, 64, 66, 42, 22, 35, 86, 24, 34, 87, 21, 99, 0, 88, 27, 18, 94, 11, 12, 47, 25, 30,
    46, 62, 69, 36, 61, 7, 63, 75, 5, 32, 4, 51, 48, 73, 93, 39, 67, 29, 49, 57, 33)

# If a larger share of the profile's images is missing, the draw is not the requested scenario.
_LARGEST_SHORTFALL = 0.05


@dataclasses.dataclass(frozen=True)
class DatasetProperties:
  """What docs/method.md fixes for a data set of the catalogue.

  Attributes:
    fixed_order: labels in learning order for order="fixed"; None if there is no such order.
    fixed_order_ltio: the same for kind="ltio", if it differs.
    profile_by_label: in kinds lt and ltio, the class with label c gets n_c, instead of the class at position c.
    max_count: n_max; "first": the size of the class at position 0; None: the size of the largest class.
    total: training images of the complete set, if known (checked for kind="conv").
  """
  fixed_order: tuple[int, ...] | None = None
  fixed_order_ltio: tuple[int, ...] | None = None
  profile_by_label: bool = False
  max_count: int | str | None = None
  total: int | None = None


@dataclasses.dataclass(frozen=True)
class Task:
  """One task: its classes are the positions first..stop-1 of the learning order."""
  first: int
  stop: int

  @property
  def classes(self) -> range:
    return range(self.first, self.stop)


@dataclasses.dataclass(frozen=True)
class Scenario:
  """A drawn scenario; "class j" is the j-th class in learning order.

  Attributes:
    class_order: the data set's label of each class j.
    class_names: name of each class j.
    tasks: the tasks in order.
    train: for each class j, the drawn rows of the training split, ascending by id, hold-out excluded.
    holdout: the same for the held-out rows.
    profile: requested n_i of each class j, before capping; None for kinds without a profile.
    digest: SHA-256 over classes, tasks and drawn ids.
  """
  class_order: tuple[int, ...]
  class_names: tuple[str, ...]
  tasks: tuple[Task, ...]
  train: tuple[tuple[int, ...], ...]
  holdout: tuple[tuple[int, ...], ...]
  profile: tuple[int, ...] | None
  digest: str

  @property
  def num_classes(self) -> int:
    return len(self.class_order)

  @property
  def counts(self) -> np.ndarray:
    """n_j: training images of each class, hold-out excluded; int64 [classes]."""
    return np.asarray([len(rows) for rows in self.train], np.int64)

  @property
  def task_of_class(self) -> np.ndarray:
    """int32 [classes]."""
    return np.concatenate([np.full(t.stop - t.first, i, np.int32) for i, t in enumerate(self.tasks)])

  @property
  def capped(self) -> dict[int, tuple[int, int]]:
    """Classes with fewer images than their n_i: class j -> (requested, drawn)."""
    if self.profile is None:
      return {}
    drawn = [len(t) + len(h) for t, h in zip(self.train, self.holdout)]
    return {j: (n, d) for j, (n, d) in enumerate(zip(self.profile, drawn)) if d < n}


def long_tailed_counts(num_classes: int, max_count: int, imbalance: float) -> np.ndarray:
  """n_i = floor(n_max * rho^(-i / (K-1))), i = 0..K-1 (docs/method.md section 2).

  Args:
    num_classes: K >= 2.
    max_count: n_max >= 1, images of the largest class.
    imbalance: rho >= 1, the largest class over the smallest.

  Returns:
    int64 [num_classes], largest first.

  Raises:
    ValueError: an argument out of its range.
  """
  if num_classes < 2:
    raise ValueError(f"num_classes is {num_classes}; a long-tailed profile needs 2 or more")
  if max_count < 1:
    raise ValueError(f"max_count is {max_count}; the largest class needs 1 image or more")
  if not (imbalance >= 1 and math.isfinite(imbalance)):
    raise ValueError(f"imbalance is {imbalance}; it must be 1 or more (size of the largest class over the smallest)")
  exact = max_count * float(imbalance) ** (-np.arange(num_classes) / (num_classes - 1))
  # rho^(-1) is not exact in binary: without the factor, 500 images at rho = 100 may give 4 for the last class, not 5.
  return np.floor(exact * (1 + 1e-12)).astype(np.int64)


def split_tasks(num_classes: int, num_tasks: int, first_task_classes: int | None) -> tuple[Task, ...]:
  """Contiguous tasks over the learning order: equal ones, or a base task and equal increments.

  A remainder is distributed over the first of the equal tasks, one class each.

  Raises:
    UserError: a split that leaves a task without a class.
  """
  if num_tasks < 1:
    raise UserError(f"scenario.num_tasks is {num_tasks}; it includes the base task and must be 1 or more")
  if num_tasks > num_classes:
    raise UserError(f"scenario.num_tasks is {num_tasks}, more than the {num_classes} classes of the data set; "
                    f"choose {num_classes} or fewer")
  if first_task_classes is None:
    sizes = _equal_parts(num_classes, num_tasks)
  else:
    rest = num_classes - first_task_classes
    if first_task_classes < 1 or rest < 1:
      raise UserError(f"scenario.first_task_classes is {first_task_classes} of {num_classes} classes; "
                      f"choose 1 to {num_classes - 1}, or leave it unset for equal tasks")
    if num_tasks < 2 or rest < num_tasks - 1:
      raise UserError(
          f"scenario.first_task_classes = {first_task_classes} leaves {rest} classes for "
          f"{num_tasks - 1} further tasks; scenario.num_tasks must be 2 to {rest + 1}")
    sizes = [first_task_classes, *_equal_parts(rest, num_tasks - 1)]
  stops = np.cumsum(sizes)
  return tuple(Task(int(stop - size), int(stop)) for size, stop in zip(sizes, stops))


def _equal_parts(total: int, parts: int) -> list[int]:
  return [total // parts + (i < total % parts) for i in range(parts)]


def _shuffled(items: Sequence[int], seed: int, purpose: str, keys: Sequence[str] | None = None) -> list[int]:
  """Items sorted by the hashes of their keys (the items by default); ties keep the given order."""
  names = [str(item) for item in items] if keys is None else keys
  hashes = [hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest() for name in names]
  return [items[i] for i in sorted(range(len(items)), key=lambda i: (hashes[i], i))]


def class_order(order: str, kind: str, num_classes: int, seed: int, properties: DatasetProperties) -> tuple[int, ...]:
  """Labels in learning order, from "fixed", "seeded" or class indices separated by commas."""
  if order == "seeded":
    return tuple(_shuffled(range(num_classes), seed, "order"))
  if order == "fixed":
    fixed = properties.fixed_order_ltio if kind == "ltio" and properties.fixed_order_ltio else properties.fixed_order
    if fixed is None:
      raise UserError("scenario.order is 'fixed', but this data set has no fixed order; choose 'seeded' or "
                      "list the class indices, separated by commas")
    return fixed
  try:
    labels = tuple(int(part) for part in order.split(","))
  except ValueError:
    raise UserError(f"scenario.order is {order!r}; it can be 'fixed', 'seeded' or class indices separated by "
                    f"commas, such as '2,0,1'") from None
  if sorted(labels) != list(range(num_classes)):
    wrong = sorted(set(labels) ^ set(range(num_classes)))[:10]
    raise UserError(f"scenario.order lists {len(labels)} classes; it must contain each of 0..{num_classes - 1} "
                    f"once (missing or unknown: {wrong or 'none, but some are repeated'})")
  return labels


def make_scenario(
    *, labels: np.ndarray, ids: Sequence[str], class_names: Sequence[str], kind: str, imbalance: float,
    num_tasks: int, first_task_classes: int | None, order: str, seed: int, validation_fraction: float,
    properties: DatasetProperties) -> Scenario:
  """Draws a scenario from the training split's labels and stable ids.

  Args:
    labels: [images] int, each image's class in the data set.
    ids: [images] stable ids; the draw depends on them and not on the rows.
    class_names: [classes] names in the order of the data set.
    kind, imbalance, num_tasks, first_task_classes, order, seed: the config's `scenario`.
    validation_fraction: share of each class's drawn images to hold out, rounded half to even.
    properties: what docs/method.md fixes for this data set.

  Raises:
    UserError: the scenario cannot be drawn; the message gives the numbers.
  """
  num_classes = len(class_names)
  if kind not in KINDS:
    raise UserError(f"scenario.kind is {kind!r}; it can be one of {', '.join(KINDS)}")
  if num_classes < 2:
    raise UserError(f"the number of classes in the data set is {num_classes}; a scenario needs 2 or more")
  tasks = split_tasks(num_classes, num_tasks, first_task_classes)
  order_labels = class_order(order, kind, num_classes, seed, properties)
  rows_of_class = [np.flatnonzero(labels == label).tolist() for label in order_labels]
  available = np.asarray([len(rows) for rows in rows_of_class], np.int64)
  profile = _profile(kind, order_labels, available, imbalance, seed, properties)
  if kind == "conv" and properties.total is not None and available.sum() != properties.total:
    raise UserError(f"scenario.kind is 'conv', which uses all {properties.total} training images, but the prepared "
                    f"data has {available.sum()}; prepare the complete data set")
  wanted = available if profile is None else profile
  if np.minimum(wanted, available).sum() < (1 - _LARGEST_SHORTFALL) * wanted.sum():
    raise UserError(
        f"the profile needs {wanted.sum()} images, but only {np.minimum(wanted, available).sum()} can be "
        f"drawn from the {available.sum()} prepared ones; prepare the complete data set or choose another "
        f"scenario.imbalance")
  share = fractions.Fraction(str(validation_fraction))
  train, holdout = [], []
  for rows, n in zip(rows_of_class, wanted):
    drawn = _shuffled(rows, seed, "draw", [ids[row] for row in rows])[:n]
    held = round(share * len(drawn))
    drawn = _shuffled(drawn, seed, "holdout", [ids[row] for row in drawn])
    train.append(tuple(sorted(drawn[held:], key=ids.__getitem__)))
    holdout.append(tuple(sorted(drawn[:held], key=ids.__getitem__)))
  empty = [class_names[label] for label, rows in zip(order_labels, train) if not rows]
  if empty:
    raise UserError(f"{len(empty)} of {num_classes} classes have no training image after the draw "
                    f"({', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}); lower "
                    f"scenario.imbalance (now {imbalance}) or validation_fraction ({validation_fraction})")
  return Scenario(
      class_order=tuple(order_labels), class_names=tuple(class_names[label] for label in order_labels),
      tasks=tasks, train=tuple(train), holdout=tuple(holdout),
      profile=None if profile is None else tuple(int(n) for n in profile),
      digest=_digest(order_labels, tasks, train, holdout, ids))


def _profile(kind: str, order_labels: Sequence[int], available: np.ndarray, imbalance: float, seed: int,
             properties: DatasetProperties) -> np.ndarray | None:
  """n of each class in learning order; None for kinds that use all images."""
  if kind in ("conv", "natural"):
    return None
  max_count = {"first": available[0], None: available.max()}.get(properties.max_count, properties.max_count)
  try:
    counts = long_tailed_counts(len(order_labels), int(max_count), imbalance)
  except ValueError as error:
    raise UserError(f"scenario: {error}") from None
  if properties.profile_by_label and (kind == "lt" or tuple(order_labels) == properties.fixed_order_ltio):
    return counts[list(order_labels)]
  if kind == "ltio":
    return counts
  return counts[_shuffled(range(len(counts)), seed, "profile")]


def _digest(order_labels, tasks, train, holdout, ids) -> str:
  """SHA-256 over ids, not rows, so that the order of the images in the files does not matter."""
  text = [f"tasks {[(t.first, t.stop) for t in tasks]}"]
  for label, rows, held in zip(order_labels, train, holdout):
    text.append(f"class {label}")
    text += [f"train {ids[row]}" for row in rows]
    text += [f"holdout {ids[row]}" for row in held]
  return hashlib.sha256("\n".join(text).encode()).hexdigest()
