"""The draw: orders, profiles, splits, hold-out, stability against file order, and every refusal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax import scenario
from gr_jax.errors import UserError
from gr_jax.scenario import DatasetProperties, Task


def draw(per_class=(40,) * 6, **changes):
  """A small data set with per_class images of each class, and a scenario drawn from it."""
  labels = np.repeat(np.arange(len(per_class)), per_class)
  ids = [f"img{i:04d}" for i in range(len(labels))]
  arguments = {
      "labels": labels, "ids": ids, "class_names": [f"c{j}" for j in range(len(per_class))], "kind": "lt",
      "imbalance": 8.0, "num_tasks": 3, "first_task_classes": None, "order": "fixed", "seed": 0,
      "validation_fraction": 0.1, "properties": DatasetProperties(fixed_order=tuple(range(len(per_class)))), **changes}
  return scenario.make_scenario(**arguments), arguments


def drawn_ids(drawn, arguments):
  return [[arguments["ids"][row] for row in (*train, *held)]
          for train, held in zip(drawn.train, drawn.holdout)]


def test_icarl_order_is_a_permutation_that_begins_as_published():
  assert sorted(scenario.ICARL_ORDER) == list(range(100))
  assert scenario.ICARL_ORDER[:5] == (68, 56, 78, 8, 23) and scenario.ICARL_ORDER[-1] == 33


def test_holdout_is_a_tenth_of_the_draw_rounded_half_to_even():
  drawn, arguments = draw(per_class=(5, 15, 25, 35, 40, 4), kind="natural")
  # 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, 3.5 -> 4, 4, 0.4 -> 0
  assert [len(rows) for rows in drawn.holdout] == [0, 2, 2, 4, 4, 0]
  # From here on n_j counts what is left.
  assert drawn.counts.tolist() == [5, 13, 23, 31, 36, 4]
  for train, held in zip(drawn.train, drawn.holdout):
    assert not set(train) & set(held)
  assert all(arguments["labels"][list(rows)].tolist() == [label] * len(rows)
             for label, rows in zip(drawn.class_order, drawn.train))


def test_profiles_of_the_kinds():
  counts = scenario.long_tailed_counts(6, 40, 8.0)
  ordered, _ = draw(kind="ltio")
  assert ordered.profile == tuple(counts)
  shuffled, _ = draw(kind="lt")
  assert shuffled.profile != tuple(counts) and sorted(shuffled.profile) == sorted(counts)
  for kind in ("conv", "natural"):
    drawn, _ = draw(kind=kind, validation_fraction=0.0)
    assert drawn.profile is None and drawn.counts.tolist() == [40] * 6


def test_profile_by_label_gives_class_c_its_own_count():
  order = (3, 1, 5, 0, 2, 4)
  properties = DatasetProperties(fixed_order=order, fixed_order_ltio=tuple(range(6)), profile_by_label=True)
  counts = scenario.long_tailed_counts(6, 40, 8.0)
  drawn, _ = draw(properties=properties)
  assert drawn.class_order == order and drawn.profile == tuple(counts[list(order)])
  ordered, _ = draw(properties=properties, kind="ltio")
  assert ordered.class_order == tuple(range(6)) and ordered.profile == tuple(counts)
  # With a seeded order, position i of the order gets n_i.
  seeded, _ = draw(properties=properties, kind="ltio", order="seeded")
  assert seeded.class_order != tuple(range(6)) and seeded.profile == tuple(counts)


def test_max_count_of_the_catalogue():
  sizes = (30, 40, 40, 40, 40, 40)
  assert draw(sizes, kind="ltio", properties=DatasetProperties(tuple(range(6)), max_count="first"))[0].profile[0] == 30
  assert draw(sizes, kind="ltio", order="5,4,3,2,1,0")[0].profile[0] == 40
  assert draw(sizes, kind="ltio", properties=DatasetProperties(tuple(range(6)), max_count=20))[0].profile[0] == 20


def test_orders():
  assert draw(order="seeded", seed=1)[0].class_order == draw(order="seeded", seed=1)[0].class_order
  assert len({draw(order="seeded", seed=s)[0].class_order for s in range(5)}) > 1
  assert draw(order="5,4,3,2,1,0")[0].class_order == (5, 4, 3, 2, 1, 0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 100))
def test_draw_depends_on_ids_not_on_the_order_of_records(permutation_seed, seed):
  drawn, arguments = draw(seed=seed, order="seeded")
  shuffle = np.random.default_rng(permutation_seed).permutation(len(arguments["ids"]))
  again, changed = draw(seed=seed, order="seeded", labels=arguments["labels"][shuffle],
                        ids=[arguments["ids"][i] for i in shuffle])
  assert again.digest == drawn.digest
  assert drawn_ids(again, changed) == drawn_ids(drawn, arguments)


def test_digest_changes_with_seed_hold_out_and_split():
  digests = {draw(**changes)[0].digest for changes in (
      {}, {"seed": 1}, {"validation_fraction": 0.2}, {"num_tasks": 2}, {"imbalance": 7.0})}
  assert len(digests) == 5


def test_more_images_of_a_class_keep_the_smaller_draw():
  """A smaller n_i of one class is a prefix of a larger one: profiles differ by as little as they can."""
  small, a = draw(kind="ltio", imbalance=8.0, validation_fraction=0.0)
  large, b = draw(kind="ltio", imbalance=2.0, validation_fraction=0.0)
  assert all(set(s) <= set(l) for s, l in zip(drawn_ids(small, a), drawn_ids(large, b)))


@pytest.mark.parametrize("classes, tasks, first, sizes", [
    (10, 5, None, [2] * 5), (10, 3, None, [4, 3, 3]), (100, 6, 50, [50] + [10] * 5),
    (101, 6, 51, [51] + [10] * 5), (100, 11, 50, [50] + [5] * 10), (11, 4, 4, [4, 3, 2, 2]),
    (2, 2, None, [1, 1]), (3, 1, None, [3])])
def test_task_splits(classes, tasks, first, sizes):
  split = scenario.split_tasks(classes, tasks, first)
  assert [t.stop - t.first for t in split] == sizes
  assert [c for t in split for c in t.classes] == list(range(classes))


@pytest.mark.parametrize("classes, tasks, first, words", [
    (10, 11, None, "num_tasks is 11"), (10, 0, None, "num_tasks is 0"), (10, 3, 10, "10 of 10 classes"),
    (10, 3, 0, "first_task_classes is 0"), (10, 8, 4, "leaves 6 classes for 7"), (10, 1, 4, "leaves 6")])
def test_impossible_splits(classes, tasks, first, words):
  with pytest.raises(UserError, match=words):
    scenario.split_tasks(classes, tasks, first)


@pytest.mark.parametrize("changes, words", [
    ({"kind": "long"}, "kind is 'long'"),
    ({"imbalance": 0.5}, "imbalance is 0.5"),
    ({"imbalance": 100.0}, r"of 6 classes have no training image after the draw \("),
    ({"order": "0,1,2"}, "lists 3 classes"),
    ({"order": "0,1,2,3,4,4"}, "missing or unknown: \\[5\\]"),
    ({"order": "random"}, "order is 'random'"),
    ({"properties": DatasetProperties()}, "no fixed order"),
    ({"kind": "conv", "properties": DatasetProperties(tuple(range(6)), total=300)}, "300 training images, but .* 240"),
    ({"properties": DatasetProperties(tuple(range(6)), max_count=400)}, "needs .* only .* can be drawn"),
    ({"validation_fraction": 0.99}, "no training image")])
def test_scenarios_that_cannot_be_drawn(changes, words):
  with pytest.raises(UserError, match=words):
    draw(**changes)


def test_slightly_short_classes_are_capped_and_reported():
  drawn, _ = draw(per_class=(40, 40, 40, 40, 40, 39), properties=DatasetProperties(tuple(range(6)), max_count=40),
                  kind="ltio", imbalance=1.0, validation_fraction=0.0)
  assert drawn.capped == {5: (40, 39)}
  assert drawn.counts.tolist() == [40] * 5 + [39]


def test_task_of_class():
  drawn, _ = draw(num_tasks=3, first_task_classes=2)
  assert drawn.tasks == (Task(0, 2), Task(2, 4), Task(4, 6))
  np.testing.assert_array_equal(drawn.task_of_class, [0, 0, 1, 1, 2, 2])
