"""Runs as a report sees them: read from their files, without a lock; what is missing or damaged is noted."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr_jax import config as configuration
from gr_jax.errors import UserError
from gr_jax.runs import journal, results, workdir

# Of a row of an epoch, what is neither a loss nor a report of the method.
_BOOKKEEPING = ("kind", "task", "epoch", "stage", "global_step", "seconds", "start", "learning_rate", "loss")

# Keys of a config that do not make another experiment.
_NOT_COMPARED = ("seed", *configuration.FREE_KEYS)


@dataclasses.dataclass(frozen=True)
class Run:
  """A run, finished or not.

  Attributes:
    folder: of the run.
    config: flat, with the keys of this version.
    scenario: content of scenario.json; {} if it is not there yet.
    starts: date, versions, devices, processor and precision of each start, as far as recorded.
    epochs, tasks: the rows of metrics.jsonl, by kind, in order; the row of a task may come from results.json.
    arrays: task (from 1) -> evaluation.Evaluation.arrays.
    notes: what is missing or damaged, and why.
  """
  folder: pathlib.Path
  config: Mapping[str, Any]
  scenario: Mapping[str, Any]
  starts: tuple[Mapping[str, Any], ...]
  epochs: tuple[Mapping[str, Any], ...]
  tasks: tuple[Mapping[str, Any], ...]
  arrays: Mapping[int, Mapping[str, np.ndarray]]
  notes: tuple[str, ...] = ()

  @property
  def num_tasks(self) -> int:
    return int(self.config["scenario.num_tasks"])

  @property
  def done(self) -> int:
    """Finished tasks."""
    return len(self.tasks)

  @property
  def evaluated(self) -> str:
    """The images on which its accuracies were measured, in words."""
    return "held-out images" if self.config["evaluate_on"] == "holdout" else "test images"

  @property
  def setting(self) -> tuple[tuple[str, Any], ...]:
    """The config without the seed and what may change between two starts; equal for runs that differ in the seed."""
    return tuple(sorted((key, str(value)) for key, value in self.config.items() if key not in _NOT_COMPARED))

  def after(self, task: int, *keys: str) -> Any:
    """An entry of the row of a task (from 1), at a path of keys; None where it is missing."""
    value: Any = self.tasks[task - 1] if 0 < task <= self.done else None
    for key in keys:
      value = value.get(key) if isinstance(value, Mapping) else None
    return value

  def series(self, *keys: str) -> list[float | None]:
    """`after` for every task of the scenario."""
    return [self.after(task, *keys) for task in range(1, self.num_tasks + 1)]

  def matrix(self, key: str) -> np.ndarray:
    """[tasks, tasks] float, NaN where unknown; key "accuracy_matrix" or "accuracy_matrix_task_aware"."""
    accuracies = np.full((self.num_tasks, self.num_tasks), np.nan)
    for task in range(self.done):
      row = self.tasks[task].get(key) or []
      accuracies[task, :len(row)] = [np.nan if value is None else value for value in row]
    return accuracies

  def parts(self) -> tuple[list[str], list[str]]:
    """Names of the losses, and of what the method reports, in the rows of the epochs."""
    names = {name: None for row in self.epochs for name, value in row.items()
             if name not in _BOOKKEEPING and isinstance(value, (int, float))}
    # A method's reports follow the learning rate in a row, its losses precede it.
    losses = {name for row in self.epochs for name in list(row)[:list(row).index("learning_rate")]
              if "learning_rate" in row}
    return [name for name in names if name in losses], [name for name in names if name not in losses]


def folders_of(paths: Sequence[str | pathlib.Path]) -> list[pathlib.Path]:
  """The folders of the runs: those of the replicas for a run that has them.

  Raises:
    UserError: no path, a folder that holds no run, or the same run twice.
  """
  if not paths:
    raise UserError("no run; name one or more folders, as in: python -m gr_jax.report runs/a runs/b --out=report.html")
  folders: list[pathlib.Path] = []
  for path in paths:
    folder = workdir.locate(path)
    if not (folder / "config.json").is_file():
      inside = sorted(file.parent.name for file in folder.glob("*/config.json"))[:3]
      raise UserError(f"{folder} holds no run (no config.json)" + (
          f"; it has runs in it: {', '.join(inside)}, ...; name these" if inside else
          "; name the folder of a run, which is its --workdir"))
    replicas = sorted(file.parent for file in folder.glob("seed-*/config.json"))
    folders += replicas or [folder]
  # A link to a run, as `latest`, is the same run.
  resolved = [folder.resolve() for folder in folders]
  twice = [str(folder) for place, folder in enumerate(folders) if resolved[place] in resolved[:place]]
  if twice:
    raise UserError(f"{twice[0]} is named twice; name each run once")
  return folders


def read(folder: pathlib.Path) -> Run:
  """Reads a run; what cannot be read is noted, only the config must be there.

  Raises:
    UserError: the config cannot be read.
  """
  notes: list[str] = []
  config = configuration.flatten(workdir.read_config(folder))
  if not isinstance(config.get("scenario.num_tasks"), int) or not isinstance(config.get("method"), str):
    raise UserError(f"{folder / 'config.json'} has no method or scenario.num_tasks; restore the file")
  rows = _rows(folder / "metrics.jsonl", notes)
  summary = _object(folder / "results.json", notes)
  epochs = tuple(row for row in rows if row.get("kind") == "epoch")
  finished = [row for row in rows if row.get("kind") == "task"]
  recorded = {row["task"]: row for row in finished if isinstance(row.get("task"), int)}
  nameless = sum(not isinstance(row.get("task"), int) for row in finished)
  if nameless:
    notes.append(f"metrics.jsonl: {nameless} rows of a task do not say of which one and are left out")
  for row in _summarized(summary):
    recorded.setdefault(row["task"], row)
  # Rows of the tasks 1, 2, ... as far as there is no gap.
  tasks = []
  while len(tasks) + 1 in recorded:
    tasks.append(recorded[len(tasks) + 1])
  if len(tasks) < config["scenario.num_tasks"]:
    notes.append(f"{len(tasks)} of {config['scenario.num_tasks']} tasks are finished; the run is in progress or was "
                 f"interrupted")
  arrays = {}
  for task in range(1, len(tasks) + 1):
    task_arrays = _arrays(results.arrays_file(folder, task), notes)
    if task_arrays is not None:
      arrays[task] = task_arrays
  if tasks and not tasks[-1].get("calibration"):
    notes.append("calibration, confusion and neural collapse were not recorded, as in runs of earlier versions" + (
        "; --recompute computes them from checkpoints and data" if config["evaluate_on"] != "holdout" else ""))
  scenario, start = (_object(folder / name, notes) for name in ("scenario.json", workdir.START))
  return Run(folder, config, scenario, _starts(start or summary, notes), epochs, tuple(tasks), arrays, tuple(notes))


def _starts(content: Mapping[str, Any], notes: list[str]) -> tuple[Mapping[str, Any], ...]:
  """Of start.json, or of results.json where that is missing.

  Earlier versions recorded only the versions at the first start, beside the precision.
  """
  first, later = content.get("versions"), content.get("starts", [])
  starts = [*([content] if first is not None else []), *(later if isinstance(later, list) else [later])]
  if not all(isinstance(one, Mapping) and isinstance(one.get("versions"), Mapping) for one in starts):
    notes.append(f"{workdir.START} is damaged, so it is not known where the run ran")
    return ()
  return tuple({**one, "precision": content.get("precision")} for one in starts)


def _rows(path: pathlib.Path, notes: list[str]) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl that can be read."""
  try:
    lines = path.read_bytes().splitlines()
  except OSError as error:
    notes.append(f"{path.name} cannot be read ({error.strerror})")
    return []
  rows, bad = [], []
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(journal.parse_row(line))
    except ValueError:
      bad.append(number)
  # The last line may be being written.
  if bad and bad != [len(lines)]:
    notes.append(f"{path.name}: {len(bad)} lines cannot be read (first: {bad[0]}) and are left out")
  return rows


