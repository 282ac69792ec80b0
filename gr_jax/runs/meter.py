"""What the epochs of a task measure, read one call behind the device, so that it never waits for the host."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import numpy as np

from gr_jax.runs import console, journal
from gr_jax.scenario.plan import Call, TaskPlan
from gr_jax.training.step import StepMetrics


class Diverged(FloatingPointError):
  """The loss is not finite."""


class Meter:
  """Sums metrics over an epoch, moves the bar, writes the epoch's row, and stops a run that diverges.

  A context manager. `add` takes the metrics of the call that has just been sent to the device, and reads those of
  the call before it; `settle` reads all that is left.
  """

  def __init__(self, plan: TaskPlan, *, num_tasks: int, epochs: int, done: int, sums: tuple, batch_size: int,
               log: journal.Metrics, started: float):
    """Args:
      plan: of the task.
      num_tasks, epochs, batch_size: of the run.
      done: steps of the task that an earlier start of the run has done.
      sums: what an earlier start has measured of the epoch in which it was interrupted; see results.Progress.
      log: takes the rows.
      started: time.monotonic() at which the run, with all its earlier starts, began.
    """
    self._plan, self._num_tasks, self._epochs = plan, num_tasks, epochs
    self._batch_size, self._log, self._started = batch_size, log, started
    self._bar = console.task_bar(plan, num_tasks, epochs, done, batch_size)
    self._sums = StepMetrics(*(np.asarray(part, np.float32) for part in sums)) if sums else None
    self._waiting: tuple[Any, ...] | None = None
    self.alpha: list[float] = []

  def __enter__(self) -> Meter:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._bar.close()

  @property
  def sums(self) -> tuple:
    """What has been read of an epoch that is not finished, exact, as results.Progress keeps it."""
    freeze = lambda part: tuple(part) if isinstance(part, list) else part
    return () if self._sums is None else tuple(freeze(part.tolist()) for part in self._sums)

  def add(self, call: Call, learning_rate: float, metrics: StepMetrics) -> None:
    """Takes the summed metrics of a call, still on the device.

    Raises:
      Diverged: the loss of the call before it is not finite.
    """
    self.settle()
    self._waiting = (call, learning_rate, metrics)

  def settle(self) -> None:
    """Waits for the last call and reads it; raises as `add`."""
    if self._waiting is None:
      return
    call, learning_rate, metrics = self._waiting
    self._waiting = None
    part = jax.device_get(metrics)
    if not math.isfinite(part.cross_entropy + part.distillation):
      step = self._plan.first_step + call.epoch * self._plan.steps_per_epoch + call.first + int(part.steps)
      raise Diverged(
          f"the loss is not finite in task {self._plan.number + 1}, epoch {call.epoch + 1}, step {step} (cross-entropy "
          f"{part.cross_entropy}, distillation {part.distillation} summed over the call; learning rate "
          f"{learning_rate:g})")
    self._sums = part if self._sums is None else jax.tree.map(np.add, self._sums, part)
    console.move_bar(self._bar, self._plan, self._num_tasks, call.epoch, self._epochs,
                     images=int(part.steps) * self._batch_size,
                     loss=float((self._sums.cross_entropy + self._sums.distillation) / self._sums.steps))
    if call.stop == self._plan.steps_per_epoch:
      self._finish_epoch(call.epoch, learning_rate)

  def _finish_epoch(self, epoch: int, learning_rate: float) -> None:
    means = jax.tree.map(lambda total: (total / self._sums.steps).tolist(), self._sums)
    self._sums, self.alpha = None, means.alpha
    plan, loss = self._plan, means.cross_entropy + means.distillation
    step = plan.first_step + (epoch + 1) * plan.steps_per_epoch
    self._log.write(
        kind="epoch", task=plan.number + 1, epoch=epoch + 1, global_step=step, loss=loss,
        cross_entropy=means.cross_entropy, distillation=means.distillation, learning_rate=learning_rate,
        alpha=float(np.mean(means.alpha[:plan.task.stop])), r_old=means.r_old, r_new=means.r_new, beta=means.beta,
        seconds=time.monotonic() - self._started)
