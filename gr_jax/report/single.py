"""Pictures of one run: matrix, gradients beside counts, reports by epoch, norms, reliability, confusion, collapse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gr_jax import calibration
from gr_jax.report import style
from gr_jax.report.records import Run
from gr_jax.report.style import Picture
from gr_jax.report.tables import VARIANTS

# Values are written into a matrix of at most so many rows.
_WRITTEN = 10
# The picture that the page shows only when asked.
CONFUSION_OF_CLASSES = "confusion_classes"
# Names stand at an axis of at most so many classes.
_NAMED = 30


def pictures(run: Run, prefix: str) -> tuple[list[Picture], list[str]]:
  """The pictures of a run, and what is missing for others."""
  available, missing = [], []

  def add(name: str, title: str, caption: str, draw: Callable[[], Figure], reason: str | None) -> None:
    if reason is None:
      available.append(Picture(f"{prefix}{name}", title, caption, draw))
    else:
      missing.append(f"{title}: {reason}")

  unfinished = None if run.done else "no task is finished yet"
  unrecorded = unfinished or (None if run.done in run.arrays else "not recorded")
  losses, reports = run.parts()
  for key, title in (("accuracy_matrix", "Accuracy matrix"), ("accuracy_matrix_task_aware",
                                                              "Accuracy matrix, task known")):
    add(key, title, f"Accuracy (%) on the {run.evaluated} of each task (column) after each task (row).",
        lambda key=key: _matrix(100 * run.matrix(key), f"{run.evaluated} of task", "after task"), unfinished)
  add("gradients", "Gradient norms and class counts",
      "Above: training images of each class, in learning order. Below: norm of its cross-entropy gradient in the "
      "classifier, averaged over each task (figure 2 of the paper).", lambda: _gradients(run),
      unfinished or (None if run.after(1, "gradient_norms") else "this method does not record gradient norms"))
  add("losses", "Losses by epoch", "Mean over each epoch; vertical lines are the ends of tasks.",
      lambda: _by_epoch(run, losses), None if losses else "no epoch is finished yet")
  add("reports", "What the method reports, by epoch", "Mean over each epoch; vertical lines are the ends of tasks.",
      lambda: _by_epoch(run, reports), None if reports else "this method reports nothing")
  add("norms", "Classifier norms of old and new classes",
      "Norm of each class's column after each task; the lines are the means.", lambda: _norms(run), unfinished)
  add("reliability", "Reliability",
      f"Accuracy of the {run.evaluated} by their confidence, after the last finished task; on the diagonal they are "
      "equal. Bars: share of the images.", lambda: _reliability(run), unrecorded)
  add("confusion_tasks", "Confusion of tasks",
      f"Share (%) of the {run.evaluated} of each task (row) that are predicted as a class of each task (column), after "
      "the last finished task.", lambda: _matrix(_task_confusion(run), "predicted task", "task of the image"),
      unrecorded)
  add(CONFUSION_OF_CLASSES, "Confusion of classes",
      f"Share (%) of the {run.evaluated} of each class (row) that are predicted as each class (column), in learning "
      "order, after the last finished task.", lambda: _class_confusion(run), unrecorded)
  add("collapse", "Neural collapse of old and new classes",
      "0 is collapse; each set of classes as if it were all there are.", lambda: _collapse(run),
      unfinished or (None if run.after(run.done, "neural_collapse") else "not recorded"))
  return available, missing


def scenario(run: Run, prefix: str) -> list[Picture]:
  """Counts and exemplars of the classes."""
  if not run.scenario.get("counts"):
    return []
  return [Picture(f"{prefix}scenario", "Images of each class", "Training images in learning order, by task, and the "
                  "exemplars kept after the last finished task.", lambda: _counts(run))]


def _matrix(values: np.ndarray, across: str, down: str) -> Figure:
  """A heat map with a number from 0 to 100 in each known cell, tasks counted from 1."""
  count = len(values)
  made, (axes,) = style.figure(height=3.7)
  shown = axes.imshow(np.ma.masked_invalid(values), vmin=0, vmax=100, cmap="cividis", extent=(
      0.5, count + 0.5, count + 0.5, 0.5))
  if count <= _WRITTEN:
    for (row, column), value in np.ndenumerate(values):
      if np.isfinite(value):
        axes.text(column + 1, row + 1, f"{value:.0f}", ha="center", va="center", fontsize=9,
                  color="#1b1f24" if value > 55 else "white")
  axes.grid(False)
  axes.set(xlabel=across, ylabel=down)
  style.whole_numbers(axes)
  axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
  made.colorbar(shown, ax=axes, shrink=0.85)
  return made


def _gradients(run: Run) -> Figure:
  made, (above, below) = style.figure(2, 1, height=4.4)
  counts = np.asarray(run.scenario.get("counts") or [], float)
  above.bar(np.arange(1, len(counts) + 1), counts, color=style.colour(0), width=0.8)
  above.set(ylabel="images")
  if len(counts) and counts.max() > 20 * counts.min():
    above.set_yscale("log")
  for task in range(1, run.done + 1):
    norms = run.after(task, "gradient_norms") or []
    below.plot(np.arange(1, len(norms) + 1), norms, label=f"task {task}", **{
        **style.line_style(task - 1), "linestyle": "none" if len(norms) <= _NAMED else "-"})
  below.set(xlabel="class", ylabel="gradient norm")
  below.set_xlim(above.get_xlim())
  for axes in (above, below):
    style.whole_numbers(axes)
  _starts(run, above)
  _starts(run, below)
  if run.done <= 12:
    style.legend_below(made, below, columns=4)
  return made


def _starts(run: Run, axes: Axes) -> None:
  """Lines where a task's classes begin."""
  for task in run.scenario.get("tasks", [])[1:]:
    axes.axvline(task["classes"][0] + 0.5, color=axes.xaxis.label.get_color(), linewidth=0.7, linestyle=":")


