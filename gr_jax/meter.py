"""What the epochs of a task measure, read one call behind the device, so that it never waits for the host."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import numpy as np

from gr_jax import console, journal
from gr_jax.plan import TaskPlan
from gr_jax.step import StepMetrics


class Meter:
  """Sums metrics over an epoch, moves the bar, writes the epoch's row, and stops a run that diverges.

  A context manager. `add` takes the metrics of the call that has just been sent to the device, and reads those of
  the call before it; `settle` reads all that is left.
  """

  def __init__(self, plan: TaskPlan, *, num_tasks: int, epochs: int, done: int, batch_size: int,
               log: journal.Metrics, started: float):
    """Args:
      plan: of the task.
      num_tasks, epochs, batch_size: of the run.
      done: epochs of the task that an earlier start of the run has done.
      log: takes the rows.
      started: time.monotonic() at which the run, with all its earlier starts, began.
    """
    self._plan, self._num_tasks, self._epochs = plan, num_tasks, epochs
    self._batch_size, self._log, self._started = batch_size, log, started
    self._bar = console.task_bar(plan, num_tasks, epochs, done, batch_size)
    self._sums: StepMetrics | None = None
    self._waiting: tuple[Any, ...] | None = None
    self.alpha: list[float] = []

  def __enter__(self) -> Meter:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._bar.close()

  def add(self, epoch: int, stop: int, learning_rate: float, metrics: StepMetrics) -> None:
    """Takes the summed metrics, still on the device, of steps up to `stop` of an epoch (from 0).

    Raises:
      FloatingPointError: the loss of an epoch is not finite.
    """
    self.settle()
    self._waiting = (epoch, stop, learning_rate, metrics)

  def settle(self) -> None:
    """Waits for the last call and reads it; raises as `add`."""
    if self._waiting is None:
      return
    epoch, stop, learning_rate, metrics = self._waiting
    self._waiting = None
    part = jax.device_get(metrics)
    self._sums = part if self._sums is None else jax.tree.map(np.add, self._sums, part)
    console.move_bar(self._bar, self._plan, self._num_tasks, epoch, self._epochs,
                     images=int(part.steps) * self._batch_size,
                     loss=float((self._sums.cross_entropy + self._sums.distillation) / self._sums.steps))
    if stop == self._plan.steps_per_epoch:
      self._finish_epoch(epoch, learning_rate)

  def _finish_epoch(self, epoch: int, learning_rate: float) -> None:
    means = jax.tree.map(lambda total: (total / self._sums.steps).tolist(), self._sums)
    self._sums, self.alpha = None, means.alpha
    plan, loss = self._plan, means.cross_entropy + means.distillation
    step = plan.first_step + (epoch + 1) * plan.steps_per_epoch
    if not math.isfinite(loss):
      raise FloatingPointError(
          f"the loss is not finite in task {plan.number + 1}, epoch {epoch + 1}, before step {step} (cross-entropy "
          f"{means.cross_entropy}, distillation {means.distillation}; learning rate {learning_rate:g}); the last "
          f"checkpoint is kept: lower learning_rate, or look at the data")
    self._log.write(
        kind="epoch", task=plan.number + 1, epoch=epoch + 1, global_step=step, loss=loss,
        cross_entropy=means.cross_entropy, distillation=means.distillation, learning_rate=learning_rate,
        alpha=float(np.mean(means.alpha[:plan.task.stop])), r_old=means.r_old, r_new=means.r_new, beta=means.beta,
        seconds=time.monotonic() - self._started)
