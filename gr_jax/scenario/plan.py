"""The plan of a run: rows and steps of every stage of every task, computed before training.

The plan depends only on the counts, so a resumed run has the plan of an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gr_jax import memory
from gr_jax.methods.base import Context, Method, Stage
from gr_jax.scenario.draw import Task

# Which images a stage uses. "present": exemplars of old classes and all images of new ones; "all": every image of every
# seen class; "new": those of new classes; "held_out": those that the method holds out; "balanced": exemplars of old
# classes and as many images of each new one, drawn by the seed; "exemplars": what the memory would keep of every class,
# chosen by the network at the start of the stage. Held-out images are used only with "held_out" and "all".
ROWS = ("present", "all", "new", "held_out", "balanced", "exemplars")

# Part of the seed of balanced rows, so that they are drawn apart from exemplars.
_BALANCED = 1


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """The plan of one stage of a task.

  Attributes:
    number: of the task, from 0.
    task: its classes.
    index, name: index of the stage in the method (from 0), and its name.
    context: for the train step, NumPy arrays.
    size: number of images used.
    batch_size: images of a step; more than the config's if the sampler adds some.
    epochs, steps_per_epoch: of the stage.
    first_step, stop_step: global steps before and after it.
  """
  number: int
  task: Task
  index: int
  name: str
  context: Context
  size: int
  batch_size: int
  epochs: int
  steps_per_epoch: int
  first_step: int
  stop_step: int


@dataclasses.dataclass(frozen=True)
class TaskPlan:
  """The plan of one task: its number (from 0), classes and stages."""
  number: int
  task: Task
  stages: tuple[StagePlan, ...]

  @property
  def first_step(self) -> int:
    return self.stages[0].first_step

  @property
  def stop_step(self) -> int:
    return self.stages[-1].stop_step

  @property
  def size(self) -> int:
    """Images of the largest stage."""
    return self._largest.size

  @property
  def steps_per_epoch(self) -> int:
    """Of the largest stage."""
    return self._largest.steps_per_epoch

  @property
  def _largest(self) -> StagePlan:
    return max(self.stages, key=lambda stage: stage.size)


class Chunk(NamedTuple):
  """Steps `first`..`stop`-1 of an epoch (from 0), which run in one device call."""
  epoch: int
  first: int
  stop: int


def chunks(plan: StagePlan, *, steps_per_call: int, epoch: int = 0, steps: int = 0) -> Iterator[Chunk]:
  """The chunks of a stage, in order.

  Args:
    plan: of the stage.
    steps_per_call: the largest number of steps in a chunk; an epoch's last chunk may be shorter.
    epoch, steps: finished epochs, and finished steps of the next one.
  """
  for number in range(epoch, plan.epochs):
    for first in range(steps if number == epoch else 0, plan.steps_per_epoch, steps_per_call):
      yield Chunk(number, first, min(first + steps_per_call, plan.steps_per_epoch))


def make_context(counts: np.ndarray, task: Task, number: int, *, per_class: int, rows: str = "present",
                 held_out: int = 0, task_of_class: np.ndarray | None = None) -> Context:
  """The context of a stage (docs/method.md sections 4 and 5).

  Args:
    counts: [classes] int, n_j, without the config's hold-out.
    task: its classes.
    number: of the task, from 0.
    per_class: m, exemplars per class.
    rows: see ROWS.
    held_out: images of each class that the method holds out; they count as exemplars.
    task_of_class: [classes] int; None: distinguish only old, new and later classes.

  Returns:
    Context of NumPy arrays.
  """
  classes = np.arange(len(counts))
  old, new = classes < task.first, (classes >= task.first) & (classes < task.stop)
  kept = np.minimum(counts, per_class)
  held = np.minimum(counts, held_out)
  remembered = kept - np.minimum(kept, held)
  of_every = np.where(old | new, remembered, 0)
  taking_part = {
      "present": np.where(new, counts - held, np.where(old, remembered, 0)),
      "all": np.where(old | new, counts, 0), "new": np.where(new, counts - held, 0),
      "held_out": np.where(old | new, held, 0), "balanced": of_every, "exemplars": of_every}[rows]
  if task_of_class is None:
    task_of_class = np.where(old, 0, np.where(new, number, number + 1))
  return Context(
      task=np.int32(number), old=old, new=new, counts=taking_part.astype(np.float32),
      original=np.where(old | new, counts, 0).astype(np.float32),
      lost=np.where(old, counts - kept, 0).astype(np.float32), task_of_class=task_of_class.astype(np.int32))


def make_plans(counts: np.ndarray, tasks: Sequence[Task], method: Method, *, epochs: int, batch_size: int,
               per_class: int | None, total: int | None = None) -> tuple[TaskPlan, ...]:
  """The plan of every task; arguments as for `make_context` and in the config.

  With `total`, a task's exemplars are those chosen after the task before: floor(total / old classes) of each. A stage
  on exemplars has as many as the memory keeps after the task.
  """
  task_of_class = np.repeat(np.arange(len(tasks)), [task.stop - task.first for task in tasks])
  plans, step = [], 0
  for number, task in enumerate(tasks):
    stages = []
    for index, stage in enumerate(method.stages):
      if not stage.takes_part(number):
        continue
      m = memory.quota(task.stop if stage.rows == "exemplars" else task.first, per_class=per_class, total=total)
      context = make_context(counts, task, number, per_class=m, rows=stage.rows, held_out=method.held_out,
                             task_of_class=task_of_class)
      size, length, sampler = int(context.counts.sum()), stage.epochs(epochs), stage.sampler
      steps_per_epoch = stage.steps or sampler.steps(context.counts, context.old, batch_size)
      stop = step + length * steps_per_epoch
      stages.append(StagePlan(number, task, index, stage.name, context, size, sampler.batch(batch_size), length,
                              steps_per_epoch, step, stop))
      step = stop
    plans.append(TaskPlan(number, task, tuple(stages)))
  return tuple(plans)


def rows_of(stage: Stage, plan: StagePlan, counts: np.ndarray, exemplars: Sequence[np.ndarray], held_out: int, *,
            seed: int) -> list[np.ndarray]:
  """The rows of the training data that a stage uses, for each seen class.

  Args:
    stage, plan: of the stage.
    counts: [classes] int; the data is sorted by class in learning order.
    exemplars: rows of each old class, without held-out rows; for a stage on exemplars, of each seen class.
    held_out: number of rows held out of each class, its first ones.
    seed: of the run, for balanced rows.
  """
  stops = np.cumsum(counts)
  every = [np.arange(stop - count, stop, dtype=np.int32) for stop, count in zip(stops, counts)][:plan.task.stop]
  old = range(plan.task.first)
  if stage.rows == "all":
    return every
  if stage.rows == "exemplars":
    return list(exemplars)
  if stage.rows == "held_out":
    return [rows[:held_out] for rows in every]
  fresh = [rows[held_out:] for rows in every[plan.task.first:]]
  if stage.rows == "balanced":
    fresh = [_drawn(rows, int(plan.context.counts[j]), (seed, plan.number, j, _BALANCED + plan.index))
             for j, rows in enumerate(fresh, plan.task.first)]
  return [*([every[0][:0]] * len(old) if stage.rows == "new" else [exemplars[j] for j in old]), *fresh]


def _drawn(rows: np.ndarray, count: int, seed: tuple[int, ...]) -> np.ndarray:
  """`count` of these rows, ascending."""
  return np.sort(np.random.default_rng(seed).permutation(rows)[:count])
