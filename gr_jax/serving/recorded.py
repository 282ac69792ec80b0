"""What a run recorded, for notebooks: its JSON files as Python values, numbers as NumPy arrays."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from gr_jax.errors import UserError
from gr_jax.watching import reading


@dataclasses.dataclass(frozen=True)
class Recorded:
  """The files of a run (docs/files.md); what is not written yet is empty.

  Attributes:
    folder: of the run.
    config, start, scenario: of the files of these names.
    results: of results.json, empty until the run has finished. Lists of numbers are int64 or float64 arrays, in which
      null is NaN.
    rows: of metrics.jsonl, in order, their lists as in `results`.
  """
  folder: pathlib.Path
  config: dict[str, Any]
  start: dict[str, Any]
  scenario: dict[str, Any]
  results: dict[str, Any]
  rows: tuple[dict[str, Any], ...]

  def columns(self, kind: str = "epoch") -> dict[str, np.ndarray]:
    """The rows of a kind, "epoch" or "task", by key: [rows] of numbers or strings; of objects where some are neither.
    """
    rows = [row for row in self.rows if row["kind"] == kind]
    return {key: _column([row.get(key) for row in rows]) for key in {key: None for row in rows for key in row}}

  def evaluation(self, task: int) -> dict[str, np.ndarray]:
    """The arrays of the evaluation after a task (from 1), by name: confusion matrix, reliability bins (docs/files.md).

    Raises:
      UserError: the task is not done, the run is of an earlier version, or the file cannot be read.
    """
    path = self.folder / "evaluation" / f"task_{task}.npz"
    try:
      with np.load(path) as file:
        return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
      raise UserError(f"{path} cannot be read ({error}); a file for each finished task is in {path.parent}") from error

  def frame(self, kind: str = "epoch") -> Any:
    """`columns` as a pandas.DataFrame.

    Raises:
      UserError: pandas is not installed.
    """
    if importlib.util.find_spec("pandas") is None:
      raise UserError("pandas is not installed; run: pip install pandas, or use columns(kind), which needs only NumPy")
    import pandas
    return pandas.DataFrame(self.columns(kind))


def load(workdir: str | os.PathLike) -> Recorded:
  """The files of a run, of one with replicas, or of an unfinished one; takes no lock.

  Raises:
    UserError: no run, or a file that cannot be read.
  """
  folder = pathlib.Path(workdir).expanduser().absolute()
  if not (folder / "config.json").is_file():
    raise UserError(f"{folder} holds no run (no config.json); pass the folder of a run")
  files = {name: reading.read_object(folder / f"{name}.json") for name in ("config", "start", "scenario", "results")}
  return Recorded(
      folder=folder, config=files["config"], start=files["start"], scenario=files["scenario"],
      results=_arrays(files["results"]), rows=tuple(map(_arrays, reading.read_rows(folder / "metrics.jsonl"))))


def _column(values: list[Any]) -> np.ndarray:
  for kind in ((int, float), str):
    if all(isinstance(value, kind) for value in values):
      return np.asarray(values)
  column = np.empty(len(values), object)
  for place, value in enumerate(values):
    column[place] = value
  return column


def _arrays(value: Any) -> Any:
  """Lists of numbers, and lists of equally long ones, as arrays, at any depth; null is NaN in them."""
  if isinstance(value, dict):
    return {key: _arrays(part) for key, part in value.items()}
  if not isinstance(value, list) or not value:
    return value
  lengths = {len(row) if isinstance(row, list) else None for row in value}
  numbers = [number for row in value for number in (row if isinstance(row, list) else [row])]
  if len(lengths) > 1 or not all(number is None or type(number) in (int, float) for number in numbers):
    return [_arrays(part) for part in value]
  return np.asarray(value, np.int64 if all(type(number) is int for number in numbers) else np.float64)
