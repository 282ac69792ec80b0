"""The runs of a comparison: which are done, and which processes run the others."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from gr_jax import config as configuration
from gr_jax.comparing.entries import Entry, Setting
from gr_jax.comparing.runner import Job
from gr_jax.config import Config
from gr_jax.errors import UserError
from gr_jax.runs import journal, replicas, workdir

# The command that trains.
_MAIN = "gr_jax.main"


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a comparison.

  Attributes:
    entry: the method, by name.
    label: for messages; unique.
    folder: of the run.
    config: with its seed.
  """
  entry: str
  label: str
  folder: pathlib.Path
  config: Config

  @property
  def results(self) -> dict[str, Any] | None:
    """The content of results.json if the run is finished, else None."""
    path = self.folder / "results.json"
    if not path.exists():
      return None
    content = journal.read_json(path, "tasks_done")
    wanted = self.config.stop_after_task or self.config.scenario.num_tasks
    return content if content["tasks_done"] >= wanted else None


def final_runs(entry: Entry, config: Config, seeds: int, root: pathlib.Path) -> list[Run]:
  """The runs of an entry that are evaluated on test images, one a seed; `config` has the chosen settings."""
  folder = root / "runs" / entry.folder
  members = [dataclasses.replace(config, seed=config.seed + number) for number in range(seeds)]
  return [Run(entry.name, f"{entry.name}, seed {member.seed}", replicas.member_folder(folder, config, number), member)
          for number, member in enumerate(members)]


def tuning_runs(entry: Entry, setting: Setting, scenario_seeds: Iterable[int], root: pathlib.Path) -> list[Run]:
  """The runs that score a setting on held-out images, one a scenario seed."""
  runs = []
  for seed in scenario_seeds:
    scenario = dataclasses.replace(setting.config.scenario, seed=seed)
    config = dataclasses.replace(setting.config, scenario=scenario, evaluate_on="holdout")
    runs.append(Run(entry.name, f"{entry.name}, tuning {setting.name}, scenario seed {seed}",
                    root / "tuning" / entry.folder / setting.folder / f"scenario-{seed}", config))
  return runs


def check_folders(runs: Iterable[Run]) -> None:
  """Refuses folders that hold runs of other configs; raises UserError."""
  for run in runs:
    if not (run.folder / "config.json").exists():
      continue
    saved, wanted = configuration.flatten(workdir.read_config(run.folder)), configuration.flatten(run.config)
    start = run.folder / workdir.START
    trained = journal.read_json(start, "precision")["precision"] if start.exists() else saved["precision"]
    # The run itself knows what "auto" stands for on its device, and refuses to go on in another precision; below the
    # table stands where finished runs differ.
    saved["precision"] = wanted["precision"] if "auto" in (trained, wanted["precision"]) else trained
    lines = configuration.difference(saved, wanted)
    if lines:
      raise UserError(f"{run.folder} holds a run with another config:\n  " + "\n  ".join(lines) +
                      "\nchoose another --workdir, or repeat the command of that comparison")


def make_jobs(config_file: pathlib.Path, runs: Sequence[Run], *, together: bool) -> list[Job]:
  """The processes for the runs that are not finished.

  Args:
    config_file: as on the command line.
    runs: of all entries.
    together: whether the seeds of an entry are replicas of one process.
  """
  missing = [run for run in runs if run.results is None]
  alone = lambda run: Job(run.label, run.folder, _MAIN, flags(config_file, run.config, run.folder),
                          (run.folder, run.folder.parent))
  if not together:
    return [alone(run) for run in missing]
  jobs = []
  for entry in dict.fromkeys(run.entry for run in missing):
    group = [run for run in missing if run.entry == entry]
    seeds, folder = [run.config.seed for run in group], group[0].folder.parent
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
      first = dataclasses.replace(group[0].config, replicas=len(seeds))
      jobs.append(Job(f"{entry}, seeds {seeds[0]} to {seeds[-1]}", folder, _MAIN,
                      flags(config_file, first, folder), (folder, *(run.folder for run in group))))
    else:
      jobs += map(alone, group)
  return jobs


def flags(config_file: pathlib.Path, config: Config, folder: pathlib.Path) -> tuple[str, ...]:
  """The flags of gr_jax.main for a config: every key, so that the file's own values do not matter."""
  values = configuration.flatten(config)
  # The method comes first: it decides which options there are.
  return (f"--config={config_file}", f"--workdir={folder}", f"--config.method={values.pop('method')}",
          *(f"--config.{key}={_text(value)}" for key, value in values.items()))


def _text(value: Any) -> str:
  if isinstance(value, tuple):
    return f"({','.join(map(str, value))}{',' if len(value) == 1 else ''})"
  return str(value)
