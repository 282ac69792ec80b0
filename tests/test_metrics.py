"""Accuracies, forgetting and transfer: by hand, against the oracle, and their properties."""

import json

import hypothesis
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st

from gr_jax import metrics

SETTINGS = hypothesis.settings(deadline=None, max_examples=40, derandomize=True)

# Three tasks of 2, 1 and 2 classes with unequal numbers of test images.
TASK_OF_CLASS = np.array([0, 0, 1, 2, 2])
TOTAL = np.array([10, 30, 20, 5, 15])
CORRECT = np.array([[10, 20, 0, 0, 0], [5, 5, 20, 0, 0], [8, 12, 4, 5, 10]])


def same(ours, theirs):
  """Equal up to rounding, None only where None."""
  if isinstance(theirs, list):
    assert isinstance(ours, list) and len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
      same(one, other)
  elif theirs is None:
    assert ours is None
  else:
    assert isinstance(ours, float)
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_by_hand():
  matrix = metrics.accuracy_matrix(CORRECT, TOTAL, TASK_OF_CLASS)
  same(matrix, [[0.75, None, None], [0.25, 1.0, None], [0.5, 0.2, 0.75]])
  same(metrics.task_accuracies(CORRECT, TOTAL, TASK_OF_CLASS), [30 / 40, 30 / 60, 39 / 80])
  same(metrics.task_mean_accuracies(matrix), [0.75, 0.625, 1.45 / 3])
  same(metrics.forgetting(matrix), [None, 0.5, (0.25 + 0.8) / 2])
  same(metrics.backward_transfer(matrix), [None, -0.5, (-0.25 - 0.8) / 2])


def test_forgetting_is_measured_from_the_best_and_transfer_from_the_first():
  matrix = [
    [0.2, None, None, None],
    [0.6, 0.5, None, None],
    [0.4, 0.9, 0.3, None],
    [0.5, 0.7, 0.8, 0.1],
  ]
  same(metrics.forgetting(matrix), [None, -0.4, (0.2 - 0.4) / 2, (0.1 + 0.2 - 0.5) / 3])
  same(metrics.backward_transfer(matrix), [None, 0.4, (0.2 + 0.4) / 2, (0.3 + 0.2 + 0.5) / 3])


@pytest.mark.parametrize("done", [0, 1, 2])
def test_tasks_that_are_not_done_are_none(done):
  matrix = metrics.accuracy_matrix(CORRECT[:done], TOTAL, TASK_OF_CLASS)
  same(matrix, oracle.accuracy_matrix(CORRECT[:done], TOTAL, TASK_OF_CLASS))
  assert matrix[done:] == [[None] * 3] * (3 - done)
  means = metrics.task_mean_accuracies(matrix)
  same(means, [[0.75, 0.625, None][t] if t < done else None for t in range(3)])
  accuracies = metrics.task_accuracies(CORRECT[:done], TOTAL, TASK_OF_CLASS)
  same(accuracies, oracle.task_accuracies(CORRECT[:done], TOTAL, TASK_OF_CLASS))
  same(metrics.forgetting(matrix), [None, 0.5 if done == 2 else None, None])
  same(metrics.backward_transfer(matrix), [None, -0.5 if done == 2 else None, None])


def test_correct_counts_of_classes_to_come_do_not_count():
  """A class of a later task may have been counted; the task is not learnt yet."""
  correct = CORRECT.copy()
  correct[0, 2:], correct[1, 3:] = 3, 4
  matrix = metrics.accuracy_matrix(correct, TOTAL, TASK_OF_CLASS)
  same(matrix, metrics.accuracy_matrix(CORRECT, TOTAL, TASK_OF_CLASS))
  accuracies = metrics.task_accuracies(correct, TOTAL, TASK_OF_CLASS)
  same(accuracies, metrics.task_accuracies(CORRECT, TOTAL, TASK_OF_CLASS))


def test_one_task():
  matrix = metrics.accuracy_matrix(np.array([[3, 4]]), np.array([5, 5]), np.array([0, 0]))
  same(matrix, [[0.7]])
  same(metrics.task_mean_accuracies(matrix), [0.7])
  same(metrics.forgetting(matrix), [None])
  same(metrics.backward_transfer(matrix), [None])


@st.composite
def _runs(draw):
  """(correct, total, task_of_class) of a run that may have stopped early."""
  sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
  task_of_class = np.repeat(np.arange(len(sizes)), sizes)
  task_of_class = task_of_class[draw(st.permutations(range(len(task_of_class))).map(list))]
  classes = len(task_of_class)
  total = draw(st.lists(st.integers(1, 40), min_size=classes, max_size=classes))
  row = st.tuples(*[st.integers(0, size) for size in total])
  done = draw(st.integers(0, len(sizes)))
  rows = draw(st.lists(row, min_size=done, max_size=done))
  correct = np.array(rows, np.int64).reshape(done, classes)
  return correct, np.array(total), task_of_class


@SETTINGS
@hypothesis.given(_runs())
def test_everything_agrees_with_the_oracle(run):
  matrix = oracle.accuracy_matrix(*run)
  same(metrics.accuracy_matrix(*run), matrix)
  same(metrics.task_accuracies(*run), oracle.task_accuracies(*run))
  same(metrics.forgetting(matrix), oracle.forgetting(matrix))
  same(metrics.backward_transfer(matrix), oracle.backward_transfer(matrix))


@SETTINGS
@hypothesis.given(_runs())
def test_results_are_plain_json(run):
  matrix = metrics.accuracy_matrix(*run)
  everything = [
    matrix,
    metrics.task_accuracies(*run),
    metrics.task_mean_accuracies(matrix),
    metrics.forgetting(matrix),
    metrics.backward_transfer(matrix),
    metrics.many_medium_few(run[1] - run[1] // 2, run[1], 7 * run[1]),
  ]
  assert json.loads(json.dumps(everything, allow_nan=False)) == everything


@SETTINGS
@hypothesis.given(_runs())
def test_transfer_never_exceeds_what_is_not_forgotten(run):
  """The best accuracy is at least the first one, hence BWT >= -forgetting."""
  matrix = metrics.accuracy_matrix(*run)
  for lost, moved in zip(metrics.forgetting(matrix), metrics.backward_transfer(matrix)):
    if lost is not None:
      assert moved >= -lost - 1e-12


def test_many_medium_few_by_hand():
  """The bounds: more than 100, 20 to 100, fewer than 20."""
  train = np.array([500, 101, 100, 50, 20, 19, 0])
  total = np.array([10, 30, 20, 20, 10, 40, 5])
  correct = np.array([9, 15, 10, 5, 1, 2, 1])
  result = metrics.many_medium_few(correct, total, train)
  assert result == {
    "many": {"accuracy": pytest.approx(24 / 40), "classes": 2, "images": 40},
    "medium": {"accuracy": pytest.approx(16 / 50), "classes": 3, "images": 50},
    "few": {"accuracy": pytest.approx(3 / 45), "classes": 2, "images": 45},
  }


@pytest.mark.parametrize(
  "train, groups",
  [
    ([200, 300], {"many"}),
    ([20, 100], {"medium"}),
    ([19, 1], {"few"}),
    ([101, 19], {"many", "few"}),
  ],
)
def test_many_medium_few_is_none_where_empty(train, groups):
  result = metrics.many_medium_few(np.array([1, 2]), np.array([4, 4]), np.array(train))
  assert set(result) == {"many", "medium", "few"}
  assert {name for name, group in result.items() if group is not None} == groups
