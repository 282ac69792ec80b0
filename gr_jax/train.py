"""The task loop: train -> evaluate on all seen classes -> exemplars -> checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from gr_jax import checkpoints as checkpointing
from gr_jax import console, journal, memory, meter, parallel, replicas, results
from gr_jax import experiment as experiments
from gr_jax import workdir as workdirs
from gr_jax.experiment import Experiment, TrainPrograms
from gr_jax.plan import TaskPlan, learning_rate
from gr_jax.results import Progress
from gr_jax.state import TrainState


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
  folder = pathlib.Path(workdir).expanduser().absolute()
  experiment = experiments.load(config, before_data=lambda: workdirs.check_config(folder, config))
  with workdirs.locked(folder):
    workdirs.check_scenario(folder, experiment)
    finished = workdirs.finished(folder, experiment)
    if finished is not None:
      console.say(f"{folder} holds the finished run; nothing to train\n{console.closing_table(finished)}")
      return finished
    console.say(console.scenario_lines(experiment))
    pictures, tests = (experiments.load_pictures(experiment, split, console.decoding)
                       for split in ("train", "test"))
    workdirs.write_start(folder, experiment)
    if config.replicas > 1:
      found = replicas.run_side_by_side(experiment, folder, pictures, tests, learn)
    else:
      programs = experiments.train_programs(experiment, pictures)
      found = learn(experiment, programs, experiments.evaluator(experiment, tests), folder)
    workdirs.write_results(folder, found)
  console.say(console.closing_table(found))
  return found


def learn(experiment: Experiment, programs: TrainPrograms, count_correct: Callable[..., np.ndarray],
          folder: pathlib.Path) -> dict[str, Any]:
  """The tasks of one run, one after another, from its last checkpoint; returns the content of results.json.

  Args:
    experiment: its config holds the seed.
    programs, count_correct: see experiment.train_programs and experiment.evaluator.
    folder: for checkpoints and metrics.jsonl.
  """
  memory_config, root, started = experiment.config.memory, experiment.root, time.monotonic()
  ends = [plan.stop_step for plan in experiment.plans]
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(checkpointing.Checkpoints(folder / "checkpoints", keep=ends))
    progress, state, teacher = _resume(experiment, programs, checkpoints, root)
    started -= progress.seconds
    log = stack.enter_context(journal.Metrics(folder / "metrics.jsonl", step=int(state.step)))
    for plan in experiment.plans[progress.task:experiment.stop_after_task]:
      rows = experiments.present_rows(
          experiment, plan.number, [np.asarray(kept, np.int32) for kept in progress.exemplars])
      if progress.epoch == 0:
        state, teacher = programs.start_task(state, plan.facts, root)
      state, alpha = _train_task(
          experiment, programs, plan, rows, state, teacher, root, progress, checkpoints, log, started)
      counts = count_correct(state.params, state.batch_stats, plan.number + 1)
      exemplars = memory.select(
          rows, memory_config.per_class, memory_config.selection, seed=experiment.config.seed, task=plan.number,
          features=functools.partial(programs.features, state))
      progress = progress.after_task(counts, exemplars, time.monotonic() - started)
      found = results.summarize(experiment, progress)
      log.write(**results.task_row(experiment, plan, state, alpha, found, progress))
      checkpoints.save(plan.stop_step, _items(state, None), dataclasses.asdict(progress))
      console.say(console.task_line(plan.number, found))
  return results.summarize(experiment, progress)


def _train_task(
    experiment: Experiment, programs: TrainPrograms, plan: TaskPlan, rows: list[np.ndarray], state: TrainState,
    teacher: Any, root: jax.Array, progress: Progress, checkpoints: checkpointing.Checkpoints, log: journal.Metrics,
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
            state, teacher, facts, programs.data, pool, root,
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
            root: jax.Array) -> tuple[Progress, TrainState, Any]:
  """Where the run stands: at the last checkpoint, or at its beginning."""
  steps = checkpoints.steps()
  if not steps:
    return Progress(), programs.init(root), None
  step = steps[-1]
  progress = Progress.from_record(checkpoints.record(step))
  abstract = experiment.abstract_state()
  inside = progress.epoch > 0 and progress.task > 0 and experiment.method.uses_teacher
  targets = _items(abstract, {"params": abstract.params, "batch_stats": abstract.batch_stats}
                   if inside else None)
  found = parallel.replicate(checkpoints.restore(step, targets), experiment.devices)
  console.say(f"going on after step {step}: {progress.task} tasks and {progress.epoch} epochs are done")
  return progress, TrainState(**found["model"], **found["training"]), found.get("teacher")
