"""Section 15: learnable weight scaling, a class-balanced second stage upon any method."""

import numpy as np

from . import notation


def scaled(logits, scale, seen):
  """l * z [batch, classes], with `scale` [classes] initially 1; -inf in unseen columns."""
  return notation.whole(notation.part(logits, seen) * notation.part(scale, seen), seen, -np.inf)


def loss(logits, scale, labels, seen):
  """CE(l * z, y) over all seen classes.

  Args:
    logits: [batch, classes], the base method's, of a frozen backbone; eta s for LUCIR.
    scale: [classes].
    labels: [batch], seen classes.
    seen: [classes] bool.
  """
  return notation.cross_entropy(scaled(logits, scale, seen), labels, seen)


def gradients(logits, scale, labels, seen, new, frozen=True):
  """(dL/dz [batch, classes], dL/dl [classes]) = (l g, sum over the batch of z g) with g = dCE/d(l z).

  Args:
    new: [classes] bool, the newest head.
    frozen: True, dL/dz is 0 in old columns: neither the old heads nor the backbone are trained. dL/dl is not.
  """
  g = notation.part(notation.cross_entropy_gradient(scaled(logits, scale, seen), labels, seen), seen)
  upon_logits = notation.whole(g * notation.part(scale, seen), seen)
  if frozen:
    upon_logits[:, ~np.asarray(new, bool)] = 0.0
  return upon_logits, notation.whole((g * notation.part(logits, seen)).sum(axis=0), seen)


def rate(epoch, epochs=30, start=0.1):
  """Learning rate of `epoch`, from 0: start (1 + cos(pi epoch / epochs)) / 2, so `start` in the first one.

  The scales learn at a tenth of it (the released code: from the second epoch on).
  """
  return start * (1 + np.cos(np.pi * epoch / epochs)) / 2


def class_aware_rows(class_cycles, row_cycles, length, repeats=4):
  """Rows of one epoch: class after class, and of each the next `repeats` rows of its own cycle.

  Args:
    class_cycles: the classes in shuffled order, once for each time round, one list after another.
    row_cycles: {class: its rows in shuffled order, once for each time round, one list after another}.
    length: rows in the epoch, |D_t| + |M|; the last class's rows are cut off there.
  """
  order = [c for cycle in class_cycles for c in cycle]
  rows = {c: [row for cycle in cycles for row in cycle] for c, cycles in row_cycles.items()}
  result, used = [], dict.fromkeys(rows, 0)
  for c in order:
    if len(result) >= length:
      break
    result += rows[c][used[c]:used[c] + repeats]
    used[c] += repeats
  if len(result) < length:
    raise ValueError(f"{len(result)} rows from {len(order)} classes; {length} are asked for, so give more cycles")
  return np.array(result[:length], int)
