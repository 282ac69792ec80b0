"""The run on paper: contexts, sizes and steps of each stage of each task, and the rows that take part."""

import numpy as np
import pytest

from gr_jax import methods
from gr_jax.methods.base import Stage
from gr_jax.scenario import Task, plan

COUNTS = np.asarray([30, 3, 50, 8, 20])
TASKS = (Task(0, 2), Task(2, 4), Task(4, 5))


def plans(method="gr", options=(), **changes):
  chosen = methods.make(method, dict(options), memory=20)
  return plan.make_plans(COUNTS, TASKS, chosen, **{"epochs": 3, "batch_size": 16, "per_class": 5, **changes})


def contexts(*args, **changes):
  return [task.stages[0].context for task in plans(*args, **changes)]


def test_context_of_a_later_task():
  context = contexts()[1]
  assert context.task == 1
  np.testing.assert_array_equal(context.old, [1, 1, 0, 0, 0])
  np.testing.assert_array_equal(context.new, [0, 0, 1, 1, 0])
  np.testing.assert_array_equal(context.seen, [1, 1, 1, 1, 0])
  # n'_j: n_j for new classes, min(n_j, m) for old ones.
  np.testing.assert_array_equal(context.counts, [5, 3, 50, 8, 0])
  np.testing.assert_array_equal(context.lost, [25, 0, 0, 0, 0])
  # Not what is present: attenuation and distillation weight follow from these.
  np.testing.assert_array_equal(context.original, [30, 3, 50, 8, 0])
  np.testing.assert_array_equal(context.task_of_class, [0, 0, 1, 1, 2])


def test_first_task_has_no_old_class_and_lost_nothing():
  context = contexts()[0]
  assert not context.old.any() and not context.lost.any()
  np.testing.assert_array_equal(context.counts, [30, 3, 0, 0, 0])
  np.testing.assert_array_equal(context.original, context.counts)


def test_sizes_and_steps():
  tasks = plans()
  assert [p.size for p in tasks] == [33, 58 + 8, 20 + 5 + 3 + 5 + 5]
  assert [p.steps_per_epoch for p in tasks] == [3, 5, 3]
  assert [(p.first_step, p.stop_step) for p in tasks] == [(0, 9), (9, 24), (24, 33)]
  assert [(stage.name, stage.epochs) for task in tasks for stage in task.stages] == [("train", 3)] * 3


def test_no_memory_leaves_old_classes_out_of_the_prior():
  context = contexts(per_class=0)[2]
  np.testing.assert_array_equal(context.counts, [0, 0, 0, 0, 20])
  np.testing.assert_array_equal(context.lost, [30, 3, 50, 8, 0])
  np.testing.assert_array_equal(context.original, COUNTS)


def test_a_fixed_total_leaves_less_of_each_class_with_every_task():
  """13 exemplars: 6 of each of two old classes, then 3 of each of four; lost images and n' follow."""
  first, second, third = plans(per_class=None, total=13)
  np.testing.assert_array_equal(first.stages[0].context.counts, [30, 3, 0, 0, 0])
  np.testing.assert_array_equal(second.stages[0].context.counts, [6, 3, 50, 8, 0])
  np.testing.assert_array_equal(second.stages[0].context.lost, [24, 0, 0, 0, 0])
  np.testing.assert_array_equal(third.stages[0].context.counts, [3, 3, 3, 3, 20])
  np.testing.assert_array_equal(third.stages[0].context.lost, [27, 0, 47, 5, 0])
  np.testing.assert_array_equal(third.stages[0].context.original, COUNTS)
  assert [task.size for task in (first, second, third)] == [33, 67, 32]


def test_a_method_of_all_images_sees_all_of_them():
  for context, seen in zip(contexts("joint"), (2, 4, 5)):
    np.testing.assert_array_equal(context.counts, np.where(np.arange(5) < seen, COUNTS, 0))


