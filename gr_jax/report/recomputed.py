"""Fills in what a run of an earlier version did not record, from checkpoints and data; the run stays as it is."""

from __future__ import annotations

import dataclasses

from gr_jax.devices import parallel
from gr_jax.errors import UserError
from gr_jax.report.records import Run
from gr_jax.runs import console, restored, workdir
from gr_jax.training import evaluation, pictures
from gr_jax.training import experiment as experiments


def completed(run: Run, data_dir: str | None = None) -> Run:
  """The run with calibration, neural collapse and arrays of all tasks whose checkpoints are there.

  What cannot be computed is noted, not raised: the rest of the page is good without it.

  Args:
    run: as read.
    data_dir: overrides the run's.
  """
  wanted = [task for task in range(1, run.done + 1) if task not in run.arrays or not run.after(task, "calibration")]
  if not wanted:
    return run
  if run.config["evaluate_on"] == "holdout":
    # Figures of test pictures would stand beside accuracies on held-out ones.
    return dataclasses.replace(run, notes=(*run.notes, (
        "nothing is recomputed: the run was evaluated on its held-out images, to choose settings, and --recompute "
        "evaluates test images; python -m gr_jax.evaluate --split=holdout shows the accuracies on the held-out ones")))
  try:
    config = restored.read_config(run.folder, **({} if data_dir is None else {"data_dir": data_dir}))
    experiment = restored.as_trained(
        run.folder, experiments.load(config, training=False, progress=console.decoding, say=console.say))
    workdir.check_scenario(run.folder, experiment)
    evaluate = evaluation.make_evaluator(
        experiment, pictures.load(experiment, "test", console.decoding, console.say),
        holdout=pictures.load(experiment, "calibration", console.decoding, console.say))
  except UserError as error:
    return dataclasses.replace(run, notes=(*run.notes, f"nothing can be recomputed: {error}"))
  rows, arrays, notes = list(run.tasks), dict(run.arrays), list(run.notes)
  for task in wanted:
    try:
      _, _, network = restored.after_task(run.folder, experiment, task)
    except UserError as error:
      notes.append(f"task {task} cannot be recomputed: {error}")
      continue
    console.say(f"{run.folder}: task {task} is evaluated anew")
    recomputed = evaluate(parallel.replicate(network, experiment.devices), task)
    rows[task - 1], arrays[task] = {**rows[task - 1], **recomputed.figures}, recomputed.arrays
  return dataclasses.replace(run, tasks=tuple(rows), arrays=arrays, notes=tuple(notes))
