"""Herding against the oracle, by hand, and its properties; the other rules against their references."""

import hypothesis
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from references import exemplars

from gr_jax import memory

SETTINGS = hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
# Picks are compared only where the oracle's decisions are clearer than float32 rounding.
CLEAR = 1e-4


def herd(features, m):
  """Picks as a list, after checking what kind of answer they are."""
  features = np.asarray(features, np.float32)
  picks = np.asarray(memory.herd(features, m))
  assert picks.dtype == np.int32
  assert picks.shape == (min(m, len(features)),)
  assert len(set(picks.tolist())) == len(picks)
  assert np.all((picks >= 0) & (picks < len(features)))
  return picks.tolist()


_entries = st.integers(-32, 32).map(lambda n: n / 8)
_sizes = st.tuples(st.integers(1, 9), st.integers(1, 4))
_features = _sizes.flatmap(lambda size: hnp.arrays(np.float32, size, elements=_entries))


def _random(seed, n=12, d=5):
  return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_herd_by_hand():
  """Rows along (1, 0), (0.6, 0.8) and (0, 1), whose mean is (0.533, 0.6).

  Nearest to it is the second row (scalar products 0.533, 0.8, 0.6). With the first row the mean
  of two is (0.8, 0.4), 0.333 away; with the third it is (0.3, 0.9), 0.380 away.
  """
  features = np.array([[2.0, 0.0], [3.0, 4.0], [0.0, 0.5]])
  assert herd(features, 3) == [1, 0, 2]
  assert oracle.herd(features, 3)[0] == [1, 0, 2]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("m", [1, 5, 12, 30])
def test_herd_agrees_with_the_oracle(seed, m):
  features = _random(seed)
  picks, gap = oracle.herd(features, m)
  assert gap > 1e-5, "an unlucky seed: this case hangs on rounding"
  assert herd(features, m) == picks


def test_herd_of_many_wide_rows():
  rng = np.random.default_rng(5)
  features = np.maximum(rng.normal(size=(60, 64)), 0.0).astype(np.float32)
  picks, gap = oracle.herd(features, 20)
  assert gap > 1e-6, "an unlucky seed: this case hangs on rounding"
  assert herd(features, 20) == picks


@SETTINGS
@hypothesis.given(_features, st.integers(0, 10))
def test_herd_of_anything_clear_agrees_with_the_oracle(features, m):
  picks, gap = oracle.herd(features, m)
  hypothesis.assume(gap > CLEAR)
  assert herd(features, m) == picks


@SETTINGS
@hypothesis.given(_features)
def test_a_smaller_memory_keeps_a_prefix(features):
  every = herd(features, len(features))
  assert sorted(every) == list(range(len(features)))
  for m in range(len(features)):
    assert herd(features, m) == every[:m]


