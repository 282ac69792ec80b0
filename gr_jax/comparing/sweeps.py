"""Sweeps: a list of settings over several seeds, from a Python file."""

from __future__ import annotations

import importlib.util
import pathlib
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr_jax import config as configuration
from gr_jax import methods
from gr_jax.comparing.runner import Job
from gr_jax.comparing.tables import spread
from gr_jax.errors import UserError
from gr_jax.methods import addons
from gr_jax.methods.options import nearest
from gr_jax.runs import journal

# Written to a run's folder when its held-out images have been evaluated.
_HOLDOUT_FILE = "holdout.json"
# Keys that are the list's own.
_OF_THE_LIST = ("seed", "replicas")


class Sweep(NamedTuple):
  """A list of settings; get_sweep() of a sweep file returns these fields as a dict.

  Attributes:
    config: path of the config that all runs start from.
    seeds: values of `seed`; every row runs with each.
    rows: name of the row -> {config key: value}; the name is part of the folder name.
  """
  config: str
  seeds: Sequence[int]
  rows: Mapping[str, Mapping[str, Any]]


class Run(NamedTuple):
  """One run of a sweep."""
  row: str
  seed: int
  workdir: pathlib.Path
  flags: tuple[str, ...]

  @property
  def job(self) -> Job:
    return Job(f"{self.row} seed {self.seed}", self.workdir, "gr_jax.main", self.flags, (self.workdir,))


