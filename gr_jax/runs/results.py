"""Progress and results of a run: the content of results.json and of the task rows in metrics.jsonl."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr_jax import metrics, origin
from gr_jax.devices import processor
from gr_jax.runs.footprint import footprint
from gr_jax.scenario.plan import TaskPlan
from gr_jax.training.evaluation import Evaluation
from gr_jax.training.experiment import Experiment
from gr_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run has come; with a checkpoint's arrays, everything that the rest of the run depends on.

  Attributes:
    task: finished tasks; also the number (from 0) of the current task.
    stage: finished stages of the current task (in its plan).
    epoch: finished epochs of the current stage.
    steps: finished steps of the current epoch; above 0 only after an interruption.
    sums: summed metrics of those steps: step.StepMetrics as a dict; None if there are none.
    reports: per-class reports of the finished stages of the current task, see methods.base.Stage.
    seconds: spent so far, over all starts of the run.
    correct, correct_aware: for each finished task, the correct test images of each class, by the method's first
      score: among all seen classes, and among the classes of the image's task.
    further: the same for its other scores: for each score, for each finished task, (correct, correct_aware).
    exemplars: for each class seen in finished tasks, its rows of the training data, in pick order.
    chosen: for each seen class, its rows in the current stage, if this trains on exemplars; else ().
    evaluations: for each finished task, evaluation.Evaluation.figures; None where an earlier version trained it.
  """
  task: int = 0
  stage: int = 0
  epoch: int = 0
  steps: int = 0
  sums: dict[str, Any] | None = None
  reports: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  correct: tuple[tuple[int, ...], ...] = ()
  correct_aware: tuple[tuple[int, ...], ...] = ()
  further: tuple[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], ...] = ()
  exemplars: tuple[tuple[int, ...], ...] = ()
  chosen: tuple[tuple[int, ...], ...] = ()
  evaluations: tuple[dict[str, Any] | None, ...] = ()

  @property
  def inside_stage(self) -> bool:
    """Whether the current stage has started but not finished."""
    return (self.epoch, self.steps) != (0, 0)

  @property
  def begun(self) -> bool:
    """Whether the current task has started."""
    return self.stage > 0 or self.inside_stage

  def after_stage(self, reports: dict[str, Sequence[float]], seconds: float) -> Progress:
    """The progress after the current stage, inside the same task."""
    kept = {name: tuple(values) for name, values in reports.items()}
    return dataclasses.replace(self, stage=self.stage + 1, epoch=0, steps=0, sums=None, chosen=(), seconds=seconds,
                               reports={**self.reports, **kept})

  def after_task(self, evaluation: Evaluation, exemplars: Sequence[np.ndarray], seconds: float) -> Progress:
    """The progress after the current task."""
    first, *others = evaluation.counts
    earlier = (*self.evaluations, *[None] * (self.task - len(self.evaluations)))
    before = self.further or ((),) * len(others)
    return Progress(
        task=self.task + 1, seconds=seconds, correct=(*self.correct, tuple(first[0].tolist())),
        correct_aware=(*self.correct_aware, tuple(first[1].tolist())),
        further=tuple((*past, (tuple(now[0].tolist()), tuple(now[1].tolist()))) for past, now in zip(before, others)),
        exemplars=tuple(tuple(kept.tolist()) for kept in exemplars), evaluations=(*earlier, evaluation.figures))

  @classmethod
  def from_record(cls, record: dict[str, Any]) -> Progress:
    """From the JSON record of a checkpoint; fields missing in an earlier format have their defaults."""
    def freeze(value: Any) -> Any:
      if isinstance(value, dict):
        return {name: freeze(part) for name, part in value.items()}
      return tuple(map(freeze, value)) if isinstance(value, list) else value
    return cls(**{field.name: freeze(record[field.name]) for field in dataclasses.fields(cls)
                  if field.name in record})


def summarize(experiment: Experiment, progress: Progress) -> dict[str, Any]:
  """The content of results.json (docs/method.md section 7); null for unfinished tasks.

  The top level has the accuracies of the method's first score. "scores" has those of all, if there are several.
  """
  config, drawn = experiment.config, experiment.scenario
  total = experiment.evaluated
  top = _accuracies(experiment, progress.correct, progress.correct_aware, total)
  seen = slice(0, drawn.tasks[progress.task - 1].stop)
  summary = {
      "method": config.method, "addons": config.addons, "seed": config.seed, "scenario_digest": drawn.digest,
      "tasks_done": progress.task, "seconds": progress.seconds,
      "versions": origin.versions(experiment.devices[0].platform),
      "devices": origin.devices(experiment.devices), "processor": processor.describe(),
      "precision": experiment.precision, **top,
      "last_accuracy": top["task_accuracies"][progress.task - 1],
      "many_medium_few": metrics.many_medium_few(np.asarray(progress.correct)[-1][seen], total[seen],
                                                 drawn.counts[seen]),
      "memory": footprint(experiment, progress.task, progress.exemplars), **_figures(progress, len(drawn.tasks))}
  if progress.further:
    names = list(experiment.method.scores)
    rows = [(progress.correct, progress.correct_aware), *(tuple(zip(*score)) for score in progress.further)]
    summary["scores"] = {name: _accuracies(experiment, correct, aware, total)
                         for name, (correct, aware) in zip(names, rows)}
  return summary


