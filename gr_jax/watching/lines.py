"""Where runs stand, as text. Takes fractions and seconds, prints per cent and hours:minutes:seconds."""

from __future__ import annotations

from collections.abc import Sequence

from gr_jax.watching.standing import Standing


def lines(standings: Sequence[Standing]) -> str:
  """A few lines for one run, else a table with a line a run."""
  return _one(standings[0]) if len(standings) == 1 else _table(standings)


def _one(run: Standing) -> str:
  who = "" if run.process is None else f", process {run.process}"
  head = f"{run.folder}: {run.state}{who}"
  if run.state == "damaged":
    return f"{head}: {run.note}"
  stage = f" ({run.stage.replace('_', ' ')})" if run.stage else ""
  text = [head, f"  task {run.task} of {run.num_tasks}, {run.epoch} of {run.epochs} epochs done{stage}"]
  if run.accuracy is not None:
    text.append(f"  accuracy so far {_percent(run.accuracy)} %, average {_percent(run.average)} %")
  if run.rate is not None:
    text.append(f"  {run.rate:.0f} images/s" + (f", {clock(run.left)} left" if run.left is not None else ""))
  checkpoint = "none yet" if run.checkpoint is None else f"step {run.checkpoint}, {clock(run.checkpoint_age)} ago"
  text.append(f"  last checkpoint: {checkpoint}" +
              ("" if run.age is None else f"; last row of metrics.jsonl {clock(run.age)} ago"))
  return "\n".join(text)


def _table(standings: Sequence[Standing]) -> str:
  header = ("run", "state", "task", "epoch", "accuracy", "average", "images/s", "left", "checkpoint")
  rows = [header, *map(_cells, standings)]
  widths = [max(len(row[column]) for row in rows if len(row) == len(header)) for column in range(len(header))]
  text = []
  for row in rows:
    named = f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}"
    rest = row[2:] if len(row) < len(header) else [f"{cell:>{width}}" for cell, width in zip(row[2:], widths[2:])]
    text.append("  ".join([named, *rest]).rstrip())
  return "\n".join(text)


def _cells(run: Standing) -> tuple[str, ...]:
  if run.state == "damaged":
    return str(run.folder), run.state, run.note
  checkpoint = "-" if run.checkpoint is None else f"{run.checkpoint} ({clock(run.checkpoint_age)})"
  return (str(run.folder), run.state, f"{run.task}/{run.num_tasks}", f"{run.epoch}/{run.epochs}",
          _percent(run.accuracy), _percent(run.average), "-" if run.rate is None else f"{run.rate:.0f}",
          "-" if run.left is None else clock(run.left), checkpoint)


def _percent(value: float | None) -> str:
  return "-" if value is None else f"{100 * value:.2f}"


def clock(seconds: float | None) -> str:
  """Such as 0:07, 12:03 or 5:00:10."""
  if seconds is None:
    return "-"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
