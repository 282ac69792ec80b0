"""The run on paper: facts of each task, sizes, steps, learning rate."""

import math

import numpy as np
import pytest

from gr_jax.scenario import Task, plan

COUNTS = np.asarray([30, 3, 50, 8, 20])
TASKS = (Task(0, 2), Task(2, 4), Task(4, 5))


def plans(**changes):
  return plan.make_plans(COUNTS, TASKS, **{"epochs": 3, "batch_size": 16, "per_class": 5, "weight_scale": 0.7,
                                           "gamma": 1.0, **changes})


def test_facts_of_a_later_task():
  facts = plans()[1].facts
  np.testing.assert_array_equal(facts.old, [1, 1, 0, 0, 0])
  np.testing.assert_array_equal(facts.new, [0, 0, 1, 1, 0])
  # n'_j: n_j for new classes, min(n_j, m) for old ones.
  np.testing.assert_array_equal(facts.class_counts, [5, 3, 50, 8, 0])
  np.testing.assert_array_equal(facts.lost, [25, 0, 0, 0, 0])
  # From the original counts, not from what is present.
  assert facts.distillation_weight == pytest.approx(0.7 * math.sqrt(33 / 58), rel=1e-6)
  assert facts.attenuation == pytest.approx(math.exp(-33 / 91), rel=1e-6)


def test_first_task_has_no_distillation_and_no_attenuation():
  facts = plans()[0].facts
  assert facts.distillation_weight == 0 and facts.attenuation == 1 and not facts.old.any()


def test_gamma_and_weight_scale_are_used():
  facts = plans(gamma=0.0, weight_scale=1.4)[1].facts
  assert facts.attenuation == 1
  assert facts.distillation_weight == pytest.approx(1.4 * math.sqrt(33 / 58), rel=1e-6)


def test_sizes_and_steps():
  found = plans()
  assert [p.size for p in found] == [33, 58 + 8, 20 + 5 + 3 + 5 + 5]
  assert [p.steps_per_epoch for p in found] == [3, 5, 3]
  assert [(p.first_step, p.stop_step) for p in found] == [(0, 9), (9, 24), (24, 33)]


def test_no_memory_leaves_old_classes_out_of_the_prior():
  facts = plans(per_class=0)[2].facts
  np.testing.assert_array_equal(facts.class_counts, [0, 0, 0, 0, 20])
  np.testing.assert_array_equal(facts.lost, [30, 3, 50, 8, 0])


def test_no_shape_depends_on_the_task():
  shapes = {tuple((np.shape(leaf), np.asarray(leaf).dtype) for leaf in p.facts) for p in plans()}
  assert len(shapes) == 1


def test_learning_rate_drops_after_finished_epochs():
  rates = [plan.learning_rate(e, schedule="steps", base=0.1, epochs=6, milestones=(2, 4), decay=0.1) for e in range(6)]
  np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_learning_rate_follows_half_a_cosine():
  rates = [plan.learning_rate(e, schedule="cosine", base=0.2, epochs=6, milestones=(), decay=0.1) for e in range(7)]
  # cos 0, 60, 90, 120 and 180 degrees.
  np.testing.assert_allclose([rates[0], rates[2], rates[3], rates[4], rates[6]], [0.2, 0.15, 0.1, 0.05, 0], atol=1e-12)
  assert all(np.diff(rates) < 0)