def _figures(progress: Progress, num_tasks: int) -> dict[str, Any]:
  """Calibration and neural collapse after each task; None for unfinished tasks and those of earlier versions."""
  known = (*progress.evaluations, *[None] * (num_tasks - len(progress.evaluations)))
  return {name: [one and one[name] for one in known] for name in ("calibration", "neural_collapse")}


def _accuracies(experiment: Experiment, correct: Any, correct_aware: Any, total: np.ndarray) -> dict[str, Any]:
  task_of_class, correct = experiment.scenario.task_of_class, np.asarray(correct)
  matrix = metrics.accuracy_matrix(correct, total, task_of_class)
  accuracies = metrics.task_accuracies(correct, total, task_of_class)
  task_means = metrics.task_mean_accuracies(matrix)
  return {
      "accuracy_matrix": matrix,
      "accuracy_matrix_task_aware": metrics.accuracy_matrix(correct_aware, total, task_of_class),
      "task_accuracies": accuracies, "task_mean_accuracies": task_means,
      "forgetting": metrics.forgetting(matrix), "backward_transfer": metrics.backward_transfer(matrix),
      "average_incremental_accuracy": metrics.average_incremental_accuracy(accuracies),
      "average_incremental_task_mean": metrics.average_incremental_accuracy(task_means)}


def task_row(plan: TaskPlan, state: TrainState, reports: Mapping[str, Sequence[float]], results: dict[str, Any],
             progress: Progress) -> dict[str, Any]:
  """The row of metrics.jsonl after a task; lists are over the seen classes in learning order.

  `reports` holds the stages' per-class reports, by name.
  """
  seen = slice(0, plan.task.stop)
  kernel = np.asarray(state.params["classifier"]["kernel"])
  # A class may have several columns (heads.proxies).
  columns = kernel.reshape(-1, kernel.shape[-1])[:, seen]
  return {
      "kind": "task", "task": plan.number + 1, "global_step": plan.stop_step,
      **{name: results[name][plan.number] for name in (
          "task_accuracies", "task_mean_accuracies", "forgetting", "backward_transfer", "accuracy_matrix",
          "accuracy_matrix_task_aware", "calibration", "neural_collapse")},
      "average_incremental_accuracy": results["average_incremental_accuracy"],
      **({"scores": {name: score["task_accuracies"][plan.number] for name, score in results["scores"].items()}}
         if "scores" in results else {}),
      "many_medium_few": results["many_medium_few"], "correct": progress.correct[-1][seen],
      "correct_task_aware": progress.correct_aware[-1][seen],
      **{name: list(values[seen]) for name, values in reports.items()},
      "classifier_norms": np.linalg.norm(columns, axis=0).tolist(),
      "exemplars": [len(kept) for kept in progress.exemplars], "seconds": progress.seconds}


def arrays_file(folder: pathlib.Path, task: int) -> pathlib.Path:
  """The file of Evaluation.arrays after a task (from 1)."""
  return folder / "evaluation" / f"task_{task}.npz"


# Keys of results.json that are averaged over replicas.
_AVERAGED = ("accuracy_matrix", "accuracy_matrix_task_aware", "task_accuracies", "task_mean_accuracies", "forgetting",
             "backward_transfer", "average_incremental_accuracy", "average_incremental_task_mean", "last_accuracy",
             "many_medium_few", "scores", "calibration", "neural_collapse", "seconds")


def over_replicas(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """results.json of several replicas: every measure is a mean; `standard_deviation` has the same keys.

  Args:
    summaries: the results of each replica, in the order of their seeds.

  Returns:
    The first replica's results with measures replaced by means, and `standard_deviation` (of a sample),
    `seeds` and `replicas` (the results of each).
  """
  # Replicas that an earlier version finished lack some.
  measures = [{name: one.get(name) for name in _AVERAGED} for one in summaries]
  return {**summaries[0], **_elementwise(np.mean, measures), "seeds": [one["seed"] for one in summaries],
          "standard_deviation": _elementwise(lambda values: np.std(values, ddof=1), measures),
          "replicas": list(summaries)}


def _elementwise(function: Any, trees: Sequence[Any]) -> Any:
  """Applies a function to the numbers at the same place of all trees; None where a tree has None."""
  first = trees[0]
  if any(tree is None for tree in trees):
    return None
  if isinstance(first, dict):
    return {key: _elementwise(function, [tree[key] for tree in trees]) for key in first}
  if isinstance(first, list):
    return [_elementwise(function, list(items)) for items in zip(*trees)]
  # Integers, such as the number of classes in a group, are equal in all trees.
  return first if isinstance(first, int) else float(function(trees))
