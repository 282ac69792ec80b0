"""The task loop: train -> evaluate on all seen classes -> exemplars -> checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from gr_jax import checkpoints as checkpointing
from gr_jax import config as configuration
from gr_jax import console, experiment as experiments, journal, memory, meter, metrics, parallel
from gr_jax.errors import UserError
from gr_jax.experiment import Experiment, TrainPrograms
from gr_jax.plan import TaskPlan, learning_rate
from gr_jax.state import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run is; with the arrays of a checkpoint all that the rest of the run depends on.

  Attributes:
    task: tasks that are done, which is the number (from 0) of the one to go on with.
    epoch: epochs of that task that are done.
    seconds: spent so far, over all starts of the run.
    correct, correct_aware: for each task done the correct test images of each class, among all seen classes
      and among the own task's.
    exemplars: for each class seen in the tasks done its rows of the training data, in pick order.
  """
  task: int = 0
  epoch: int = 0
  seconds: float = 0.0
  correct: tuple[tuple[int, ...], ...] = ()
  correct_aware: tuple[tuple[int, ...], ...] = ()
  exemplars: tuple[tuple[int, ...], ...] = ()

  @classmethod
  def from_record(cls, record: dict[str, Any]) -> Progress:
    """From the JSON record of a checkpoint."""
    def freeze(value: Any) -> Any:
      return tuple(map(freeze, value)) if isinstance(value, list) else value
    return cls(**{field.name: freeze(record[field.name]) for field in dataclasses.fields(cls)})