def _object(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
  """The content of a JSON file; {} if it is missing or damaged."""
  try:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
      raise ValueError("not a JSON object")
    return content
  except FileNotFoundError:
    # results.json is the last file of a run; runs of earlier versions have no start.json.
    if path.name not in ("results.json", workdir.START):
      notes.append(f"{path.name} is missing")
  except (OSError, ValueError) as error:
    notes.append(f"{path.name} cannot be read ({error})")
  return {}


def _summarized(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The tasks of results.json as rows, for a run whose metrics.jsonl is lost."""
  rows = []
  for task in range(1, int(summary.get("tasks_done") or 0) + 1):
    row = {name: values[task - 1] for name, values in summary.items()
           if isinstance(values, list) and len(values) >= task and name != "replicas"}
    last = {"many_medium_few": summary.get("many_medium_few")} if task == summary["tasks_done"] else {}
    rows.append({"kind": "task", "task": task, **row, **last})
  return rows


def _arrays(path: pathlib.Path, notes: list[str]) -> dict[str, np.ndarray] | None:
  try:
    # Opened here: numpy leaves a damaged file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
      return {name: content[name] for name in content.files}
  except FileNotFoundError:
    return None
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    notes.append(f"{path.parent.name}/{path.name} cannot be read ({type(error).__name__})")
    return None
