"""Metrics of the epochs of a stage, read one call late so that the device never waits for the host."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gr_jax.runs import bar, journal
from gr_jax.scenario.plan import Chunk, StagePlan
from gr_jax.training.step import StepMetrics


class Diverged(FloatingPointError):
  """The loss is not finite."""


class Meter:
  """Sums metrics over an epoch, advances the bar, writes the epoch's row, and stops a run that diverges.

  A context manager. `add` takes the metrics of the call just dispatched and reads those of the previous call;
  `settle` reads the rest.
  """

  def __init__(self, plan: StagePlan, *, outlook: bar.Outlook, rates: Sequence[float], done: int,
               sums: dict[str, Any] | None, log: journal.Metrics, started: float):
    """Args:
      plan: of the stage.
      outlook: on the run, for the progress bar.
      rates: learning rate of each epoch.
      done: steps of the stage done by earlier starts of the run.
      sums: metrics of the interrupted epoch from an earlier start; see results.Progress.
      log: receives the rows.
      started: time.monotonic() at the start of the run, shifted back by the time of earlier starts.
    """
    self._plan, self._rates, self._log, self._started = plan, rates, log, started
    self._bar = bar.StageBar(plan, outlook, done=done)
    self._sums = None if sums is None else StepMetrics(
        **jax.tree.map(lambda part: np.asarray(part, np.float32), sums, is_leaf=lambda part: isinstance(part, tuple)))
    self._waiting: tuple[Chunk, StepMetrics] | None = None
    self.reports: dict[str, list[float]] = {}

  def __enter__(self) -> Meter:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._bar.close()

  @property
  def sums(self) -> dict[str, Any] | None:
    """Exact sums over the unfinished epoch, as results.Progress keeps them."""
    if self._sums is None:
      return None
    return jax.tree.map(lambda part: tuple(part.tolist()) if part.ndim else part.tolist(), self._sums._asdict())

  def add(self, chunk: Chunk, metrics: StepMetrics) -> None:
    """Takes the summed metrics of a chunk of steps, still on the device.

    Raises:
      Diverged: the loss of the previous chunk is not finite.
    """
    self.settle()
    self._waiting = (chunk, metrics)

  def settle(self) -> None:
    """Waits for the last chunk and reads it; raises as `add`."""
    if self._waiting is None:
      return
    chunk, metrics = self._waiting
    self._waiting = None
    part = jax.tree.map(np.asarray, jax.device_get(metrics))
    if not math.isfinite(part.loss):
      step = self._plan.first_step + chunk.epoch * self._plan.steps_per_epoch + chunk.first + int(part.steps)
      losses = ", ".join(f"{_spoken(name)} {value}" for name, value in part.losses.items())
      raise Diverged(
          f"the loss is not finite in task {self._plan.number + 1}, epoch {chunk.epoch + 1}, step {step} (sums over "
          f"the device call: {losses}; learning rate {self._rates[chunk.epoch]:g})")
    self._sums = part if self._sums is None else jax.tree.map(np.add, self._sums, part)
    self._bar.move(chunk.epoch, steps=int(part.steps), loss=float(self._sums.loss / self._sums.steps))
    if chunk.stop == self._plan.steps_per_epoch:
      self._finish_epoch(chunk.epoch, self._sums)

  def _finish_epoch(self, epoch: int, sums: StepMetrics) -> None:
    means = jax.tree.map(lambda total: (total / sums.steps).tolist(), sums)
    self._sums, plan = None, self._plan
    # Per-class reports: the epoch's row has the mean over seen classes, the task's row the last epoch's values.
    self.reports = {name: value for name, value in means.reports.items() if isinstance(value, list)}
    reports = {name: float(np.mean(value[:plan.task.stop])) if isinstance(value, list) else value
               for name, value in means.reports.items()}
    self._log.write(
        kind="epoch", task=plan.number + 1, epoch=epoch + 1, stage=plan.name,
        global_step=plan.first_step + (epoch + 1) * plan.steps_per_epoch, loss=means.loss, **means.losses,
        learning_rate=self._rates[epoch], **reports, seconds=time.monotonic() - self._started)


def _spoken(name: str) -> str:
  return name.replace("_", "-") if name == "cross_entropy" else name.replace("_", " ")
