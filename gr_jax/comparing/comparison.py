"""A comparison from its entries to its table: settings by hold-out, then runs on test images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from gr_jax import config as configuration
from gr_jax import files
from gr_jax.comparing import plan, probe, published, runner, tables
from gr_jax.comparing.entries import Entry, Setting, check_tune, settings
from gr_jax.comparing.plan import Run
from gr_jax.comparing.progress import Line
from gr_jax.comparing.tuning import choose_setting
from gr_jax.config import Config
from gr_jax.errors import UserError
from gr_jax.runs import journal

# Exit code of a run whose loss is not finite. A setting that diverges is an answer, not a failure.
_DIVERGED = 3


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What is compared.

  Attributes:
    config_file: that all runs start from.
    entries: the methods.
    seeds: runs of each method on test images.
    tune: KEY=VALUE,... each; see entries.settings.
    scenario_seeds: of the runs that choose settings.
    root: folder of all runs and the table.
    jobs_per_device: processes at a time on each GPU, or on the CPU.
  """
  config_file: pathlib.Path
  entries: Sequence[Entry]
  seeds: int
  tune: Sequence[str]
  scenario_seeds: Sequence[int]
  root: pathlib.Path
  jobs_per_device: int = 1


def check(comparison: Comparison) -> None:
  """Refuses bad requests and folders of other runs, before anything is trained; raises UserError."""
  config, seeds = comparison.entries[0].config, comparison.scenario_seeds
  for key, value in (("replicas", 1), ("distributed", "off"), ("evaluate_on", "test")):
    if getattr(config, key) != value:
      raise UserError(f"{key} is {getattr(config, key)!r}, but a comparison needs {value!r}; remove --config.{key}")
  if comparison.tune:
    if len(set(seeds)) < 2:
      raise UserError(f"--tune_scenario_seeds is {','.join(map(str, seeds))}; choosing settings takes two or more "
                      f"different ones, such as 1,2")
    if not config.validation_fraction:
      raise UserError("--tune chooses by held-out images, but validation_fraction is 0; set for example "
                      "--config.validation_fraction=0.1")
    if config.scenario.seed in seeds:
      raise UserError(f"--tune_scenario_seeds has {config.scenario.seed}, the scenario.seed of the comparison itself, "
                      f"whose runs would be trained twice; choose others")
    check_tune(comparison.entries, comparison.tune)
  tuning = _tuning(comparison)
  plan.check_folders(run for groups in tuning.values() for _, runs in groups for run in runs)
  plan.check_folders(_final(comparison, {entry.name: entry.config for entry in comparison.entries
                                         if not tuning[entry.name]}))


def compare(comparison: Comparison) -> tuple[str, list[str]]:
  """Runs what is missing and writes table.md, table.csv, table.tex and tuning.json.

  Returns:
    The Markdown table with its notes, and what failed, a line each.

  Raises:
    UserError: a config that its data set does not allow, or finished runs on other images, before anything is trained.
    Interrupted: see runner.leave_on_signals; every run has saved.
  """
  comparison.root.mkdir(parents=True, exist_ok=True)
  tuning = _tuning(comparison)
  first = [run for groups in tuning.values() for _, runs in groups for run in runs]
  # Settings are not chosen yet: the entries as they are stand for the final runs.
  expected = _final(comparison, {entry.name: entry.config for entry in comparison.entries})
  missing = {run.label: run.config for run in (*first, *expected) if run.results is None}
  finished = {run.label: (run.folder, run.config) for run in (*first, *expected) if run.results is not None}
  machine = probe.probe(missing, finished) if missing else probe.Report((), {}, True)
  line = Line([*first, *expected], machine.steps)
  failed = _run(comparison, plan.make_jobs(comparison.config_file, first, together=False), machine, line,
                answers=(_DIVERGED,))
  failures = list(failed.values())
  # The rest would be compared without them, and a rerun might choose otherwise than runs that are trained by then.
  unscored = {run.entry for run in first if run.label in failed}
  choices = {entry.name: choose_setting(entry.name, entry.config, tuning[entry.name]) for entry in comparison.entries
             if entry.name not in unscored}
  if comparison.tune:
    journal.write_json(comparison.root / "tuning.json", {name: one.record for name, one in choices.items()})
  final = _final(comparison, {name: one.config for name, one in choices.items() if one.config is not None})
  plan.check_folders(final)
  failures += _run(comparison, plan.make_jobs(
      comparison.config_file, final, together=_together(comparison, final, machine)), machine, line).values()
  failures += [f"{name}: no setting is chosen before the runs that failed are done; finished runs are kept. Rerun the "
               f"command, or leave the setting out" for name in sorted(unscored)]
  failures += [f"{name}: no setting could be scored, so it was not run" for name, one in choices.items()
               if one.config is None]
  rows = [tables.Row(entry.name, comparison.seeds,
                     [results for run in final if run.entry == entry.name and (results := run.results) is not None],
                     published.find(configuration.flatten(entry.config), entry.method, entry.addons)
                     if entry.plain else None) for entry in comparison.entries]
  notes = [*(one.note for one in choices.values() if one.note), *failures, *tables.notes(
      rows, configuration.flatten(comparison.entries[0].config))]
  text = "\n".join([tables.markdown(rows), "", *(f"- {note}" for note in notes)])
  for name, content in (("table.md", text + "\n"), ("table.csv", tables.comma_separated(rows)),
                        ("table.tex", tables.latex(rows) + "\n")):
    files.replace(comparison.root / name, content)
  return text, failures


def _tuning(comparison: Comparison) -> dict[str, list[tuple[Setting, list[Run]]]]:
  """For each entry its settings with the runs that score them; [] where --tune has nothing for its method."""
  return {entry.name: [(setting, plan.tuning_runs(entry, setting, comparison.scenario_seeds, comparison.root))
                       for setting in settings(entry, comparison.tune)] for entry in comparison.entries}


def _final(comparison: Comparison, configs: Mapping[str, Config]) -> list[Run]:
  """The runs on test images; seeds are the outer loop, so that an interrupted comparison has complete seeds."""
  of_entry = [plan.final_runs(entry, configs[entry.name], comparison.seeds, comparison.root)
              for entry in comparison.entries if entry.name in configs]
  return [runs[number] for number in range(comparison.seeds) for runs in of_entry]


def _together(comparison: Comparison, runs: Sequence[Run], machine: probe.Report) -> bool:
  """Whether an entry's seeds are replicas of one process: they share pictures and compiled programs.

  This saves time, unless it leaves GPUs, or shares of the CPU, without work because there are fewer entries. Replicas
  need pictures that stay on the device.
  """
  entries = {run.entry for run in runs if run.results is None}
  # A finished comparison was not probed, so its machine is not known.
  if not entries:
    return True
  return machine.resident and len(entries) >= len(runner.places(comparison.jobs_per_device, machine.platforms))


def _run(comparison: Comparison, jobs: Sequence[runner.Job], machine: probe.Report, line: Line,
         answers: Sequence[int] = ()) -> dict[str, str]:
  """Runs the jobs; returns a line for each that failed, by its label.

  Args:
    comparison, jobs, machine, line: of the comparison.
    answers: exit codes besides 0 that are no failure.
  """
  if not jobs:
    return {}
  failed = runner.run_all(jobs, runner.places(comparison.jobs_per_device, machine.platforms), line.look)
  return {job.label: f"{job.label}: failed with exit code {failed[job.label]}, see {job.log}" for job in jobs
          if failed.get(job.label, 0) not in (0, *answers)}