@SETTINGS
@hypothesis.given(_features, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(features, random):
  _, gap = oracle.herd(features, len(features))
  hypothesis.assume(gap > CLEAR)
  order = list(range(len(features)))
  random.shuffle(order)
  moved = herd(features[order], len(features))
  assert [order[row] for row in moved] == herd(features, len(features))


@SETTINGS
@hypothesis.given(_features, st.integers(-20, 20), st.integers(1, 9))
def test_the_length_of_a_row_does_not_matter(features, power, m):
  """Powers of two, so that scaling rounds nothing; another power for every row."""
  powers = power * (np.arange(len(features)) % 3 - 1)
  scaled = features * np.exp2(powers, dtype=np.float32)[:, None]
  assert herd(scaled, m) == herd(features, m)


@pytest.mark.parametrize("power", [-100, 100])
def test_rows_whose_squares_float32_cannot_hold(power):
  features = _random(6)
  scaled = features * np.float32(2.0**power)
  assert herd(scaled, 12) == herd(features, 12)


def test_a_zero_row_stays_zero():
  """It takes part like any row: it is the closest to a mean near zero."""
  features = np.array([[3.0, 0.0], [0.0, 0.0], [-2.0, 0.1]])
  assert herd(features, 3) == oracle.herd(features, 3)[0]
  assert herd(features, 3)[0] == 1
  assert herd(np.zeros((3, 2)), 5) == [0, 1, 2]


@pytest.mark.parametrize("n, d", [(1, 3), (7, 1), (37, 64), (130, 16)])
def test_identical_rows_are_picked_in_order(n, d):
  row = _random(7, 1, d)
  assert herd(np.repeat(row, n, axis=0), n) == list(range(n))


@pytest.mark.parametrize("kinds, copies, d", [(2, 3, 2), (5, 7, 33), (9, 11, 64)])
def test_of_identical_rows_the_lowest_comes_first(kinds, copies, d):
  """Wherever the copies stand, and whatever else ties with them."""
  features = _random(8, kinds, d)
  kind = np.random.default_rng(9).permutation(np.repeat(np.arange(kinds), copies))
  picks = herd(features[kind], kinds * copies)
  for k in range(kinds):
    places = [row for row in picks if kind[row] == k]
    assert places == sorted(places)


def test_a_tie_between_different_rows_goes_to_the_lowest():
  """Mirror images about the mean, whose distances are equal to the last bit."""
  features = np.array([[1.0, 0.0], [0.0, 1.0]])
  assert herd(features, 2) == [0, 1]
  assert herd(features[::-1], 2) == [0, 1]
  cross = np.array([[0.0, -1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
  assert herd(cross, 4) == [0, 3, 1, 2]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_an_empty_memory(n):
  assert herd(_random(10, n), 0) == []


def test_no_row_to_pick_from():
  assert herd(np.zeros((0, 4)), 3) == []


def test_the_features_are_not_changed():
  features = _random(11)
  held = features.copy()
  memory.herd(features, 4)
  np.testing.assert_array_equal(features, held)


def test_a_negative_memory_is_refused():
  with pytest.raises(ValueError, match="-3"):
    memory.herd(_random(12), -3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("m", [0, 2])
def test_features_that_are_not_finite_are_refused(value, m):
  features = _random(13)
  features[3, 1] = value
  with pytest.raises(ValueError):
    memory.herd(features, m)


def picks_of(picks, n, m):
  """As a list, after checking what kind of answer it is."""
  assert picks.dtype == np.int32 and picks.shape == (min(m, n),)
  return picks.tolist()


@pytest.mark.parametrize("m", [0, 1, 5, 12, 30])
@pytest.mark.parametrize("seed", range(3))
def test_entropy_and_distance_agree_with_their_references(seed, m):
  logits = 3 * _random(seed, 12, 6)
  values = [-value for value in exemplars.entropy(logits.astype(float).tolist())]
  assert exemplars.gap(values) > 1e-6, "an unlucky seed: this case hangs on rounding"
  assert picks_of(memory.highest_entropy(logits, m), 12, m) == exemplars.smallest(values, m)
  class_logits = logits[:, 2].tolist()
  assert picks_of(memory.lowest_logit(logits, 2, m), 12, m) == exemplars.smallest(class_logits, m)


@pytest.mark.parametrize("m", [0, 1, 5, 30])
@pytest.mark.parametrize("seed", range(3))
def test_closest_to_the_mean_agrees_with_its_reference(seed, m):
  features = np.maximum(_random(seed, 11, 7), 0.0)
  values = exemplars.distance_to_mean(features.astype(float).tolist())
  assert exemplars.gap(values) > 1e-6, "an unlucky seed: this case hangs on rounding"
  assert picks_of(memory.closest_to_mean(features, m), 11, m) == exemplars.smallest(values, m)


def test_entropy_by_hand():
  """Undecided between two classes, between three, certain; logits whose powers float64 cannot hold."""
  logits = np.array([[1000.0, 1000.0, -1000.0], [7.0, 7.0, 7.0], [900.0, 0.0, 0.0]])
  assert memory.highest_entropy(logits, 3).tolist() == [1, 0, 2]
  assert memory.highest_entropy(logits[[2, 2, 2]], 2).tolist() == [0, 1]


def test_the_closest_row_is_the_first_pick_of_herding_and_copies_are_picked_together():
  features = np.array([[1.0, 0.9], [1.0, 0.9], [1.0, 0.0], [0.0, 1.0]])
  assert memory.closest_to_mean(features, 4).tolist()[:2] == [0, 1]
  for seed in range(3):
    assert memory.closest_to_mean(_random(seed), 1) == memory.herd(_random(seed), 1)
  # Herding balances a pick on one side by one on the other.
  lopsided = np.array([[1.0, 0.1], [1.0, 0.12], [1.0, -0.13], [0.9, 0.5], [0.9, -0.47]])
  assert memory.herd(lopsided, 3).tolist() != memory.closest_to_mean(lopsided, 3).tolist()


@pytest.mark.parametrize("rule", [memory.closest_to_mean, memory.highest_entropy,
                                  lambda values, m: memory.lowest_logit(values, 0, m)])
def test_every_rule_refuses_what_it_cannot_use(rule):
  with pytest.raises(ValueError, match="-1"):
    rule(_random(14), -1)
  with pytest.raises(ValueError, match="not finite .first: row 2"):
    rule(np.where(np.arange(12)[:, None] == 2, np.nan, _random(14)), 3)
  with pytest.raises(ValueError, match="shape"):
    rule(np.zeros(3), 1)
  assert rule(np.zeros((0, 4)), 3).tolist() == []


def test_quota():
  assert [memory.quota(seen, per_class=None, total=20) for seen in (0, 1, 3, 10, 20)] == [20, 20, 6, 2, 1]
  assert [memory.quota(seen, per_class=7, total=None) for seen in (0, 1, 30)] == [7, 7, 7]
  for both in ({"per_class": 2, "total": 20}, {"per_class": None, "total": None}):
    with pytest.raises(ValueError, match="exactly one"):
      memory.quota(3, **both)


@pytest.mark.parametrize("selection", memory.SELECTIONS)
def test_select_looks_at_each_class_by_itself(selection):
  """Rows of two classes out of a table of features; logits are a fixed product of them."""
  table, kernel = _random(15, 30, 5), _random(16, 5, 2)
  present = [np.array([4, 9, 2, 7]), np.array([21, 20, 29])]
  selected = memory.select(present, 3, selection, features=lambda rows: table[rows], logits=lambda part: part @ kernel,
                           seed=1, task=2)
  rules = {
      "herding": lambda rows, j: memory.herd(table[rows], 3),
      "closest_to_mean": lambda rows, j: memory.closest_to_mean(table[rows], 3),
      "entropy": lambda rows, j: memory.highest_entropy(table[rows] @ kernel, 3),
      "distance": lambda rows, j: memory.lowest_logit(table[rows] @ kernel, j, 3)}
  for j, (rows, kept) in enumerate(zip(present, selected)):
    assert kept.dtype == np.int32 and len(kept) == 3 and set(kept.tolist()) <= set(rows.tolist())
    if selection != "random":
      assert kept.tolist() == rows[rules[selection](rows, j)].tolist()
