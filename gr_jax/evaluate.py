"""Evaluates a run from its checkpoints: python -m gr_jax.evaluate --workdir=... [--task=3]."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

import numpy as np
from absl import flags

from gr_jax import cli
from gr_jax.errors import UserError


def evaluate(workdir: str | pathlib.Path, task: int | None = None, *, split: Literal["test", "holdout"] = "test",
             data_dir: str | None = None) -> dict[str, Any]:
  """Restores the model saved after a task and counts its correct images.

  Reads only the `model` item of the checkpoint; the folder may be read-only.

  Args:
    workdir: folder of the run.
    task: after which task, from 1; None: the last finished one.
    split: "test" or "holdout".
    data_dir: overrides the run's data_dir.

  Returns:
    For "test": the content of results.json up to that task, with calibration and neural collapse of that task computed
    anew. For "holdout", of that task only, since the run records no held-out history: {task, accuracy, by_task,
    by_task_aware} and {class_mean, class_error, classes}, by which `gr_jax.compare` chooses (comparing.choice); the
    mean and its standard error are None where fewer than two classes have held-out images.

  Raises:
    UserError: no run, no such task, other data, an unreadable checkpoint.
  """
  # Imported here so that a bad flag is reported immediately.
  from gr_jax.devices import parallel
  from gr_jax.runs import console, restored
  from gr_jax.runs import results as measured
  from gr_jax.runs import workdir as workdirs
  from gr_jax.training import evaluation, pictures
  from gr_jax.training import experiment as experiments
  workdir = workdirs.locate(workdir)
  config = restored.read_config(workdir, **({} if data_dir is None else {"data_dir": data_dir}))
  if config.evaluate_on == "holdout" and split == "test":
    raise UserError(f"{workdir} was evaluated on its held-out images, to choose settings; set --split=holdout, or "
                    f"train with --config.evaluate_on=test to see test accuracies")
  experiment = experiments.load(config, training=False, progress=console.decoding, say=console.say)
  workdirs.check_scenario(workdir, experiment)
  experiment = restored.as_trained(workdir, experiment)
  task, record, network = restored.after_task(workdir, experiment, task)
  images = pictures.load(experiment, split, console.decoding, console.say)
  held = pictures.load(experiment, "calibration", console.decoding, console.say) if split == "test" else None
  evaluated = evaluation.make_evaluator(experiment, images, holdout=held, split=split)(
      parallel.replicate(network, experiment.devices), task)
  if split == "holdout":
    return _holdout_numbers(experiment, evaluated.counts[0], task)
  recorded = measured.Progress.from_record(record)
  # Rows of earlier tasks come from the run's record, those of this task from the counts above.
  before = dataclasses.replace(
      recorded, correct=recorded.correct[:-1], correct_aware=recorded.correct_aware[:-1],
      further=tuple(tasks[:-1] for tasks in recorded.further), evaluations=recorded.evaluations[:-1],
      task=recorded.task - 1)
  progress = dataclasses.replace(before.after_task(evaluated, (), recorded.seconds), exemplars=recorded.exemplars)
  results = measured.summarize(experiment, progress)
  equal = (progress.correct, progress.correct_aware, progress.further) == (
      recorded.correct, recorded.correct_aware, recorded.further)
  console.say(console.task_line(task - 1, results))
  console.say(console.closing_table(results))
  console.say(console.calibration_lines(evaluated.figures["calibration"]))
  console.say(f"correct images: {evaluated.counts[0, 0].sum()} of {evaluated.counts[0, 2].sum()}; per-class counts are "
              f"{'equal to' if equal else 'NOT equal to'} those of the run")
  return results


def _holdout_numbers(experiment: Any, counts: np.ndarray, task: int) -> dict[str, Any]:
  from gr_jax import metrics
  from gr_jax.comparing import choice
  from gr_jax.runs import console
  # Only the last row is used; the others are placeholders for tasks that were not evaluated.
  correct, aware = (np.tile(row, (task, 1)) for row in counts[:2])
  task_of_class = experiment.scenario.task_of_class
  def by_task(rows: np.ndarray) -> list[float | None]:
    return metrics.accuracy_matrix(rows, counts[2], task_of_class)[task - 1][:task]
  numbers = {"task": task, "accuracy": metrics.task_accuracies(correct, counts[2], task_of_class)[task - 1],
             "by_task": by_task(correct), "by_task_aware": by_task(aware),
             "class_mean": None, "class_error": None, "classes": int(np.sum(counts[2] > 0))}
  over_classes = ""
  if numbers["classes"] > 1:
    score = choice.score([{str(place): (int(counts[0, place]), int(images)) for place, images in enumerate(counts[2])}])
    numbers |= {"class_mean": score.mean, "class_error": score.error}
    over_classes = (f"; mean over {score.classes} classes {console.percent(score.mean)} ± "
                    f"{console.percent(score.error)} %")
  console.say(f"task {task}, held-out images: accuracy {console.percent(numbers['accuracy'])} % of "
              f"{counts[2].sum()}; by task [{' '.join(map(console.percent, numbers['by_task']))}], task-aware "
              f"[{' '.join(map(console.percent, numbers['by_task_aware']))}]{over_classes}")
  return numbers


def holdout_numbers(workdir: str | pathlib.Path, *, data_dir: str | None = None) -> list[dict[str, Any]]:
  """What `evaluate` returns for the held-out images after each finished task; raises as `evaluate`.

  Use it, not the test set, to choose settings.
  """
  done = evaluate(workdir, split="holdout", data_dir=data_dir)
  before = [evaluate(workdir, task, split="holdout", data_dir=data_dir) for task in range(1, done["task"])]
  return [*before, done]


def _define_flags() -> None:
  """Not at import, because tests and notebooks import this module together with other commands."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_integer("task", None, "Evaluate the model after this task, counted from 1. Default: the last finished "
                       "one.")
  flags.DEFINE_enum(
      "split", "test", ["test", "holdout"], "The test set, or the held-out training images.")
  flags.DEFINE_string("data_dir", None, "Folder of the data, if it has moved since the run.")
  flags.DEFINE_string("holdout_json", None, "Write the held-out accuracies after each task to this file, over images "
                      "and as the mean over classes with its standard error.")


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  if given.holdout_json:
    if given.task is not None or given["split"].present:
      raise UserError("--holdout_json evaluates the held-out images after every task; remove --task and --split")
    from gr_jax.runs import journal
    out = pathlib.Path(given.holdout_json).expanduser()
    if not out.parent.is_dir() or out.is_dir():
      raise UserError(f"--holdout_json is {out}; it takes a file in a folder that exists")
    numbers = holdout_numbers(given.workdir, data_dir=given.data_dir)
    journal.write_json(out, {
        "holdout_accuracies": [after["accuracy"] for after in numbers],
        "class_means": [after["class_mean"] for after in numbers],
        "class_errors": [after["class_error"] for after in numbers],
        "classes": [after["classes"] for after in numbers]})
    return
  evaluate(given.workdir, given.task, split=given.split, data_dir=given.data_dir)


if __name__ == "__main__":
  _define_flags()
  cli.run(main)
