"""The score of a setting and the choice, against NumPy."""

import numpy as np
import pytest

from gr_jax.comparing.choice import Score, choose, score


def reference(correct, images):
  """[seeds, classes] -> (mean over classes, standard error, classes with images), in float64 NumPy."""
  with np.errstate(invalid="ignore"):
    accuracy = np.where(images > 0, correct / np.maximum(images, 1), np.nan)
  some = (images > 0).any(axis=0)
  of_class = np.nanmean(accuracy[:, some], axis=0)
  return of_class.mean(), np.sqrt(np.var(of_class, ddof=1) / some.sum()), some.sum()


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_mean_over_classes_and_its_standard_error(seeds):
  """100 classes, long-tailed: some without held-out images, some only in one scenario."""
  rng = np.random.default_rng(seeds)
  images = np.maximum(np.round(40 * 0.9 ** np.arange(100)) - rng.integers(0, 3, (seeds, 100)), 0).astype(int)
  correct = rng.binomial(images, rng.uniform(0, 1, 100))
  estimate = score([{str(c): (int(right), int(n)) for c, (right, n) in enumerate(zip(*rows))}
                    for rows in zip(correct, images)])
  mean, error, classes = reference(correct, images)
  assert estimate.mean == pytest.approx(mean, abs=1e-12) and estimate.error == pytest.approx(error, abs=1e-12)
  assert estimate.classes == classes < 100 and estimate.left_out == 100 - classes


def test_classes_count_alike_however_many_images_they_have():
  estimate = score([{"large": (90, 100), "small": (0, 1), "none": (0, 0)}])
  assert estimate.mean == pytest.approx(0.45) and (estimate.classes, estimate.left_out) == (2, 1)
  assert estimate.error == pytest.approx(np.std([0.9, 0.0], ddof=1) / np.sqrt(2))


def test_a_class_is_the_mean_over_the_seeds_in_which_it_has_images():
  estimate = score([{"a": (1, 2), "b": (3, 4)}, {"a": (0, 0), "b": (1, 4)}])
  assert estimate.mean == pytest.approx((0.5 + (0.75 + 0.25) / 2) / 2)


def test_one_class_has_no_standard_error():
  with pytest.raises(ValueError, match="1 classes have held-out images"):
    score([{"a": (1, 2), "b": (0, 0)}])


@pytest.mark.parametrize("means, changes, chosen, best", [
    # Within one standard error (0.02) of the best: the simpler one.
    ([0.40, 0.41], [0, 1], 0, 1),
    ([0.41, 0.40], [1, 0], 1, 0),
    # Further away: the best one.
    ([0.38, 0.41], [0, 1], 1, 1),
    # Exactly one standard error away is still within.
    ([0.25, 0.27], [0, 1], 0, 1),
    # Of equally many changes the earlier one is simpler; of equal means the simplest is the best.
    ([0.40, 0.41, 0.41], [1, 1, 1], 0, 1),
    ([0.40, 0.40], [1, 0], 1, 1),
    ([0.30, 0.39, 0.40], [0, 2, 1], 2, 2)])
def test_the_simplest_within_one_standard_error_of_the_best(means, changes, chosen, best):
  error = 0.27 - 0.25 if means[0] == 0.25 else 0.02
  assert choose([Score(mean, error, 10, 0) for mean in means], changes) == (chosen, best)


def test_the_choice_against_numpy_on_random_scores():
  rng = np.random.default_rng(0)
  for _ in range(200):
    count = rng.integers(2, 7)
    means, errors, changes = rng.uniform(0.3, 0.4, count), rng.uniform(0, 0.05, count), rng.integers(0, 3, count)
    chosen, best = choose([Score(mean, error, 9, 1) for mean, error in zip(means, errors)], changes.tolist())
    assert best == np.argmax(means)
    near = np.flatnonzero(means >= means.max() - errors[best])
    simplest = near[np.lexsort((near, changes[near]))[0]]
    assert chosen == simplest
