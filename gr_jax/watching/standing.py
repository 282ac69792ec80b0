"""Where a run stands, from its files: they may be half written, of an earlier version, or damaged."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gr_jax.errors import UserError
from gr_jax.watching import lock, reading

# Depth to which runs are looked for: runs/<comparison>/tuning/<entry>/<setting>/<run>.
_DEPTH = 5
# Folder of a run that holds no run, and many files.
_CHECKPOINTS = "checkpoints"
# Epochs over which the speed is measured.
_RECENT = 5


class Stage(NamedTuple):
  """One stage of a task in the plan; `steps` in an epoch, `batch` images in a step. `name` is None in runs of an
  earlier version."""
  name: str | None
  epochs: int
  steps: int
  batch: int


_NO_STAGE = Stage(None, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Standing:
  """A run at this moment.

  Attributes:
    folder: of the run.
    state: "running", "finished", "stopped" (no process holds it: interrupted, killed, diverged), "not started",
      "unknown" (locks cannot be seen), or "damaged".
    process: that holds it, if known.
    note: what is damaged.
    task, num_tasks: the current task from 1, and how many this start is asked for.
    stage, epoch, epochs: finished epochs of the current stage, and how many it has.
    accuracy, average: after the last finished task, and the average incremental accuracy; fractions.
    rate: images a second.
    left: seconds to the end, as far as one can tell.
    checkpoint, checkpoint_age: global step of the last one, and its age in seconds.
    age: seconds since the last row.
  """
  folder: pathlib.Path
  state: str
  process: int | None = None
  note: str = ""
  task: int = 0
  num_tasks: int = 0
  stage: str | None = None
  epoch: int = 0
  epochs: int = 0
  accuracy: float | None = None
  average: float | None = None
  rate: float | None = None
  left: float | None = None
  checkpoint: int | None = None
  checkpoint_age: float | None = None
  age: float | None = None


def find(root: pathlib.Path) -> list[pathlib.Path]:
  """The folders of runs in a folder, itself included, sorted; replicas in place of the folder that holds them.

  Raises:
    UserError: there is none.
  """
  folders = list(_runs(root, _DEPTH))
  single = [path for path in folders if not any(path in other.parents for other in folders)]
  if not single:
    raise UserError(f"{root} holds no run (no config.json); pass the folder of a run, or one with runs in it")
  return sorted(single)


def _runs(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
  if (folder / "config.json").exists():
    yield folder
  try:
    inside = [path for path in folder.iterdir() if path.name != _CHECKPOINTS and path.is_dir()] if depth else []
  # It is no folder, is gone by now, or may not be read.
  except OSError:
    return
  for path in inside:
    yield from _runs(path, depth - 1)


def of(folder: pathlib.Path, *, now: float | None = None) -> Standing:
  """Where the run in a folder stands; raises nothing about its files.

  Args:
    folder: of the run.
    now: seconds since the epoch; None: the clock.
  """
  try:
    return _of(folder, time.time() if now is None else now)
  except UserError as error:
    return Standing(folder, "damaged", note=str(error))
  # Keys are missing or of another type.
  except (KeyError, TypeError, ValueError, IndexError) as error:
    return Standing(folder, "damaged", note=f"{folder}: {type(error).__name__}: {error}")


def _of(folder: pathlib.Path, now: float) -> Standing:
  config = reading.read_object(folder / "config.json")
  rows = reading.read_rows(folder / "metrics.jsonl")
  held = lock.state(_lock_of(folder))
  wanted = config.get("stop_after_task") or config["scenario"]["num_tasks"]
  plan = _plan(config, reading.read_object(folder / "scenario.json"))[:wanted]
  step, checkpoint_age = _checkpoint(folder / _CHECKPOINTS, now)
  base = Standing(folder, _state(folder, held, wanted, bool(rows) or step is not None), process=held.process,
                  num_tasks=wanted, checkpoint=step, checkpoint_age=checkpoint_age)
  if not rows:
    return dataclasses.replace(base, task=1, epochs=plan[0][0].epochs if plan else 0)
  age = max(0.0, now - (folder / "metrics.jsonl").stat().st_mtime)
  tasks = [row for row in rows if row["kind"] == "task"]
  seconds = _seconds_of_a_step(rows, plan)
  left = None if base.state == "finished" or seconds is None else _left(rows, plan, seconds)
  return dataclasses.replace(
      base, **_position(rows[-1], plan), age=age,
      accuracy=tasks[-1]["task_accuracies"] if tasks else None,
      average=tasks[-1]["average_incremental_accuracy"] if tasks else None,
      rate=_batch(rows, plan) / seconds if seconds else None,
      left=left if left is None or base.state != "running" else max(0.0, left - age))


def _lock_of(folder: pathlib.Path) -> pathlib.Path:
  """The lock of a run; replicas share that of the folder that holds them."""
  run_lock, shared = folder / ".lock", folder.parent / ".lock"
  return shared if not run_lock.exists() and shared.exists() else run_lock


def _state(folder: pathlib.Path, held: lock.Lock, wanted: int, begun: bool) -> str:
  if held.held:
    return "running"
  if reading.read_object(folder / "results.json").get("tasks_done", 0) >= wanted:
    return "finished"
  if held.held is None:
    return "unknown"
  return "stopped" if begun else "not started"


def _plan(config: dict[str, Any], scenario: dict[str, Any]) -> list[list[Stage]]:
  """The stages of each task; [] while the scenario is not written."""
  return [[Stage(stage["name"], stage["epochs"], stage["steps_per_epoch"],
                   stage.get("batch_size", config["batch_size"])) for stage in task["stages"]]
          if "stages" in task else [Stage(None, config["epochs"], task["steps_per_epoch"], config["batch_size"])]
          for task in scenario.get("tasks", [])]


def _checkpoint(folder: pathlib.Path, now: float) -> tuple[int | None, float | None]:
  """Global step of the newest checkpoint, and its age in seconds."""
  try:
    steps = {int(path.name): path.stat().st_mtime for path in folder.iterdir() if path.name.isdecimal()}
  # A checkpoint may be deleted meanwhile.
  except OSError:
    return None, None
  if not steps:
    return None, None
  return max(steps), max(0.0, now - steps[max(steps)])


def _position(row: dict[str, Any], plan: Sequence[Sequence[Stage]]) -> dict[str, Any]:
  """Standing's task, stage, epoch and epochs after a row."""
  if row["kind"] == "task":
    task = min(row["task"] + 1, len(plan) or row["task"])
    done = task == row["task"]
    stage = plan[task - 1][-1 if done else 0] if plan else _NO_STAGE
    return {"task": task, "stage": stage.name, "epoch": stage.epochs if done else 0, "epochs": stage.epochs}
  return {"task": row["task"], "stage": row.get("stage"), "epoch": row["epoch"],
          "epochs": _stage_of(row, plan).epochs}