def test_a_second_stage_of_later_tasks_on_held_out_images():
  """BiC at n_j of 3 and more: two images of each class leave before training, and count as exemplars."""
  tasks = plans("bic")
  held = methods.make("bic", {}, memory=20).held_out
  assert held == 2
  assert [[stage.index for stage in task.stages] for task in tasks] == [[0], [0, 1], [0, 1]]
  np.testing.assert_array_equal(tasks[1].stages[0].context.counts, [3, 1, 48, 6, 0])
  np.testing.assert_array_equal(tasks[1].stages[1].context.counts, [2, 2, 2, 2, 0])
  # A share of 1.25, rounded up: of three epochs four.
  assert [stage.epochs for stage in tasks[1].stages] == [3, 4]
  assert [stage.size for stage in tasks[1].stages] == [58, 8]
  # One stage after another, without a gap.
  steps = [(stage.first_step, stage.stop_step) for task in tasks for stage in task.stages]
  assert steps[0][0] == 0 and [first for first, _ in steps[1:]] == [stop for _, stop in steps[:-1]]
  for task in tasks:
    assert (task.first_step, task.stop_step) == (task.stages[0].first_step, task.stages[-1].stop_step)
    for stage in task.stages:
      assert stage.stop_step - stage.first_step == stage.epochs * stage.steps_per_epoch
      assert stage.steps_per_epoch == -(-stage.size // 16)


@pytest.mark.parametrize("share, epochs, expected", [(1.0, 160, 160), (1.25, 160, 200), (1.25, 3, 4), (0.1, 30, 3),
                                                     (0.1, 31, 4), (0.01, 3, 1)])
def test_epochs_of_a_stage(share, epochs, expected):
  assert Stage("some", {}, epochs_share=share).epochs(epochs) == expected


@pytest.mark.parametrize("rows", plan.ROWS)
@pytest.mark.parametrize("held_out", [0, 2])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_rows_are_as_many_as_the_context_counts(rows, held_out, number):
  """And held-out rows are in no other stage."""
  stage = Stage("some", {}, rows=rows)
  chosen = methods.make("gr", {}, memory=20)._replace(stages=(stage,), held_out=held_out)
  task = plan.make_plans(COUNTS, TASKS, chosen, epochs=1, batch_size=16, per_class=5)[number].stages[0]
  starts = np.cumsum(COUNTS) - COUNTS
  # Exemplars: the last ones of each class, as many as there is room for.
  exemplars = [np.arange(starts[j] + COUNTS[j] - max(min(5, COUNTS[j]) - held_out, 0), starts[j] + COUNTS[j])
               for j in range(task.task.stop)]
  rows_by_class = plan.rows_of(stage, task, COUNTS, exemplars, held_out, seed=0)
  np.testing.assert_array_equal([len(rows) for rows in rows_by_class], task.context.counts[:task.task.stop])
  for j, class_rows in enumerate(rows_by_class):
    assert all(starts[j] <= row < starts[j] + COUNTS[j] for row in class_rows)
    among_held_out = class_rows < starts[j] + held_out
    assert among_held_out.all() if rows == "held_out" else rows == "all" or not among_held_out.any()


def test_no_shape_depends_on_the_task():
  shapes = {tuple((np.shape(leaf), np.asarray(leaf).dtype) for leaf in stage.context)
            for task in plans("bic") for stage in task.stages}
  assert len(shapes) == 1


def test_chunks_cover_an_epoch_and_go_on_where_it_stopped():
  stage = plans()[1].stages[0]
  whole = list(plan.chunks(stage, steps_per_call=2))
  assert whole == [(epoch, first, stop) for epoch in range(3) for first, stop in ((0, 2), (2, 4), (4, 5))]
  assert list(plan.chunks(stage, steps_per_call=2, epoch=1, steps=4)) == whole[5:]


def balanced(method="eeil", **changes):
  """Plan and rows of the balanced stage of the second task; exemplars are the first ones of each old class."""
  settings = {"seed": 0, "per_class": 5, **changes}
  seed = settings.pop("seed")
  task = plans(method, **settings)[1]
  chosen, exemplars = methods.make(method, {}, memory=20), [np.arange(5), np.arange(30, 33)]
  return task, plan.rows_of(chosen.stages[1], task.stages[1], COUNTS, exemplars, 0, seed=seed)


def test_a_balanced_stage_has_equally_many_images_of_each_class():
  task, rows = balanced()
  # Class 1 has three images in all.
  np.testing.assert_array_equal(task.stages[1].context.counts, [5, 3, 5, 5, 0])
  assert [len(class_rows) for class_rows in rows] == [5, 3, 5, 5]
  # A quarter of the first stage's epochs, rounded up.
  assert [stage.epochs for stage in task.stages] == [3, 1]
  assert [stage.size for stage in task.stages] == [58 + 8, 18]
  # New images are drawn, each once, and another seed draws others.
  assert len(set(rows[2])) == 5 and set(rows[2]) <= set(range(33, 83))
  _, others = balanced(seed=1)
  assert rows[2].tolist() != others[2].tolist() and rows[0].tolist() == others[0].tolist()
  assert balanced()[1][2].tolist() == rows[2].tolist()


def test_stages_of_the_first_task_alone():
  for tasks, expected in (("all", [True] * 3), ("first", [True, False, False]), ("later", [False, True, True])):
    assert [Stage("some", {}, tasks=tasks).takes_part(task) for task in range(3)] == expected
