"""The long-tailed profile against exact integer arithmetic."""

import hypothesis
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st

from gr_jax import scenario

SETTINGS = hypothesis.settings(deadline=None, max_examples=50, derandomize=True)


def counts(num_classes, max_count, imbalance):
  """The profile as a list, after checking what kind of answer it is."""
  result = scenario.long_tailed_counts(num_classes, max_count, imbalance)
  assert isinstance(result, np.ndarray)
  assert np.issubdtype(result.dtype, np.integer)
  assert result.shape == (num_classes,)
  return result.tolist()


def test_cifar100():
  profile = counts(100, 500, 100)
  assert sum(profile) == 10847
  assert (profile[0], profile[1], profile[50], profile[-1]) == (500, 477, 48, 5)


def test_cifar100_after_the_hold_out():
  """10 % of each class, half to even, leaves 9,758: the number that n_j means."""
  assert sum(n - round(0.1 * n) for n in counts(100, 500, 100)) == 9758


def test_by_hand():
  assert counts(3, 100, 100) == [100, 10, 1]
  assert counts(4, 1000, 1000) == [1000, 100, 10, 1]
  assert counts(5, 16, 16) == [16, 8, 4, 2, 1]
  assert counts(2, 7, 2) == [7, 3]
  assert counts(3, 10, 1) == [10, 10, 10]


@pytest.mark.parametrize("imbalance", [1, 10, 50, 100, 150, 1.0, 10.0, 50.0, 100.0, 150.0])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 100, 101, 1000])
def test_the_ends_are_exact(num_classes, imbalance):
  """Rounding must not turn the 5.0 of the smallest class into 4."""
  for smallest in (1, 2, 5, 7, 13):
    largest = smallest * int(imbalance)
    profile = counts(num_classes, largest, imbalance)
    assert (profile[0], profile[-1]) == (largest, smallest)


@pytest.mark.parametrize("imbalance", [1, 10, 50, 100, 150])
@pytest.mark.parametrize(
  "num_classes, max_count", [(100, 500), (101, 750), (10, 120), (100, 1300), (7, 64)]
)
def test_agrees_with_exact_arithmetic(num_classes, max_count, imbalance):
  profile = counts(num_classes, max_count, imbalance)
  assert profile == oracle.long_tailed_counts(num_classes, max_count, imbalance)


@SETTINGS
@hypothesis.given(st.integers(2, 40), st.integers(1, 2000), st.integers(1, 200))
def test_any_profile_agrees_with_exact_arithmetic(num_classes, max_count, imbalance):
  profile = counts(num_classes, max_count, imbalance)
  assert profile == oracle.long_tailed_counts(num_classes, max_count, imbalance)


@SETTINGS
@hypothesis.given(st.integers(2, 6), st.integers(2, 4), st.integers(1, 9))
def test_a_geometric_profile_of_whole_numbers_is_exact(num_classes, base, smallest):
  """Every n_i is a whole number, so every floor is on the edge."""
  profile = counts(num_classes, smallest * base ** (num_classes - 1), base ** (num_classes - 1))
  assert profile == [smallest * base**i for i in reversed(range(num_classes))]


@SETTINGS
@hypothesis.given(
  st.integers(2, 300), st.integers(1, 2000), st.floats(1.0, 1000.0, allow_nan=False)
)
def test_largest_first(num_classes, max_count, imbalance):
  profile = counts(num_classes, max_count, imbalance)
  assert profile == sorted(profile, reverse=True)
  assert profile[0] == max_count
  assert profile[-1] in (int(max_count / imbalance), round(max_count / imbalance))


@pytest.mark.parametrize("imbalance", [0.99, 0.0, -5.0, float("nan")])
def test_an_imbalance_below_one_is_refused(imbalance):
  with pytest.raises(ValueError, match=str(imbalance)):
    scenario.long_tailed_counts(10, 100, imbalance)


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_fewer_than_two_classes_are_refused(num_classes):
  with pytest.raises(ValueError, match=str(num_classes)):
    scenario.long_tailed_counts(num_classes, 100, 10)


@pytest.mark.parametrize("max_count", [0, -3])
def test_a_largest_class_without_images_is_refused(max_count):
  with pytest.raises(ValueError, match=str(max_count)):
    scenario.long_tailed_counts(10, max_count, 10)
