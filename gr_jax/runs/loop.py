"""The task loop: stages -> exemplars -> evaluation on all seen classes -> checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gr_jax import memory, nearest_mean
from gr_jax.devices import parallel, processes
from gr_jax.methods.base import Networks
from gr_jax.runs import checkpoints as checkpointing
from gr_jax.runs import console, events, journal, results
from gr_jax.runs.results import Progress
from gr_jax.runs.signals import Interrupted
from gr_jax.runs.stage import Saving, Standing, items, run_stage
from gr_jax.scenario.plan import StagePlan, TaskPlan, rows_of
from gr_jax.training.evaluation import Evaluation
from gr_jax.training.experiment import Experiment
from gr_jax.training.programs import Programs
from gr_jax.training.state import TrainState


def learn(experiment: Experiment, programs: Programs, evaluate: Callable[[dict, int], Evaluation],
          folder: pathlib.Path, *, asked: Callable[[], bool], alone: bool = True) -> dict[str, Any]:
  """Runs the tasks from the last checkpoint on; returns the content of results.json.

  Args:
    experiment: its config holds the seed.
    programs, evaluate: see programs.make_programs and evaluation.make_evaluator.
    folder: for checkpoints, metrics.jsonl and the arrays of each evaluation.
    asked: whether the run should save and exit; checked after each device call.
    alone: whether no other run is trained in this process at the same time.

  Raises:
    Interrupted: it was asked to exit, and has saved.
  """
  started, ends = time.monotonic(), [plan.stop_step for plan in experiment.plans]
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(checkpointing.Checkpoints(folder / "checkpoints", keep=ends, alone=alone))
    progress, state, carry, teacher = _resume(experiment, programs, checkpoints)
    started -= progress.seconds
    log = stack.enter_context(journal.Metrics(
        folder / "metrics.jsonl", step=int(state.step),
        events=folder / events.FOLDER if experiment.config.tensorboard else None))
    saving = Saving(checkpoints, log, started, asked)
    for plan in experiment.plans[progress.task:experiment.stop_after_task]:
      if asked():
        raise Interrupted(f"{progress.task} finished tasks are saved in {folder}; rerun the command to resume")
      if not progress.begun:
        params, teacher = programs.begin_task(state.params, state.batch_stats, plan.stages[0].context, experiment.root)
        state = state.replace(params=params)
      for stage in plan.stages[progress.stage:]:
        standing = Standing(progress, state, carry, teacher)
        if not progress.inside_stage:
          standing = _begin_stage(experiment, programs, plan, stage, standing)
        rows, teacher = np.concatenate(_rows(experiment, stage, standing.progress)), standing.teacher
        state, carry, progress = run_stage(experiment, programs, stage, rows, standing, saving)
      carry, exemplars = _choose_exemplars(experiment, programs, plan, state, carry, progress)
      network = {"params": state.params, "batch_stats": state.batch_stats, "carry": carry}
      reports, evaluation = progress.reports, evaluate(network, plan.number + 1)
      progress = progress.after_task(evaluation, exemplars, time.monotonic() - started)
      # Before the checkpoint: a task that is saved has its arrays.
      journal.write_arrays(results.arrays_file(folder, plan.number + 1), evaluation.arrays)
      summary = results.summarize(experiment, progress)
      log.write(**results.task_row(plan, state, reports, summary, progress))
      log.sync()
      checkpoints.save(plan.stop_step, items(state, carry), dataclasses.asdict(progress))
      console.say(console.task_line(plan.number, summary))
  return results.summarize(experiment, progress)


def _begin_stage(experiment: Experiment, programs: Programs, plan: TaskPlan, stage: StagePlan, standing: Standing
                 ) -> Standing:
  """The exemplars that the stage trains on and its teacher, where these come from the network as it is now."""
  value, (progress, state, carry, teacher) = experiment.method.stages[stage.index], standing
  if value.rows == "exemplars":
    chosen = _select(experiment, programs, plan, state, carry, progress)
    progress = dataclasses.replace(progress, chosen=tuple(tuple(rows.tolist()) for rows in chosen))
  if value.teacher == "start" and plan.number:
    teacher = programs.make_teacher(state.params, state.batch_stats)
  return standing._replace(progress=progress, teacher=teacher)


def _rows(experiment: Experiment, stage: StagePlan, progress: Progress) -> list[np.ndarray]:
  """The rows that a stage uses, for each seen class."""
  method, exemplars = experiment.method, progress.chosen or progress.exemplars
  return rows_of(method.stages[stage.index], stage, experiment.scenario.counts,
                 [np.asarray(kept, np.int32) for kept in exemplars], method.held_out, seed=experiment.config.seed)


def _select(experiment: Experiment, programs: Programs, plan: TaskPlan, state: TrainState, carry: dict[str, Any],
            progress: Progress) -> tuple[np.ndarray, ...]:
  """The exemplars of every seen class that the present network selects, without held-out images."""
  config, method = experiment.config, experiment.method
  features = functools.partial(
      programs.features, Networks(state.params, state.batch_stats, carry), plan.stages[0].context)
  # A stage may train on the new images alone.
  source = next((stage for stage in plan.stages if method.stages[stage.index].rows == "present"), plan.stages[0])
  return memory.select(
      _rows(experiment, source, progress),
      experiment.exemplars_per_class(plan.task.stop) - method.held_out if method.replays else 0,
      config.memory.selection,
      features=features, logits=functools.partial(programs.logits, state, plan),
      seed=config.seed, task=plan.number)


def _choose_exemplars(experiment: Experiment, programs: Programs, plan: TaskPlan, state: TrainState,
                      carry: dict[str, Any], progress: Progress) -> tuple[dict[str, Any], tuple[np.ndarray, ...]]:
  """What is kept after a task: the carry, and the exemplars of every seen class, without held-out images."""
  method, exemplars = experiment.method, _select(experiment, programs, plan, state, carry, progress)
  if method.exemplar_means:
    means, has_mean = nearest_mean.means(
        programs.features(Networks(state.params, state.batch_stats, carry), plan.stages[0].context,
                          np.concatenate(exemplars)), [len(kept) for kept in exemplars], experiment.num_classes)
    carry = {**carry, **parallel.replicate({"exemplar_means": means, "has_mean": has_mean}, experiment.devices)}
  if programs.after_memory is not None:
    first = plan.stages[0]
    carry = programs.after_memory(state, carry, first.context, np.concatenate(_rows(experiment, first, progress)),
                                  experiment.root)
  return carry, exemplars


def _resume(experiment: Experiment, programs: Programs, checkpoints: checkpointing.Checkpoints) -> Standing:
  """The state of the run at the last checkpoint, or at the start."""
  method = experiment.method

  def targets(record: dict[str, Any]) -> dict[str, Any]:
    progress = Progress.from_record(record)
    plan = experiment.plans[min(progress.task, len(experiment.plans) - 1)]
    inside = progress.begun and progress.task > 0 and method.uses_teacher
    stage = plan.stages[min(progress.stage, len(plan.stages) - 1)]
    abstract = experiment.abstract_state(stage.index)
    if not progress.inside_stage:
      abstract = abstract.between_stages()
    return items(abstract, jax.eval_shape(experiment.init_carry),
                 {"params": abstract.params, "batch_stats": abstract.batch_stats} if inside else None)

  newest = processes.together(lambda: checkpoints.restore_newest(
      targets, warn=lambda line: console.say(f"warning: {line}")))
  processes.agree({"checkpoint to resume from": newest and newest[0]})
  if newest is None:
    state = programs.init(experiment.root).between_stages()
    return Standing(Progress(), state, parallel.replicate(experiment.init_carry(), experiment.devices), None)
  step, record, arrays = newest
  progress, arrays = Progress.from_record(record), parallel.replicate(arrays, experiment.devices)
  console.say(f"resuming after step {step}: {progress.task} tasks, {progress.epoch} epochs and {progress.steps} steps "
              f"done")
  model, training = arrays["model"], arrays["training"]
  state = TrainState(params=model["params"], batch_stats=model["batch_stats"], step=training["step"],
                     opt_state=training.get("opt_state", ()), rule=training.get("rule", ()),
                     tracked=training.get("tracked", ()))
  return Standing(progress, state, model.get("carry", {}), arrays.get("teacher"))