def train(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Runs a config to its end, or goes on with the run that is in `workdir`.

  Args:
    config: see configs/.
    workdir: folder of the run; created where missing.

  Returns:
    The content of results.json.

  Raises:
    UserError: bad config or data, a workdir with a run of another config, an unreadable checkpoint.
    FloatingPointError: the loss is not finite.
  """
  started = time.monotonic()
  workdir = pathlib.Path(workdir).expanduser().absolute()
  experiment = experiments.load(config, before_data=lambda: check_workdir(workdir, config))
  check_scenario(workdir, experiment)
  finished = _finished(workdir, experiment)
  if finished is not None:
    console.say(f"{workdir} holds the finished run; nothing to train\n{console.closing_table(finished)}")
    return finished
  console.say(console.scenario_lines(experiment))
  _write_scenario(workdir, experiment)

  programs = experiments.train_programs(experiment, console.decoding)
  count_correct = experiments.evaluator(experiment, console.decoding)
  stops = [plan.stop_step for plan in experiment.plans]
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(checkpointing.Checkpoints(workdir / "checkpoints", keep=stops))
    progress, state, teacher = _resume(experiment, programs, checkpoints)
    started -= progress.seconds
    log = stack.enter_context(journal.Metrics(workdir / "metrics.jsonl", step=int(state.step)))
    for plan in experiment.plans[progress.task:experiment.stop_after_task]:
      rows = experiments.present_rows(
          experiment, plan.number, [np.asarray(kept, np.int32) for kept in progress.exemplars])
      if progress.epoch == 0:
        state, teacher = programs.start_task(state, plan.facts)
      state, alpha = _train_task(
          experiment, programs, plan, rows, state, teacher, progress, checkpoints, log, started)
      counts = count_correct(state.params, state.batch_stats, plan.number + 1)
      exemplars = memory.select(
          rows, config.memory.per_class, config.memory.selection, seed=config.seed, task=plan.number,
          features=functools.partial(programs.features, state))
      progress = Progress(
          task=plan.number + 1, seconds=time.monotonic() - started,
          correct=(*progress.correct, tuple(counts[0].tolist())),
          correct_aware=(*progress.correct_aware, tuple(counts[1].tolist())),
          exemplars=tuple(tuple(kept.tolist()) for kept in exemplars))
      results = summarize(experiment, progress)
      log.write(**_task_row(experiment, plan, state, alpha, results, progress))
      checkpoints.save(plan.stop_step, _items(state, None), dataclasses.asdict(progress))
      console.say(console.task_line(plan.number, results))
  journal.write_json(workdir / "results.json", results)
  console.say(console.closing_table(results))
  return results


def _train_task(
    experiment: Experiment, programs: TrainPrograms, plan: TaskPlan, rows: list[np.ndarray], state: TrainState,
    teacher: Any, progress: Progress, checkpoints: checkpointing.Checkpoints, log: journal.Metrics,
    started: float) -> tuple[TrainState, list[float]]:
  """The epochs of one task; returns the state and the last epoch's mean alpha of each class."""
  config = experiment.config
  everywhere = functools.partial(parallel.replicate, devices=experiment.devices)
  facts = everywhere(plan.facts)
  pool = everywhere(experiments.pool(np.concatenate(rows), experiment.capacity))
  if plan.number == 0 or not experiment.method.uses_teacher:
    teacher = None
  with meter.Meter(plan, num_tasks=len(experiment.plans), epochs=config.epochs, done=progress.epoch,
                   batch_size=config.batch_size, log=log, started=started) as measured:
    for epoch in range(progress.epoch, config.epochs):
      rate = learning_rate(epoch, base=config.learning_rate, milestones=config.milestones,
                           decay=config.learning_rate_decay)
      for first in range(0, plan.steps_per_epoch, config.steps_per_call):
        stop = min(first + config.steps_per_call, plan.steps_per_epoch)
        state, metrics_of_call = programs.run_epoch(
            state, teacher, facts, programs.data, pool, programs.root,
            *everywhere((np.int32(epoch), np.int32(first), np.int32(stop), np.float32(rate))))
        measured.add(epoch, stop, rate, metrics_of_call)
      done = epoch + 1
      if done % config.checkpoint_every_epochs == 0 and done < config.epochs:
        measured.settle()
        now = dataclasses.replace(progress, epoch=done, seconds=time.monotonic() - started)
        step = plan.first_step + done * plan.steps_per_epoch
        checkpoints.save(step, _items(state, teacher), dataclasses.asdict(now))
    measured.settle()
  return state, measured.alpha


def _items(state: TrainState, teacher: Any) -> dict[str, Any]:
  """The items of a checkpoint. Evaluation restores `model` alone."""
  items = {"model": {"params": state.params, "batch_stats": state.batch_stats},
           "training": {"step": state.step, "opt_state": state.opt_state, "method": state.method}}
  return items if teacher is None else {**items, "teacher": teacher}


def _resume(experiment: Experiment, programs: TrainPrograms, checkpoints: checkpointing.Checkpoints,
            ) -> tuple[Progress, TrainState, Any]:
  """Where the run stands: at the last checkpoint, or at its beginning."""
  steps = checkpoints.steps()
  if not steps:
    return Progress(), programs.init(), None
  step = steps[-1]
  progress = Progress.from_record(checkpoints.record(step))
  abstract = experiment.abstract_state()
  inside = progress.epoch > 0 and progress.task > 0 and experiment.method.uses_teacher
  targets = _items(abstract, {"params": abstract.params, "batch_stats": abstract.batch_stats}
                   if inside else None)
  found = parallel.replicate(checkpoints.restore(step, targets), experiment.devices)
  console.say(f"going on after step {step}: {progress.task} tasks and {progress.epoch} epochs are done")
  return progress, TrainState(**found["model"], **found["training"]), found.get("teacher")


def summarize(experiment: Experiment, progress: Progress) -> dict[str, Any]:
  """The content of results.json: METHOD.md section 7; null for tasks that are not done."""
  config, drawn = experiment.config, experiment.scenario
  total = np.asarray([(experiment.source.test.labels == label).sum() for label in drawn.class_order])
  task_of_class, correct = drawn.task_of_class, np.asarray(progress.correct)
  matrix = metrics.accuracy_matrix(correct, total, task_of_class)
  accuracies = metrics.task_accuracies(correct, total, task_of_class)
  task_means = metrics.task_mean_accuracies(matrix)
  seen = slice(0, drawn.tasks[progress.task - 1].stop)
  return {
      "method": config.method, "seed": config.seed, "scenario_digest": drawn.digest,
      "tasks_done": progress.task, "seconds": progress.seconds, "versions": _versions(),
      "devices": f"{len(experiment.devices)} x {experiment.devices[0].device_kind}",
      "precision": experiment.precision,
      "accuracy_matrix": matrix,
      "accuracy_matrix_task_aware": metrics.accuracy_matrix(progress.correct_aware, total, task_of_class),
      "task_accuracies": accuracies, "task_mean_accuracies": task_means,
      "forgetting": metrics.forgetting(matrix), "backward_transfer": metrics.backward_transfer(matrix),
      "average_incremental_accuracy": metrics.average_incremental_accuracy(accuracies),
      "average_incremental_task_mean": metrics.average_incremental_accuracy(task_means),
      "last_accuracy": accuracies[progress.task - 1],
      "many_medium_few": metrics.many_medium_few(correct[-1][seen], total[seen], drawn.counts[seen])}


def _task_row(experiment: Experiment, plan: TaskPlan, state: TrainState, alpha: list[float],
              results: dict[str, Any], progress: Progress) -> dict[str, Any]:
  """The row of metrics.jsonl after a task; lists run over the seen classes in learning order."""
  seen = slice(0, plan.task.stop)
  phi, column = np.asarray(state.method.phi)[seen], np.asarray(state.method.column)[seen]
  kernel = np.asarray(state.params["classifier"]["kernel"])[:, seen]
  # Phi is the sum of the column norms over the task's steps, so their mean needs no record of its own.
  steps = plan.stop_step - plan.first_step
  return {
      "kind": "task", "task": plan.number + 1, "global_step": plan.stop_step,
      **{name: results[name][plan.number] for name in (
          "task_accuracies", "task_mean_accuracies", "forgetting", "backward_transfer", "accuracy_matrix",
          "accuracy_matrix_task_aware")},
      "average_incremental_accuracy": results["average_incremental_accuracy"],
      "many_medium_few": results["many_medium_few"], "correct": progress.correct[-1][seen],
      "correct_task_aware": progress.correct_aware[-1][seen],
      "gradient_norms": (phi / steps).tolist(), "phi": phi.tolist(), "alpha": alpha[seen],
      "column": column.tolist(), "classifier_norms": np.linalg.norm(kernel, axis=0).tolist(),
      "exemplars": [len(kept) for kept in progress.exemplars], "seconds": progress.seconds}


def _versions() -> dict[str, str]:
  names = ("gr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")
  return {name: importlib.metadata.version(name) for name in names}


def check_workdir(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Refuses a folder with a run of another config, and takes a new one for this config.

  Raises:
    UserError: the folder's config differs (the message shows how), or the folder cannot be used.
  """
  wanted = configuration.flatten(config)
  path = workdir / "config.json"
  if path.exists():
    saved = configuration.flatten(journal.read_json(path))
    lines = configuration.difference(saved, wanted)
    if lines:
      raise UserError(f"{workdir} holds a run of another config:\n  " + "\n  ".join(lines) +
                      "\nchoose another --workdir, or give the config of that run")
    return
  if (workdir / "checkpoints").exists():
    raise UserError(f"{workdir} has checkpoints but no config.json, so whose they are is not known; choose "
                    f"another --workdir")
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    journal.write_json(path, config.to_dict())
  except OSError as error:
    raise UserError(f"--workdir {workdir} cannot be written ({error}); choose another") from error


def check_scenario(workdir: pathlib.Path, experiment: Experiment) -> None:
  """Refuses to go on with a run whose images have changed.

  Raises:
    UserError: scenario.json holds another digest.
  """
  path = workdir / "scenario.json"
  if path.exists() and (saved := journal.read_json(path)["digest"]) != experiment.scenario.digest:
    raise UserError(f"{workdir} holds a run on other images (digest {saved[:16]}, now "
                    f"{experiment.scenario.digest[:16]}): the data set has changed; choose another --workdir")


def _write_scenario(workdir: pathlib.Path, experiment: Experiment) -> None:
  drawn, source = experiment.scenario, experiment.source
  journal.write_json(workdir / "scenario.json", {
      "digest": drawn.digest, "dataset": source.name, "class_order": list(drawn.class_order),
      "class_names": list(drawn.class_names), "counts": drawn.counts.tolist(),
      "holdout_counts": [len(rows) for rows in drawn.holdout],
      "profile": None if drawn.profile is None else list(drawn.profile),
      "capped": {drawn.class_names[j]: pair for j, pair in drawn.capped.items()},
      "tasks": [{"classes": list(plan.task.classes), "new_images": int(drawn.counts[plan.task.classes].sum()),
                 "images_present": plan.size, "steps_per_epoch": plan.steps_per_epoch}
                for plan in experiment.plans],
      "train_ids": [[source.train.ids[row] for row in rows] for rows in drawn.train],
      "holdout_ids": [[source.train.ids[row] for row in rows] for rows in drawn.holdout]})


def _finished(workdir: pathlib.Path, experiment: Experiment) -> dict[str, Any] | None:
  """The results of a run that has done all the tasks it is asked for; None where there is work left."""
  path = workdir / "results.json"
  if not path.exists():
    return None
  results = journal.read_json(path)
  return results if results["tasks_done"] >= experiment.stop_after_task else None
