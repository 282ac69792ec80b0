"""What a report compares: runs grouped by scenario and setting, and their numbers as rows of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gr_jax.report.records import Run

MISSING = "–"
SHOTS = ("many", "medium", "few")
# (run, task from 1) -> a fraction, None if unknown.
Measure = Callable[[Run, int], float | None]
# What is recorded of a start -> its head in the table.
_ORIGIN = {"date": "date", "commit": "commit", "python": "Python", "jaxlib": "jaxlib", "convolutions": "convolutions",
           "driver": "driver", "devices": "devices", "processor": "CPU", "precision": "precision"}
VARIANTS = {"uncalibrated": "T = 1", "one_temperature": "one T", "two_temperatures": "two T"}


@dataclasses.dataclass(frozen=True)
class Setting:
  """Runs that differ in the seed alone, in its order.

  Attributes:
    label: the method, and what else sets it apart from the other settings of the scenario.
    runs: at least one.
  """
  label: str
  runs: tuple[Run, ...]

  @property
  def done(self) -> int:
    """Tasks that every seed has finished."""
    return min(run.done for run in self.runs)

  def band(self, of: Callable[[Run], Sequence[float | None]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sample standard deviation over the seeds, and how many seeds are known, at each place; NaN for none."""
    values = np.asarray([[np.nan if value is None else value for value in of(run)] for run in self.runs], np.float64)
    known = np.isfinite(values).sum(axis=0)
    mean = np.divide(np.nansum(values, axis=0), known, out=np.full(known.shape, np.nan), where=known > 0)
    squares = np.nansum(np.square(values - mean), axis=0)
    spread = np.sqrt(np.divide(squares, known - 1, out=np.full(known.shape, np.nan), where=known > 1))
    return mean, spread, known


@dataclasses.dataclass(frozen=True)
class Group:
  """The settings that learn one scenario and were evaluated on the same images; only these are compared.

  Attributes:
    digest: of the scenario.
    title: the scenario and the evaluated images, in words.
    evaluated: Run.evaluated of all runs.
    settings: at least one.
  """
  digest: str
  title: str
  evaluated: str
  settings: tuple[Setting, ...]

  @property
  def runs(self) -> list[Run]:
    return [run for setting in self.settings for run in setting.runs]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of text; the first column names the row."""
  head: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]


def groups_of(runs: Sequence[Run]) -> list[Group]:
  """Runs by scenario and evaluated images, then by setting, in the order in which they were named."""
  comparable: dict[tuple[str, str], list[Run]] = {}
  for run in runs:
    digest = str(run.scenario.get("digest") or f"unknown: {run.folder}")
    comparable.setdefault((digest, run.evaluated), []).append(run)
  groups = []
  for (digest, evaluated), members in comparable.items():
    settings: dict[Any, list[Run]] = {}
    for run in members:
      settings.setdefault(run.setting, []).append(run)
    labels = _labels([same[0] for same in settings.values()])
    scenario = members[0].scenario
    known = f"{scenario.get('dataset', members[0].config.get('dataset'))}, {len(scenario.get('class_names', []))} " \
            f"classes in {members[0].num_tasks} tasks" if scenario else f"{members[0].folder.name}: no scenario yet"
    groups.append(Group(digest, f"{known}, accuracies on {evaluated}", evaluated, tuple(
        Setting(label, tuple(sorted(same, key=lambda run: run.config.get("seed", 0))))
        for label, same in zip(labels, settings.values()))))
  return groups


def _labels(firsts: Sequence[Run]) -> list[str]:
  """The method of each setting, and the keys in which settings of this method differ."""
  labels = []
  for run in firsts:
    others = [other for other in firsts if other.config["method"] == run.config["method"]]
    apart = [key for key, value in run.config.items()
             if key not in ("method", "seed") and any(str(other.config.get(key)) != str(value) for other in others)
             and dict(run.setting).get(key) is not None]
    labels.append(", ".join([str(run.config["method"]), *[f"{key}={run.config[key]}" for key in apart]]))
  # The same setting may stand in several places of one page only under different names.
  return [label if labels.count(label) == 1 else f"{label} ({name})" for label, name in zip(labels, _names(firsts))]


def _names(runs: Sequence[Run]) -> list[str]:
  """The folder of each run, with as many of the folders above it as tell them all apart: seed-0, or gr/seed-0."""
  parts = [run.folder.absolute().parts for run in runs]
  names: list[str] = []
  for count in range(1, max(map(len, parts), default=0) + 1):
    names = ["/".join(one[-count:]) for one in parts]
    if len(set(names)) == len(names):
      break
  return names


def summary(group: Group) -> Table:
  """A row a setting: means over the seeds of what the last finished task shows, in per cent."""
  head = ("setting", "seeds", "tasks", "average incremental", "last", "last, task known", "forgetting", *SHOTS,
          "ECE, T = 1", "ECE, one T", "ECE, two T")
  rows = []
  for setting in group.settings:
    rows.append((
        setting.label, ", ".join(str(run.config.get("seed")) for run in setting.runs),
        f"{setting.done} of {setting.runs[0].num_tasks}", percent(setting, _average),
        last(setting, "task_accuracies"), percent(setting, task_aware), last(setting, "forgetting"),
        *[last(setting, "many_medium_few", name, "accuracy") for name in SHOTS],
        *[last(setting, "calibration", variant, "all", "ece") for variant in VARIANTS]))
  return Table(head, tuple(rows))


def last(setting: Setting, *keys: str) -> str:
  """An entry of the row of the last task that all seeds have finished, in per cent."""
  return percent(setting, lambda run, task: run.after(task, *keys))


def percent(setting: Setting, of: Measure) -> str:
  """Mean and standard deviation over the seeds, after the last task that all have finished."""
  (mean,), (spread,), _ = setting.band(lambda run: [of(run, setting.done)])
  if np.isnan(mean):
    return MISSING
  return f"{100 * mean:.2f}" + ("" if np.isnan(spread) else f" ± {100 * spread:.2f}")


def mean_of_tasks(run: Run, task: int, key: str) -> float | None:
  """Mean of the row of an accuracy matrix after a task: tasks weigh the same."""
  row = run.matrix(key)[task - 1, :task] if task else np.zeros(0)
  return float(np.mean(row)) if len(row) and np.isfinite(row).all() else None


def task_aware(run: Run, task: int) -> float | None:
  """Mean over the tasks, with each image's task known."""
  return mean_of_tasks(run, task, "accuracy_matrix_task_aware")