def _by_epoch(run: Run, names: Sequence[str]) -> Figure:
  """A panel a name; epochs of all tasks and stages in a row."""
  columns = 2 if len(names) > 1 else 1
  rows = -(-len(names) // columns)
  made, panels = style.figure(rows, columns, height=max(style.SIZE[1], 1.75 * rows))
  ends = [place for place, (row, after) in enumerate(zip(run.epochs, run.epochs[1:]), start=1)
          if row.get("task") != after.get("task")]
  for axes, name in zip(panels, names):
    values = [row.get(name) for row in run.epochs]
    axes.plot(np.arange(1, len(values) + 1), [np.nan if value is None else value for value in values],
              color=style.colour(0), marker="o" if len(values) <= 30 else None, markersize=3)
    for end in ends:
      axes.axvline(end + 0.5, color=axes.xaxis.label.get_color(), linewidth=0.7, linestyle=":")
    axes.set_title(style.plain(name.replace("_", " ")))
    axes.set_xlabel("epoch")
    style.whole_numbers(axes, most=5)
  for axes in panels[len(names):]:
    axes.set_axis_off()
  return made


def _norms(run: Run) -> Figure:
  made, (axes,) = style.figure()
  starts = [task["classes"][0] for task in run.scenario.get("tasks", [])] or [0] * run.num_tasks
  for place, (name, cut) in enumerate((("old", slice(0, 1)), ("new", slice(1, 2)))):
    means = []
    for task in range(1, run.done + 1):
      norms = np.asarray(run.after(task, "classifier_norms") or [], float)
      part = np.split(norms, [starts[task - 1]])[cut][0]
      side = task + (place - 0.5) * 0.18
      axes.plot(np.full(len(part), side), part, linestyle="none", marker=style.MARKERS[place], markersize=3.5,
                alpha=0.45, color=style.colour(place))
      means.append(part.mean() if len(part) else np.nan)
    axes.plot(np.arange(1, run.done + 1) + (place - 0.5) * 0.18, means, label=f"{name} classes",
              **style.line_style(place))
  axes.set(xlabel="after task", ylabel="norm of the column")
  style.whole_numbers(axes)
  style.legend_below(made, axes)
  return made


def _reliability(run: Run) -> Figure:
  arrays = run.arrays[run.done]
  variants = [str(name) for name in arrays["variants"]]
  made, panels = style.figure(1, len(variants), height=2.1)
  for place, (axes, name) in enumerate(zip(panels, variants)):
    bins = arrays["reliability"][place, 0]
    images, confidence, correct = bins.T
    some = images > 0
    axes.bar((np.arange(len(bins)) + 0.5) / len(bins), images / max(images.sum(), 1), 1 / len(bins),
             color=axes.xaxis.label.get_color(), alpha=0.18, linewidth=0)
    axes.plot([0, 1], [0, 1], color=axes.xaxis.label.get_color(), linewidth=0.8, linestyle=":")
    axes.plot(confidence[some] / images[some], correct[some] / images[some], **style.line_style(place))
    error = calibration.expected_error(bins)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal",
             title=f"{VARIANTS.get(name, name)}\nECE " + ("–" if error is None else f"{100 * error:.1f} %"))
    axes.set_xticklabels(("0", ".5", "1"))
    axes.set_yticklabels(("0", ".5", "1") if place == 0 else ())
  panels[0].set_ylabel("accuracy")
  made.supxlabel("confidence", fontsize=10)
  return made


