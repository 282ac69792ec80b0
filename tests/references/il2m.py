"""Section 11: IL2M, two memories. Trained as finetune with a memory; scores are rectified at test time."""

import numpy as np

from . import notation


def probabilities(logits, seen):
  """softmax over the seen classes [batch, classes], 0 elsewhere: the option in place of raw logits."""
  return notation.whole(np.exp(notation.log_softmax(notation.part(logits, seen))), seen)


def class_means(scores, labels, mask):
  """Mean score of each class on its own images.

  Args:
    scores: [images, classes], raw logits or probabilities.
    labels: [images].
    mask: [classes] bool, the classes that are measured: new ones when they arrive, old ones (on exemplars) later.

  Returns:
    [classes] means, 0 where nothing was measured; [classes] bool, True where at least one image was.
  """
  means, measured = np.zeros(len(mask)), np.zeros(len(mask), bool)
  for c in np.flatnonzero(mask):
    mine = [float(score[c]) for score, label in zip(scores, labels) if label == c]
    if mine:
      means[c], measured[c] = sum(mine) / len(mine), True
  return means, measured


def confidence(scores, seen):
  """T_s: mean over the new images of task s [images, classes] of the largest score among the classes seen by then."""
  return float(notation.part(scores, seen).max(axis=1).mean())


def rectified(scores, initial, now, confidences, task_of_class, old, new, task):
  """Where the largest score is a new class's, old scores times (initial_c / now_c) (T_t / T_task(c)); else as they are.

  Args:
    scores: [images, classes].
    initial, now: [classes], `class_means` of an old class at its own task and now.
    confidences: [tasks], T.
    task_of_class: [classes]; not read for unseen classes.
    old, new: [classes] bool.
    task: t, from 0.

  Returns:
    [images, classes], -inf in unseen columns. The factor is 1 where `now` or the class's own T is 0.
  """
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  result = notation.whole(notation.part(scores, seen), seen, -np.inf)
  for row in result:
    if new[row.argmax()]:
      for c in np.flatnonzero(old):
        then = confidences[task_of_class[c]]
        if now[c] != 0 and then != 0:
          row[c] *= initial[c] / now[c] * confidences[task] / then
  return result
