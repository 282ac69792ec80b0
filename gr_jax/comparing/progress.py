"""The progress line of a comparison: runs done, runs running, time spent and left."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence

from gr_jax.comparing.plan import Run
from gr_jax.errors import UserError
from gr_jax.watching import reading
from gr_jax.watching.lines import clock

# Seconds between two lines.
_INTERVAL = 30.0


class Line:
  """Prints the line from time to time."""

  def __init__(self, runs: Sequence[Run], steps: Mapping[str, int]):
    """Args:
      runs: of the comparison, finished ones included.
      steps: of each unfinished run, by label.
    """
    self._runs, self._steps, self._started = runs, steps, time.monotonic()
    self._at_start, self._next = self._shares(), 0.0

  def look(self) -> None:
    """Prints the line if the last one is long enough ago."""
    now = time.monotonic()
    if now >= self._next:
      self._next = now + _INTERVAL
      print(self.text(now - self._started), flush=True)

  def text(self, elapsed: float) -> str:
    """The line after so many seconds."""
    shares = self._shares()
    running = [f"{run.label}: {100 * share:.0f} %" for run, share in zip(self._runs, shares) if 0 < share < 1]
    costs = relative_costs([run.entry for run in self._runs], [
        None if (results := run.results) is None else results["seconds"] for run in self._runs])
    left = time_left(self._at_start, shares, costs, elapsed)
    return (f"comparison: {shares.count(1.0)} of {len(shares)} runs done"
            + (f", {len(running)} running ({', '.join(running)})" if running else "")
            + f"; {clock(elapsed)} spent, " + ("time left not known yet" if left is None else
                                                f"about {clock(left)} left"))

  def _shares(self) -> list[float]:
    return [1.0 if run.results is not None else min(_last_step(run.folder) / self._steps[run.label], 0.999)
            if run.label in self._steps else 0.0 for run in self._runs]


def relative_costs(entries: Sequence[str], seconds: Sequence[float | None]) -> list[float]:
  """What a run costs compared with others: the mean seconds of the finished runs of its entry.

  Args:
    entries: of each run.
    seconds: of each finished run, else None. An entry without a finished run costs the mean of all finished ones.
  """
  known: dict[str, list[float]] = {}
  for entry, one in zip(entries, seconds):
    if one is not None:
      known.setdefault(entry, []).append(one)
  usual = [one for of_entry in known.values() for one in of_entry] or [1.0]
  return [sum(of_entry) / len(of_entry) for of_entry in (known.get(entry, usual) for entry in entries)]


def time_left(before: Sequence[float], now: Sequence[float], costs: Sequence[float], elapsed: float) -> float | None:
  """Seconds until all runs are done, at the speed since the start; None if nothing has been done yet.

  Args:
    before, now: share of each run that was done at the start of this command and is done now.
    costs: of each whole run, in any unit.
    elapsed: seconds since the start.
  """
  done = sum(cost * (after - first) for first, after, cost in zip(before, now, costs))
  left = sum(cost * (1.0 - after) for after, cost in zip(now, costs))
  if not left:
    return 0.0
  return elapsed * left / done if done > 0 else None


def _last_step(folder: pathlib.Path) -> int:
  """The global step of the last row of metrics.jsonl; 0 if there is none."""
  try:
    rows = reading.read_rows(folder / "metrics.jsonl")
  except UserError:
    # The run itself refuses a damaged file, and is then reported.
    return 0
  return rows[-1]["global_step"] if rows else 0
