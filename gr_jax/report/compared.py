"""Pictures that compare the settings of one scenario: means over seeds, with their standard deviation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gr_jax.report import style
from gr_jax.report.records import Run
from gr_jax.report.style import Picture
from gr_jax.report.tables import SHOTS, VARIANTS, Group, Measure, Setting, mean_of_tasks, task_aware

_BAND = "Mean over the seeds; the band, where there are several, is one standard deviation."
_BAR = "After the last finished task. Mean over the seeds; the line is one standard deviation."


def pictures(group: Group, prefix: str) -> list[Picture]:
  """The pictures of a group for which some run has numbers; `prefix` keeps the files of groups apart."""
  comparisons = [
      Picture(f"{prefix}accuracy", "Accuracy after each task",
              f"On the {group.evaluated} of all classes seen so far, without being told the task. {_BAND}",
              lambda: _lines(group, lambda run: run.series("task_accuracies"), "accuracy (%)", factor=100)),
      Picture(f"{prefix}forgetting", "Forgetting after each task",
              f"How far the accuracy on earlier tasks lies below its best so far. {_BAND}",
              lambda: _lines(group, lambda run: run.series("forgetting"), "forgetting (points)", factor=100)),
      Picture(f"{prefix}task_known", "Task unknown and task known",
              f"Mean of the tasks, with the prediction among all seen classes (task-agnostic) and among those of the "
              f"image's task (task-aware). {_BAR}",
              lambda: _bars(group, {"task-agnostic": _agnostic, "task-aware": task_aware}, "accuracy (%)")),
      Picture(f"{prefix}many_medium_few", "Many, medium and few",
              f"Accuracy on classes with more than 100, 20 to 100, and fewer than 20 training images. {_BAR}",
              lambda: _bars(group, {name: _entry("many_medium_few", name, "accuracy") for name in SHOTS},
                            "accuracy (%)"))]
  if any(run.after(run.done, "calibration") for run in group.runs):
    comparisons += [
        Picture(f"{prefix}ece", "Calibration error",
                f"ECE on the {group.evaluated}: as trained, and with one or two temperatures fitted on the hold-out "
                f"(two: old and new classes). {_BAR}",
                lambda: _bars(group, {label: _entry("calibration", name, "all", "ece")
                                      for name, label in VARIANTS.items()}, "ECE (%)")),
        Picture(f"{prefix}ece_by_task", "Calibration error after each task",
                f"ECE on the {group.evaluated} of all classes seen so far, as trained. {_BAND}",
                lambda: _lines(group, lambda run: run.series("calibration", "uncalibrated", "all", "ece"), "ECE (%)",
                               factor=100))]
  if any(run.after(run.done, "neural_collapse", "all") for run in group.runs):
    comparisons.append(Picture(
        f"{prefix}collapse", "Neural collapse after each task",
        f"Of the features of the {group.evaluated} of all classes seen so far; 0 is collapse. NC1: spread within "
        "classes; NC2: how far the class means are from equal angles; NC3: distance of classifier and class means; "
        "NC4: share of images that the nearest class mean classifies otherwise.", lambda: _collapse(group)))
  return comparisons


def _agnostic(run: Run, task: int) -> float | None:
  return mean_of_tasks(run, task, "accuracy_matrix")


def _entry(*keys: str) -> Measure:
  return lambda run, task: run.after(task, *keys)


def _lines(group: Group, of: Callable[[Run], Sequence[float | None]], label: str, *, factor: float = 1) -> Figure:
  made, (axes,) = style.figure()
  for place, setting in enumerate(group.settings):
    _line(axes, setting, place, of, factor)
  axes.set(xlabel="after task", ylabel=label)
  style.whole_numbers(axes)
  style.legend_below(made, axes)
  return made


def _line(axes: Axes, setting: Setting, place: int, of: Callable[[Run], Sequence[float | None]], factor: float) -> None:
  mean, spread, _ = setting.band(of)
  tasks, mean, spread = np.arange(1, len(mean) + 1), factor * mean, factor * spread
  axes.plot(tasks, mean, label=style.plain(setting.label), **style.line_style(place))
  if np.isfinite(spread).any():
    axes.fill_between(tasks, mean - spread, mean + spread, color=style.colour(place), alpha=0.2, linewidth=0)


def _bars(group: Group, parts: dict[str, Measure], label: str) -> Figure:
  """Horizontal bars: a block a setting, a bar a part."""
  count = len(group.settings)
  made, (axes,) = style.figure(height=max(style.SIZE[1], 1.4 + count * (0.2 * len(parts) + 0.15)))
  height = 0.8 / len(parts)
  for place, (name, of) in enumerate(parts.items()):
    bands = [setting.band(functools.partial(_one, of, setting.done)) for setting in group.settings]
    means, spreads = (100 * np.asarray([band[which][0] for band in bands]) for which in (0, 1))
    at = np.arange(count) + (place - (len(parts) - 1) / 2) * height
    axes.barh(at, np.nan_to_num(means), height, xerr=np.nan_to_num(spreads) if np.isfinite(spreads).any() else None,
              label=name, color=style.colour(place), hatch=style.HATCHES[place], edgecolor="white", linewidth=0,
              error_kw={"ecolor": axes.xaxis.label.get_color(), "elinewidth": 1.2})
    for where, mean in zip(at, means):
      if np.isnan(mean):
        axes.annotate(" missing", (0, where), va="center", fontsize=7.5)
  axes.set_yticks(np.arange(count), [style.plain(setting.label, 22) for setting in group.settings])
  axes.invert_yaxis()
  axes.grid(False, axis="y")
  axes.set(xlabel=label)
  axes.set_xlim(left=0)
  style.legend_below(made, axes, columns=3)
  return made


def _one(of: Measure, task: int, run: Run) -> list[float | None]:
  return [of(run, task)]


def _collapse(group: Group) -> Figure:
  figures = {"NC1": ("nc1",), "NC2 (angle)": ("nc2", "means", "angle"), "NC3": ("nc3",), "NC4": ("nc4",)}
  made, panels = style.figure(2, 2, height=4.6)
  for axes, (name, keys) in zip(panels, figures.items()):
    for place, setting in enumerate(group.settings):
      _line(axes, setting, place, lambda run, keys=keys: run.series("neural_collapse", "all", *keys), 1)
    axes.set(title=name, xlabel="after task")
    style.from_zero(axes)
    style.whole_numbers(axes)
  style.legend_below(made, panels[0])
  return made
