"""Chooses a setting by held-out images: the simplest within one standard error of the best.

The hold-out is long-tailed like the training images, and the test set is balanced, so classes count alike: the score of
a setting is the mean over classes of the accuracy on held-out images. A class's accuracy is the mean over the scenario
seeds in which it has held-out images; classes without any are left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Class name -> (correct, held-out images).
Counts = Mapping[str, tuple[int, int]]


class Score(NamedTuple):
  """The hold-out accuracy of a setting, as a fraction.

  Attributes:
    mean: over the classes that have held-out images.
    error: its standard error: the standard deviation over these classes divided by the square root of their number.
    classes, left_out: number of classes with and without held-out images.
  """
  mean: float
  error: float
  classes: int
  left_out: int


def score(runs: Sequence[Counts]) -> Score:
  """The score of a setting from its runs, one for each scenario seed.

  Raises:
    ValueError: fewer than two classes have held-out images.
  """
  accuracies: dict[str, list[float]] = {}
  for counts in runs:
    for name, (correct, images) in counts.items():
      accuracies.setdefault(name, [])
      if images:
        accuracies[name].append(correct / images)
  of_class = np.asarray([np.mean(over_runs) for over_runs in accuracies.values() if over_runs])
  if len(of_class) < 2:
    raise ValueError(f"{len(of_class)} classes have held-out images; a standard error needs 2 or more")
  return Score(float(of_class.mean()), float(of_class.std(ddof=1) / np.sqrt(len(of_class))), len(of_class),
               len(accuracies) - len(of_class))


def choose(scores: Sequence[Score], changes: Sequence[int]) -> tuple[int, int]:
  """The chosen setting and the best one, as indices.

  Args:
    scores: of the settings, in the order of the command line.
    changes: of each setting, how many keys differ from the entry's config: fewer are simpler. Of equally many, the
      earlier setting is simpler.

  Returns:
    (chosen, best): the best has the largest mean, of equal ones the simplest; the chosen one is the simplest whose mean
    is at least the best mean minus the best one's standard error.
  """
  order = sorted(range(len(scores)), key=lambda i: (changes[i], i))
  best = max(order, key=lambda i: scores[i].mean)
  return next(i for i in order if scores[i].mean >= scores[best].mean - scores[best].error), best