def _average(run: Run, task: int) -> float | None:
  """Average incremental accuracy over the first tasks."""
  values = [value for value in run.series("task_accuracies")[:task] if value is not None]
  return float(np.mean(values)) if values else None


def calibration(run: Run) -> Table | None:
  """Figures of the last finished task, before and after, for each group of classes; None if not recorded."""
  recorded = run.after(run.done, "calibration")
  if not recorded:
    return None
  head = ("images", "temperature", "accuracy", "confidence", "ECE", "adaptive", "class-wise", "over", "under", "NLL",
          "Brier")
  rows = []
  for variant, name in VARIANTS.items():
    for group, one in (recorded.get(variant) or {}).items():
      if one:
        shares = [f"{100 * one[key]:.2f}" for key in (
            "accuracy", "confidence", "ece", "adaptive_ece", "classwise_ece", "over_confidence", "under_confidence")]
        rows.append((group, _temperature(name, recorded.get("temperatures")), *shares, f"{one['nll']:.3f}",
                     f"{one['brier']:.3f}"))
  return Table(head, tuple(rows))


def _temperature(name: str, fitted: dict[str, Any] | None) -> str:
  if fitted is None or name == VARIANTS["uncalibrated"]:
    return "1"
  if name == VARIANTS["one_temperature"]:
    return f"{fitted['one']:.3g}"
  return ", ".join(f"{part} {fitted[part]:.3g}" for part in ("old", "new") if fitted[part] is not None)


def collapse(run: Run) -> Table | None:
  """Neural collapse after the last finished task, for each group of classes; None if not recorded."""
  by_group = run.after(run.done, "neural_collapse")
  if not by_group:
    return None
  head = ("classes", "NC1", "NC2 norms", "NC2 cosines", "NC2 angle", "NC2 norms, classifier",
          "NC2 cosines, classifier", "NC2 angle, classifier", "NC3", "NC4")
  rows = [(group, *[_number(value) for value in (
      one["nc1"], *one["nc2"]["means"].values(), *one["nc2"]["classifier"].values(), one["nc3"], one["nc4"])])
          for group, one in by_group.items() if one]
  return Table(head, tuple(rows))


def _number(value: float | None) -> str:
  return MISSING if value is None else f"{value:.3g}"


def scenario(group: Group) -> Table | None:
  """Classes in learning order with their images and exemplars; None if the scenario is not known."""
  run = max(group.runs, key=lambda run: run.done)
  if not run.scenario.get("tasks"):
    return None
  drawn, kept = run.scenario, run.after(run.done, "exemplars") or []
  task_of = {place: number for number, task in enumerate(drawn["tasks"], start=1) for place in task["classes"]}
  rows = [(name, str(task_of.get(place, MISSING)), str(drawn["counts"][place]), str(drawn["holdout_counts"][place]),
           str(kept[place]) if place < len(kept) else MISSING) for place, name in enumerate(drawn["class_names"])]
  return Table(("class", "task", "images", "held out", "exemplars"), tuple(rows))


def differences(group: Group) -> Table:
  """Keys of the config in which runs of a group differ, a column a run."""
  keys = {key: None for run in group.runs for key in run.config}
  apart = [key for key in keys if len({str(run.config.get(key)) for run in group.runs}) > 1]
  return Table(("key", *_names(group.runs)), tuple(
      (key, *[str(run.config.get(key)) for run in group.runs]) for key in apart))


def config(run: Run) -> Table:
  return Table(("key", "value"), tuple((key, str(value)) for key, value in sorted(run.config.items())))


def origins(setting: Setting) -> Table | None:
  """Date, versions and machine of the starts of each run, as far as recorded; None if nothing is."""
  rows = []
  for name, run in zip(_names(setting.runs), setting.runs):
    for start in run.starts:
      recorded = {**start, **start["versions"]}
      rows.append((name, *[str(recorded.get(key) or MISSING) for key in _ORIGIN]))
  return Table(("run", *_ORIGIN.values()), tuple(rows)) if rows else None
