"""Neural collapse: 0 on an exact simplex, and against the reference on random features."""

import numpy as np
import pytest
from references import neural_collapse as reference

from gr_jax import neural_collapse


def sums(features, labels, count):
  means = np.stack([features[labels == k].mean(axis=0) for k in range(count)])
  away = features - means[labels]
  return means, away.T @ away


def test_zero_on_an_exact_simplex():
  """Class means at the corners of a simplex around any point, one point a class, the classifier along them."""
  rng = np.random.default_rng(0)
  for count in (2, 3, 7):
    corners = np.eye(count) - 1 / count
    turned = corners @ np.linalg.qr(rng.normal(size=(9, 9)))[0][:count]
    features, labels = np.repeat(5 * turned + rng.normal(size=9), 4, axis=0), np.repeat(np.arange(count), 4)
    means, within = sums(features, labels, count)
    figures = neural_collapse.figures(means, within, 0.3 * turned.T, images=4 * count, disagreeing=0)
    assert figures["classes"] == count and figures["images"] == 4 * count
    values = [figures["nc1"], figures["nc3"], figures["nc4"], *figures["nc2"]["means"].values(),
              *figures["nc2"]["classifier"].values()]
    assert values == pytest.approx([0] * 9, abs=1e-12)


@pytest.mark.parametrize("count, size", [(2, 5), (5, 8), (9, 4)])
def test_against_the_reference(count, size):
  """More classes than features too."""
  rng = np.random.default_rng(count)
  labels = np.concatenate([np.arange(count), rng.integers(0, count, 40)])
  features = rng.normal(size=(count, size))[labels] + 0.3 * rng.normal(size=(len(labels), size))
  kernel, bias = rng.normal(size=(size, count)), rng.normal(size=count)
  nc1, of_means, of_classifier, nc3, nc4 = reference.figures(features, labels, kernel, bias)
  means, within = sums(features, labels, count)
  figures = neural_collapse.figures(means, within, kernel, images=len(labels), disagreeing=round(nc4 * len(labels)))
  assert figures["nc1"] == pytest.approx(nc1, rel=1e-9)
  assert tuple(figures["nc2"]["means"].values()) == pytest.approx(of_means)
  assert tuple(figures["nc2"]["classifier"].values()) == pytest.approx(of_classifier)
  assert figures["nc3"] == pytest.approx(nc3) and figures["nc4"] == pytest.approx(nc4)
  assert 0 < nc3 < 4 and nc1 > 0


def test_what_is_undefined_is_none():
  assert neural_collapse.figures(np.ones((1, 3)), np.eye(3), np.ones((3, 1)), images=4, disagreeing=0) is None
  assert neural_collapse.figures(np.ones((2, 3)), np.eye(3), np.ones((3, 2)), images=0, disagreeing=0) is None
  # All class means in one point, a classifier of zeros.
  figures = neural_collapse.figures(np.ones((2, 3)), np.eye(3), np.zeros((3, 2)), images=4, disagreeing=1)
  assert figures["nc1"] is None and figures["nc3"] is None and figures["nc4"] == 0.25
  assert set(figures["nc2"]["means"].values()) == {None} == set(figures["nc2"]["classifier"].values())