def _task_confusion(run: Run) -> np.ndarray:
  """[tasks done, tasks done] per cent of each row."""
  confusion = run.arrays[run.done]["confusion"].astype(float)
  task_of = np.zeros(len(confusion), int)
  for number, task in enumerate(run.scenario.get("tasks", [])):
    inside = [place for place in task["classes"] if place < len(task_of)]
    task_of[inside] = number
  member = (task_of[:, None] == np.arange(task_of.max() + 1)).astype(float)
  return _shares(member.T @ confusion @ member)


def _shares(counts: np.ndarray) -> np.ndarray:
  """Per cent of each row; NaN for a row without images."""
  totals = counts.sum(axis=1, keepdims=True)
  return 100 * np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)


def _class_confusion(run: Run) -> Figure:
  shares = _shares(run.arrays[run.done]["confusion"].astype(float))
  made, (axes,) = style.figure(height=4.4)
  shown = axes.imshow(np.ma.masked_invalid(shares), vmin=0, vmax=100, cmap="cividis", interpolation="nearest")
  axes.grid(False)
  names = [style.plain(name, 16) for name in run.scenario.get("class_names", [])[:len(shares)]]
  if len(names) == len(shares) <= _NAMED:
    size = 8.5 if len(names) <= 15 else 5.5
    axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(np.arange(len(names)), names, fontsize=size)
  axes.set(xlabel="predicted class", ylabel="class of the image")
  made.colorbar(shown, ax=axes, shrink=0.85)
  return made


def _collapse(run: Run) -> Figure:
  figures = {"NC1": ("nc1",), "NC2 (angle)": ("nc2", "means", "angle"), "NC3": ("nc3",), "NC4": ("nc4",)}
  made, panels = style.figure(2, 2, height=4.6)
  for axes, (name, keys) in zip(panels, figures.items()):
    for place, classes in enumerate(("old", "new", "many", "medium", "few")):
      values = [np.nan if value is None else value for value in run.series("neural_collapse", classes, *keys)]
      if np.isfinite(values).any():
        axes.plot(np.arange(1, len(values) + 1), values, label=classes, **style.line_style(place))
    axes.set(title=name, xlabel="after task")
    style.from_zero(axes)
    style.whole_numbers(axes)
  longest = max(panels, key=lambda axes: len(axes.get_lines()))
  style.legend_below(made, longest, columns=5)
  return made


def _counts(run: Run) -> Figure:
  counts = np.asarray(run.scenario["counts"], float)
  made, (axes,) = style.figure()
  for number, task in enumerate(run.scenario.get("tasks", [])):
    places = np.asarray(task["classes"])
    axes.bar(places + 1, counts[places], 0.8, color=style.colour(number), hatch=style.HATCHES[number % 6],
             edgecolor="white", linewidth=0)
  kept = run.after(run.done, "exemplars") or []
  if any(kept):
    axes.plot(np.arange(1, len(kept) + 1), kept, linestyle="none", marker="D", markersize=5.5, markeredgewidth=1.2,
              markeredgecolor="white", color="black", label="exemplars kept")
    style.legend_below(made, axes)
  if counts.max() > 20 * counts.min():
    axes.set_yscale("log")
  _starts(run, axes)
  names = [style.plain(name, 14) for name in run.scenario.get("class_names", [])]
  if len(names) == len(counts) <= _NAMED:
    axes.set_xticks(np.arange(1, len(names) + 1), names, rotation=90, fontsize=8)
  axes.set(xlabel="class, in learning order", ylabel="training images")
  return made
