"""The progress of a run on screen: loss, accuracy so far, images a second, and the time left of the whole run."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import tqdm

from gr_jax.devices import processes
from gr_jax.runs.console import percent
from gr_jax.scenario.plan import StagePlan
from gr_jax.watching.lines import clock


class Outlook(NamedTuple):
  """What is shown of the run besides the stage.

  Attributes:
    num_tasks: of the run.
    stop_step: global step at which this start of the run ends.
    accuracy: average incremental accuracy of the finished tasks; None before the first one.
  """
  num_tasks: int
  stop_step: int
  accuracy: float | None


class Interval:
  """Whether something that happens once in so many seconds is due."""

  def __init__(self, seconds: float):
    self._seconds, self._last = seconds, time.monotonic()

  def due(self) -> bool:
    now = time.monotonic()
    if now - self._last < self._seconds:
      return False
    self._last = now
    return True


# Without a terminal, such as in a batch system's log: one line a minute for all stages and replicas of the process.
_LINES = Interval(60.0)


class StageBar:
  """The progress of a stage: a bar in a terminal, else a line a minute. Only process 0 shows it."""

  def __init__(self, plan: StagePlan, outlook: Outlook, *, done: int):
    """Args:
      plan: of the stage.
      outlook: on the run.
      done: steps of the stage that are finished.
    """
    self._plan, self._outlook, self._steps = plan, outlook, done
    # Time and steps after the first call, which compiles.
    self._first: tuple[float, int] | None = None
    self._terminal = sys.stderr.isatty()
    self._bar = tqdm.tqdm(
        total=plan.epochs * plan.steps_per_epoch, initial=done, leave=False, dynamic_ncols=True,
        disable=not (processes.primary() and self._terminal), bar_format="{desc} {percentage:3.0f} %|{bar}|",
        desc=self._where(done // plan.steps_per_epoch))

  def move(self, epoch: int, *, steps: int, loss: float) -> None:
    """Advances by the steps of a call; `loss` is the mean of the epoch so far."""
    self._steps += steps
    line = f"{self._where(epoch)}: {self._text(loss)}"
    self._bar.set_description_str(line, refresh=False)
    self._bar.update(steps)
    if not self._terminal and processes.primary() and _LINES.due():
      print(line, file=sys.stderr, flush=True)

  def close(self) -> None:
    self._bar.close()

  def _where(self, epoch: int) -> str:
    plan = self._plan
    stage = "" if plan.index == 0 else f" {plan.name.replace('_', ' ')}"
    return f"task {plan.number + 1}/{self._outlook.num_tasks}{stage} epoch {epoch + 1}/{plan.epochs}"

  def _text(self, loss: float) -> str:
    parts, now = [f"loss {loss:.4f}"], time.monotonic()
    if self._outlook.accuracy is not None:
      parts.append(f"accuracy so far {percent(self._outlook.accuracy)} %")
    if self._first is None:
      self._first = now, self._steps
    elif now > self._first[0]:
      rate = (self._steps - self._first[1]) / (now - self._first[0])
      left = self._outlook.stop_step - self._plan.first_step - self._steps
      parts += [f"{rate * self._plan.batch_size:.0f} images/s", f"{clock(left / rate)} left"]
    return ", ".join(parts)
