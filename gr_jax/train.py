"""The task loop: train -> evaluate on all seen classes -> exemplars -> checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from gr_jax import config as configuration
from gr_jax import memory
from gr_jax.devices import convolution_library, parallel, processes
from gr_jax.runs import checkpoints as checkpointing
from gr_jax.runs import console, journal, meter, replicas, results, signals
from gr_jax.runs import workdir as workdirs
from gr_jax.runs.results import Progress
from gr_jax.runs.signals import Interrupted
from gr_jax.scenario.plan import TaskPlan, calls, learning_rate
from gr_jax.training import experiment as experiments
from gr_jax.training import finite
from gr_jax.training.experiment import Experiment, TrainPrograms
from gr_jax.training.state import TrainState


def train(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Runs a config to its end, or goes on with the run that is in `workdir`.

  Args:
    config: see configs/.
    workdir: folder of the run; created where missing.

  Returns:
    The content of results.json.

  Raises:
    UserError: bad config or data, a workdir with a run of another config, a checkpoint that cannot be written,
      processes that do not agree.
    FloatingPointError: the loss, or an array that should be saved, is not finite.
    Interrupted: SIGTERM or Ctrl-C came while it trained; all that was done is saved.
  """
  folder = workdirs.locate(workdir)
  convolution_library.enable()
  processes.agree({**configuration.shared(config), "code": processes.code_version(), "jax": jax.__version__})
  experiment = processes.together(lambda: experiments.load(
      config, before_data=lambda: workdirs.check_config(folder, config), progress=console.decoding,
      say=console.say))
  with workdirs.held(folder):
    processes.together(lambda: workdirs.check_scenario(folder, experiment))
    finished = processes.together(lambda: workdirs.finished(folder, experiment))
    processes.agree({"digest of the images": experiment.scenario.digest, "precision": experiment.precision,
                       "digest of the pictures": workdirs.pictures_digest(experiment),
                       "a finished run in the workdir": finished is not None})
    if finished is not None:
      console.say(f"{folder} holds the finished run; nothing to train\n{console.closing_table(finished)}")
      return finished
    console.say(f"{console.scenario_lines(experiment)}\n{experiment.path[1]}\n{console.computation_line(experiment)}")
    pictures, tests = processes.together(lambda: [
        experiments.load_pictures(experiment, split, console.decoding, console.say) for split in ("train", "test")])
    workdirs.write_start(folder, experiment)
    # Until here a signal ends the process as any other: nothing has been done that could be lost.
    with signals.listening() as asked_here:
      asked = functools.partial(_asked_anywhere, asked_here)
      if config.replicas > 1:
        found = replicas.run_side_by_side(experiment, folder, pictures, tests, functools.partial(
            learn, asked=asked, alone=False))
      else:
        programs = experiments.train_programs(experiment, pictures)
        found = learn(experiment, programs, experiments.evaluator(experiment, tests), folder, asked=asked)
    workdirs.write_results(folder, found)
  console.say(console.closing_table(found))
  return found


def _asked_anywhere(asked_here: Callable[[], bool]) -> bool:
  """All processes stop after the same call, whichever was asked."""
  return processes.any_process(asked_here())


def learn(experiment: Experiment, programs: TrainPrograms, count_correct: Callable[..., np.ndarray],
          folder: pathlib.Path, *, asked: Callable[[], bool], alone: bool = True) -> dict[str, Any]:
  """The tasks of one run, one after another, from its last checkpoint; returns the content of results.json.

  Args:
    experiment: its config holds the seed.
    programs, count_correct: see experiment.train_programs and experiment.evaluator.
    folder: for checkpoints and metrics.jsonl.
    asked: whether the run is to save and end; looked at after each call on the device.
    alone: whether no other run is learnt in this process meanwhile.

  Raises:
    Interrupted: it was asked, and has saved.
  """
  memory_config, root, started = experiment.config.memory, experiment.root, time.monotonic()
  ends = [plan.stop_step for plan in experiment.plans]
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(checkpointing.Checkpoints(
        folder / "checkpoints", keep=ends, alone=alone))
    progress, state, teacher = _resume(experiment, programs, checkpoints, root)
    started -= progress.seconds
    log = stack.enter_context(journal.Metrics(folder / "metrics.jsonl", step=int(state.step)))
    for plan in experiment.plans[progress.task:experiment.stop_after_task]:
      if asked():
        raise Interrupted(f"{progress.task} tasks are saved in {folder}; the same command again goes on")
      rows = experiments.present_rows(
          experiment, plan.number, [np.asarray(kept, np.int32) for kept in progress.exemplars])
      if (progress.epoch, progress.steps) == (0, 0):
        state, teacher = programs.start_task(state, plan.facts, root)
      state, alpha = _train_task(
          experiment, programs, plan, rows, state, teacher, root, progress, checkpoints, log, started, asked)
      counts = count_correct(state.params, state.batch_stats, plan.number + 1)
      exemplars = memory.select(
          rows, memory_config.per_class, memory_config.selection, seed=experiment.config.seed, task=plan.number,
          features=functools.partial(programs.features, state))
      progress = progress.after_task(counts, exemplars, time.monotonic() - started)
      found = results.summarize(experiment, progress)
      log.write(**results.task_row(experiment, plan, state, alpha, found, progress))
      log.sync()
      checkpoints.save(plan.stop_step, _items(state, None), dataclasses.asdict(progress))
      console.say(console.task_line(plan.number, found))
  return results.summarize(experiment, progress)


