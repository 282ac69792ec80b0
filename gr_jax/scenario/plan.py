"""The whole run on paper: for every task its facts, its size and its steps, before anything is trained.

Everything here follows from the counts, so the plan of a resumed run is that of an unbroken one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gr_jax import losses, reweighting
from gr_jax.methods.base import TaskFacts
from gr_jax.scenario import Task

SCHEDULES = ("steps", "cosine")


@dataclasses.dataclass(frozen=True)
class TaskPlan:
  """One task on paper.

  Attributes:
    number: from 0.
    task: its classes.
    facts: for the train step, NumPy arrays.
    size: images present, exemplars included.
    steps_per_epoch: steps of one epoch.
    first_step, stop_step: global steps before and after the task.
  """
  number: int
  task: Task
  facts: TaskFacts
  size: int
  steps_per_epoch: int
  first_step: int
  stop_step: int


class Call(NamedTuple):
  """Steps `first`..`stop`-1 of an epoch (from 0), which go to the device in one call."""
  epoch: int
  first: int
  stop: int


def calls(plan: TaskPlan, *, epochs: int, steps_per_call: int, epoch: int = 0, steps: int = 0) -> Iterator[Call]:
  """The calls of a task, in order.

  Args:
    plan: of the task.
    epochs: of the task.
    steps_per_call: the most steps of a call; an epoch's last one may be shorter.
    epoch, steps: epochs that are done, and steps of the next one.
  """
  for number in range(epoch, epochs):
    for first in range(steps if number == epoch else 0, plan.steps_per_epoch, steps_per_call):
      yield Call(number, first, min(first + steps_per_call, plan.steps_per_epoch))


def task_facts(counts: np.ndarray, task: Task, number: int, *, per_class: int, weight_scale: float,
               gamma: float) -> TaskFacts:
  """The facts of one task (METHOD.md sections 4 and 5).

  Args:
    counts: [classes] int, n_j, hold-out excluded.
    task: its classes.
    number: of the task, from 0.
    per_class: m, exemplars a class.
    weight_scale: 0.7 in w_kd = 0.7 sqrt(N_old / N_new).
    gamma: of the attenuation.

  Returns:
    TaskFacts of NumPy arrays.
  """
  classes = np.arange(len(counts))
  old, new = classes < task.first, (classes >= task.first) & (classes < task.stop)
  kept = np.minimum(counts, per_class)
  n_old, n_new = int(counts[old].sum()), int(counts[new].sum())
  return TaskFacts(
      task=np.int32(number), old=old, new=new,
      class_counts=np.where(new, counts, np.where(old, kept, 0)).astype(np.float32),
      lost=np.where(old, counts - kept, 0).astype(np.float32),
      attenuation=np.asarray(reweighting.attenuation(n_old, n_new, gamma)),
      distillation_weight=np.asarray(losses.distillation_weight(n_old, n_new, weight_scale)))


def make_plans(counts: np.ndarray, tasks: Sequence[Task], *, epochs: int, batch_size: int, per_class: int,
               weight_scale: float, gamma: float) -> tuple[TaskPlan, ...]:
  """The plan of every task; arguments as in `task_facts` and the config."""
  plans, step = [], 0
  for number, task in enumerate(tasks):
    facts = task_facts(counts, task, number, per_class=per_class, weight_scale=weight_scale, gamma=gamma)
    size = int(facts.class_counts.sum())
    steps_per_epoch = -(-size // batch_size)
    stop = step + epochs * steps_per_epoch
    plans.append(TaskPlan(number, task, facts, size, steps_per_epoch, step, stop))
    step = stop
  return tuple(plans)


def learning_rate(epoch: int, *, schedule: str, base: float, epochs: int, milestones: Sequence[int],
                  decay: float) -> float:
  """The rate in an epoch (from 0) of a task.

  "steps": base times decay for each milestone of finished epochs (METHOD.md section 6). "cosine": from base down half
  a cosine, that would reach 0 after the last of `epochs`.
  """
  if schedule == "cosine":
    return base * (1 + math.cos(math.pi * epoch / epochs)) / 2
  return base * decay ** sum(epoch >= milestone for milestone in milestones)