def load(path: str) -> Sweep:
  """Loads a sweep file.

  Raises:
    UserError: no such file, or no get_sweep() that returns the fields of `Sweep`.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f"--sweep is {path}, but there is no such file")
  spec = importlib.util.spec_from_file_location("sweep_file", path)
  if spec is None or spec.loader is None:
    raise UserError(f"--sweep is {path}; it must be a Python file, NAME.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_sweep"):
    raise UserError(f"{path} defines no get_sweep(); see configs/sweeps/digits_parts.py for an example")
  fields = module.get_sweep()
  if set(fields) != set(Sweep._fields):
    raise UserError(f"get_sweep() of {path} returns {sorted(fields)}; it must be {sorted(Sweep._fields)}")
  return Sweep(**fields)


def with_seeds(sweep: Sweep, seeds: Sequence[str]) -> Sweep:
  """The sweep with the seeds of the command line, if there are any; raises UserError for one that is no number."""
  if not all(seed.isdecimal() for seed in seeds):
    raise UserError(f"--seeds is {','.join(seeds)}; it takes numbers separated by commas, such as 0,1,2")
  return sweep._replace(seeds=[int(seed) for seed in seeds]) if seeds else sweep


def make_runs(sweep: Sweep, root: pathlib.Path, only: Sequence[str], settings: Sequence[str]) -> list[Run]:
  """Every row with every seed; seeds are the outer loop, so that an interrupted sweep has complete seeds.

  Raises:
    UserError: an unknown row or key, a value of the wrong type, a seed named twice, or a setting that is not KEY=VALUE.
  """
  unknown = [name for name in only if name not in sweep.rows]
  if unknown:
    raise UserError(f"--only has unknown rows: {', '.join(unknown)}; rows are {', '.join(sweep.rows)}")
  wrong = [setting for setting in settings if "=" not in setting]
  if wrong:
    raise UserError(f"--set is {wrong[0]!r}; it takes KEY=VALUE")
  if len(set(sweep.seeds)) < len(sweep.seeds):
    raise UserError(f"seeds are {', '.join(map(str, sweep.seeds))}; name each once: a run has one folder")
  _run_recipe(sweep.config)
  for row, changes in sweep.rows.items():
    for override in (*(f"{key}={value}" for key, value in changes.items()), *settings):
      _check_key(row, *override.split("=", 1))
  runs = []
  for seed in sweep.seeds:
    for row, changes in sweep.rows.items():
      if only and row not in only:
        continue
      workdir = root / f"{row}-s{seed}"
      overrides = [f"{key}={value}" for key, value in changes.items()]
      runs.append(Run(row, seed, workdir, (
          f"--config={sweep.config}", f"--workdir={workdir}",
          *[f"--config.{setting}" for setting in (*overrides, *settings, f"seed={seed}")])))
  return runs


def _run_recipe(path: str) -> None:
  """Calls get_config() of a recipe, which may register methods with options of their own."""
  if not pathlib.Path(path).is_file():
    # The runs say so.
    return
  before = list(sys.path)
  # As gr_jax.flags does, so that it can import others of its folder `configs`.
  sys.path.append(str(pathlib.Path(path).absolute().parent.parent))
  try:
    runpy.run_path(path)["get_config"]()
  finally:
    sys.path[:] = before


def _check_key(row: str, key: str, value: str) -> None:
  """Refuses a key that no run knows: else the last row would tell it after days. A run checks the rest at its start."""
  option = key.removeprefix(f"{configuration.OPTIONS}.")
  try:
    if key in _OF_THE_LIST:
      raise UserError(f"a list of runs sets {key} itself: it takes its seeds from `seeds` or --seeds, one run each; "
                      f"remove {key}={value}")
    if option == key:
      if key not in configuration.KEYS:
        raise configuration.unknown_key(key)
      configuration.parsed(key, value)
    elif option not in (known := _options()):
      raise UserError(f"no method or add-on has the option {key}{nearest(option, known, f'{configuration.OPTIONS}.')}")
  except UserError as error:
    raise UserError(f"row {row!r}: {error}") from error


def _options() -> tuple[str, ...]:
  """The options of all methods and add-ons."""
  return tuple(dict.fromkeys(name for method in methods.METHODS
                             for name in methods.options_of(method, tuple(addons.ADDONS))))


def evaluate_holdout(runs: Sequence[Run]) -> list[str]:
  """Writes holdout.json beside the results of finished runs with a hold-out, unless it has all tasks.

  Returns:
    A line for each run whose held-out images could not be evaluated.
  """
  failures = []
  for run in runs:
    file, results = run.workdir / _HOLDOUT_FILE, run.workdir / "results.json"
    if not results.exists() or not journal.read_json(run.workdir / "config.json")["validation_fraction"] > 0:
      continue
    if _held_out(run.workdir) is not None:
      continue
    # In a separate process: this one must not occupy a GPU.
    ended = subprocess.run([sys.executable, "-m", "gr_jax.evaluate", f"--workdir={run.workdir}",
                            f"--holdout_json={file}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                           check=False)
    if ended.returncode:
      said = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
      failures.append(f"{run.job.label}: its held-out images cannot be evaluated: {said[-1]}")
  return failures


def _held_out(folder: pathlib.Path) -> dict[str, Any] | None:
  """holdout.json of a finished run; None without one, or if the run has learned more tasks since."""
  path = folder / _HOLDOUT_FILE
  if not path.exists():
    return None
  content = journal.read_json(path, "holdout_accuracies")
  done = journal.read_json(folder / "results.json", "tasks_done")["tasks_done"]
  return content if len(content["holdout_accuracies"]) == done else None


def table(runs: Sequence[Run]) -> str:
  """A Markdown table: mean and standard deviation over the finished seeds, in per cent.

  The last columns are for held-out images, if they have been evaluated; the very last one is the mean over classes
  with its standard error, by which gr_jax.compare chooses (comparing.choice), each averaged over the seeds.
  """
  held = any((run.workdir / _HOLDOUT_FILE).exists() for run in runs)
  names = ["", "seeds", "average incremental", "last", "forgetting", "minutes a run",
           *(["held out: average", "held out: last", "held out: last, classes alike"] if held else [])]
  lines = [f"| {' | '.join(names)} |".replace("|  |", "| |"), "|---" * len(names) + "|"]
  for row in dict.fromkeys(run.row for run in runs):
    paths = [run.workdir / "results.json" for run in runs if run.row == row]
    finished = [journal.read_json(path) for path in paths if path.exists()]
    if not finished:
      lines.append(f"| {row} | 0 of {len(paths)} | not run {'| ' * (len(names) - 3)}|")
      continue
    cells = [spread([100 * r["average_incremental_accuracy"] for r in finished]),
             spread([100 * r["last_accuracy"] for r in finished]),
             spread([100 * lost for r in finished if (lost := r["forgetting"][r["tasks_done"] - 1]) is not None]),
             f"{np.mean([r['seconds'] for r in finished]) / 60:.1f}"]
    if held:
      numbers = [one for path in paths if path.exists() and (one := _held_out(path.parent)) is not None]
      # None while no class that has been seen has held-out images.
      accuracies = [[100 * value for value in one["holdout_accuracies"] if value is not None] for one in numbers]
      cells += [spread([float(np.mean(one)) for one in accuracies if one]),
                spread([one[-1] for one in accuracies if one]), _over_classes(numbers)]
    seeds = str(len(finished)) if len(finished) == len(paths) else f"{len(finished)} of {len(paths)}"
    lines.append(f"| {row} | {seeds} | {' | '.join(cells)} |")
  return "\n".join(lines)


def _over_classes(numbers: Sequence[dict[str, Any]]) -> str:
  # Files of an earlier version have none, nor has a hold-out with fewer than two classes.
  pairs = [(one["class_means"][-1], one["class_errors"][-1]) for one in numbers
           if one.get("class_means") and one["class_means"][-1] is not None]
  if not pairs:
    return "-"
  mean, error = (100 * float(np.mean(of_runs)) for of_runs in zip(*pairs))
  return f"{mean:.2f} ± {error:.2f}"