def _train_task(
    experiment: Experiment, programs: TrainPrograms, plan: TaskPlan, rows: list[np.ndarray], state: TrainState,
    teacher: Any, root: jax.Array, progress: Progress, checkpoints: checkpointing.Checkpoints, log: journal.Metrics,
    started: float, asked: Callable[[], bool]) -> tuple[TrainState, list[float]]:
  """The epochs of one task; returns the state and the last epoch's mean alpha of each class."""
  config = experiment.config
  everywhere = functools.partial(parallel.replicate, devices=experiment.devices)
  facts = everywhere(plan.facts)
  pool = experiments.pool(np.concatenate(rows), experiment.capacity)
  if plan.number == 0 or not experiment.method.uses_teacher:
    teacher = None
  folded = None if teacher is None else programs.fold_teacher(teacher)
  done = progress.epoch * plan.steps_per_epoch + progress.steps
  with meter.Meter(plan, num_tasks=len(experiment.plans), epochs=config.epochs, done=done, sums=progress.sums,
                   batch_size=config.batch_size, log=log, started=started) as measured, _blaming(lambda: state), \
       contextlib.closing(programs.feed(plan, pool, root, calls(
           plan, epochs=config.epochs, steps_per_call=programs.steps_per_call, epoch=progress.epoch,
           steps=progress.steps))) as fed:
    for call, inputs in fed:
      rate = learning_rate(call.epoch, schedule=config.schedule, base=config.learning_rate, epochs=config.epochs,
                           milestones=config.milestones, decay=config.learning_rate_decay)
      state, metrics_of_call = programs.run_epoch(
          state, folded, facts, inputs.data, inputs.pool, root,
          *everywhere((np.int32(call.epoch), inputs.first, inputs.stop, np.float32(rate))))
      measured.add(call, rate, metrics_of_call)
      epoch, steps = divmod(call.epoch * plan.steps_per_epoch + call.stop, plan.steps_per_epoch)
      leaving = asked()
      # The end of a task is saved with its accuracies and exemplars.
      if epoch < config.epochs and (leaving or steps == 0 and epoch % config.checkpoint_every_epochs == 0):
        measured.settle()
        log.sync()
        now = dataclasses.replace(progress, epoch=epoch, steps=steps, sums=measured.sums,
                                  seconds=time.monotonic() - started)
        step = plan.first_step + epoch * plan.steps_per_epoch + steps
        checkpoints.save(step, _items(state, teacher), dataclasses.asdict(now))
        if leaving:
          checkpoints.wait()
          raise Interrupted(f"step {step} is saved; the same command again goes on")
    measured.settle()
  return state, measured.alpha


@contextlib.contextmanager
def _blaming(state: Callable[[], TrainState]) -> Iterator[None]:
  """Adds to a divergence where it began: a step whose loss is not finite leaves the state as it found it."""
  try:
    yield
  except meter.Diverged as error:
    spoilt = finite.non_finite(state())
    raise meter.Diverged(
        f"{error}; " + (f"the step before has spoilt {finite.named(spoilt)}" if spoilt else
                        "every array of the state is finite, so it comes from this batch or from overflow in it") +
        "; the last checkpoint is kept: lower learning_rate, or look at the data") from error


def _items(state: TrainState, teacher: Any) -> dict[str, Any]:
  """The items of a checkpoint. Evaluation restores `model` alone."""
  items = {"model": {"params": state.params, "batch_stats": state.batch_stats},
           "training": {"step": state.step, "opt_state": state.opt_state, "method": state.method}}
  return items if teacher is None else {**items, "teacher": teacher}


def _resume(experiment: Experiment, programs: TrainPrograms, checkpoints: checkpointing.Checkpoints,
            root: jax.Array) -> tuple[Progress, TrainState, Any]:
  """Where the run stands: at the last checkpoint, or at its beginning."""
  abstract = experiment.abstract_state()

  def targets(record: dict[str, Any]) -> dict[str, Any]:
    begun, first = record["epoch"] > 0 or record["steps"] > 0, record["task"] == 0
    inside = begun and not first and experiment.method.uses_teacher
    return _items(abstract, {"params": abstract.params, "batch_stats": abstract.batch_stats} if inside else None)

  newest = processes.together(lambda: checkpoints.restore_newest(
      targets, warn=lambda line: console.say(f"warning: {line}")))
  processes.agree({"checkpoint to go on from": newest and newest[0]})
  if newest is None:
    return Progress(), programs.init(root), None
  step, record, found = newest
  progress, found = Progress.from_record(record), parallel.replicate(found, experiment.devices)
  console.say(f"going on after step {step}: {progress.task} tasks, {progress.epoch} epochs and {progress.steps} steps "
              f"are done")
  return progress, TrainState(**found["model"], **found["training"]), found.get("teacher")