def _stage_of(row: dict[str, Any], plan: Sequence[Sequence[Stage]]) -> Stage:
  """The stage of an epoch's row; without epochs if the plan has no such stage."""
  stages = plan[row["task"] - 1] if row["task"] <= len(plan) else []
  return next((stage for stage in stages if stage.name in (None, row.get("stage"))), _NO_STAGE)


def _batch(rows: Sequence[dict[str, Any]], plan: Sequence[Sequence[Stage]]) -> int:
  """Images of a step in the stage of the last epoch."""
  return _stage_of(next(row for row in reversed(rows) if row["kind"] == "epoch"), plan).batch


def _seconds_of_a_step(rows: Sequence[dict[str, Any]], plan: Sequence[Sequence[Stage]]) -> float | None:
  """The median over the latest epochs that followed another one of the same stage and start."""
  seconds = []
  epochs = [row for row in rows if row["kind"] == "epoch"]
  for before, row in zip(epochs, epochs[1:]):
    same = all(before.get(key) == row.get(key) for key in ("task", "stage", "start"))
    steps = _stage_of(row, plan).steps
    if same and row["epoch"] == before["epoch"] + 1 and steps:
      seconds.append((row["seconds"] - before["seconds"]) / steps)
  return statistics.median(seconds[-_RECENT:]) if seconds else None


def _left(rows: Sequence[dict[str, Any]], plan: Sequence[Sequence[Stage]], seconds: float) -> float:
  """Seconds after the last row: of its steps, and what the quickest finished task took besides its steps.

  Not the mean, since programs are compiled in the first tasks.
  """
  total = sum(stage.epochs * stage.steps for stages in plan for stage in stages)
  after, before = [], []
  for earlier, row in zip(rows, rows[1:]):
    passed = row["seconds"] - earlier["seconds"]
    if (earlier["kind"], row["kind"]) == ("epoch", "task"):
      after.append(passed)
    elif (earlier["kind"], row["kind"]) == ("task", "epoch"):
      before.append(max(0.0, passed - _stage_of(row, plan).steps * seconds))
  tasks = len(plan) - sum(row["kind"] == "task" for row in rows)
  # The first task with a teacher compiles its program.
  besides = min(after, default=0.0) + min(before[1:], default=0.0)
  return max(0, total - rows[-1]["global_step"]) * seconds + max(0, tasks) * besides
