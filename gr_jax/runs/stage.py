"""One stage of a task: runs chunks of steps on the device, saves, and exits after a signal."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from gr_jax.data import feed
from gr_jax.devices import parallel
from gr_jax.methods.base import Stage
from gr_jax.runs import bar, journal, meter, results
from gr_jax.runs.checkpoints import Checkpoints
from gr_jax.runs.results import Progress
from gr_jax.runs.signals import Interrupted
from gr_jax.scenario.plan import Chunk, StagePlan, chunks
from gr_jax.training import finite
from gr_jax.training.experiment import Experiment
from gr_jax.training.program import Window
from gr_jax.training.programs import Programs, pool
from gr_jax.training.state import TrainState


class Standing(NamedTuple):
  """The current state of a run.

  Attributes:
    progress: how far the run has come.
    state: parameters, and the optimizer's and rule's state of the stage.
    carry: what is kept from task to task, and from stage to stage.
    teacher: the model that losses compare with (Stage.teacher), inside a task that has one; else None.
  """
  progress: Progress
  state: TrainState
  carry: dict[str, Any]
  teacher: Any


class Saving(NamedTuple):
  """Where a run writes, when it started (time.monotonic(), minus earlier starts), and whether it should exit."""
  checkpoints: Checkpoints
  log: journal.Metrics
  started: float
  asked: Callable[[], bool]


def items(state: TrainState, carry: dict[str, Any], teacher: Any = None) -> dict[str, Any]:
  """The items of a checkpoint. Evaluation restores only `model`; momentum and rule are saved only inside a stage."""
  model = {"params": state.params, "batch_stats": state.batch_stats, **({"carry": carry} if carry else {})}
  training = {"step": state.step}
  if state.opt_state != ():
    training |= {"opt_state": state.opt_state, "rule": state.rule}
  if jax.tree.leaves(state.tracked):
    training |= {"tracked": state.tracked}
  return {"model": model, "training": training, **({} if teacher is None else {"teacher": teacher})}


def run_stage(experiment: Experiment, programs: Programs, plan: StagePlan, rows: np.ndarray, standing: Standing,
              saving: Saving) -> tuple[TrainState, dict[str, Any], Progress]:
  """Runs the epochs of a stage; returns the state after it, without momentum and rule, the carry and the progress.

  Args:
    experiment, programs: of the run.
    plan: of the stage.
    rows: of the training pictures that are used.
    standing: before or inside the stage.
    saving: see `Saving`.

  Raises:
    Interrupted: the run was asked to exit, and has saved.
    Diverged: the loss is not finite.
  """
  stage, every = experiment.method.stages[plan.index], experiment.config.checkpoint_every_epochs
  compiled, (progress, state, carry, teacher) = programs.stages[plan.index], standing
  if not progress.inside_stage:
    state, carry = compiled.begin(state, carry, plan.context, rows, experiment.root)
  # The program takes the folded teacher; checkpoints hold the original.
  kept = teacher if plan.number and experiment.method.uses_teacher else None
  folded = _folded(stage, programs, plan, teacher, carry)
  on_devices = functools.partial(parallel.replicate, devices=experiment.devices)
  context = on_devices(plan.context)
  with _measuring(experiment, plan, progress, saving) as measured, _blaming(lambda: state), \
      contextlib.closing(_fed(experiment, programs, plan, rows, carry, progress)) as fed:
    for chunk, inputs in fed:
      window = Window(inputs.pool, experiment.root, *on_devices((np.int32(chunk.epoch), inputs.first, inputs.stop)))
      state, metrics = compiled.run(state, folded, context, inputs.data, window)
      measured.add(chunk, metrics)
      epoch, steps = divmod(chunk.epoch * plan.steps_per_epoch + chunk.stop, plan.steps_per_epoch)
      leaving = saving.asked()
      # The end of a task is saved with accuracies and exemplars (loop.learn), the end of a stage below.
      if epoch < plan.epochs and (leaving or steps == 0 and epoch % every == 0):
        measured.settle()
        now = dataclasses.replace(progress, epoch=epoch, steps=steps, sums=measured.sums,
                                  seconds=time.monotonic() - saving.started)
        _save(saving, plan.first_step + epoch * plan.steps_per_epoch + steps, items(state, carry, kept), now, leaving)
    measured.settle()
  summary = {name: np.asarray(values).tolist() for name, values in stage.summary(
      state.rule, plan.stop_step - plan.first_step).items()}
  progress = progress.after_stage({**summary, **measured.reports}, time.monotonic() - saving.started)
  state, carry = compiled.end(state, carry, plan.context)
  if plan.stop_step < experiment.plans[plan.number].stop_step:
    _save(saving, plan.stop_step, items(state, carry, kept), progress, saving.asked())
  return state, carry, progress


def _folded(stage: Stage, programs: Programs, plan: StagePlan, teacher: Any, carry: dict[str, Any]) -> Any:
  """The networks that the stage compares with, with batch norm folded; None without any."""
  folded = programs.fold_teacher(teacher) if plan.number and stage.uses_teacher else None
  return folded if stage.growth is None else {**(folded or {}), "carry": programs.fold_carry(carry)}


def _fed(experiment: Experiment, programs: Programs, plan: StagePlan, rows: np.ndarray, carry: dict[str, Any],
         progress: Progress) -> Generator[tuple[Chunk, feed.Inputs], None, None]:
  """The chunks of steps that are left, with their inputs."""
  remaining = chunks(plan, steps_per_call=programs.steps_per_call, epoch=progress.epoch, steps=progress.steps)
  if experiment.method.stages[plan.index].source is not None:
    return feed.without_pictures(carry, remaining, experiment.devices)
  return programs.feed(plan, pool(rows, experiment.capacity), experiment.root, remaining)


def _measuring(experiment: Experiment, plan: StagePlan, progress: Progress, saving: Saving) -> meter.Meter:
  return meter.Meter(
      plan, outlook=_outlook(experiment, progress), log=saving.log, started=saving.started, sums=progress.sums,
      rates=experiment.learning_rates(experiment.method.stages[plan.index]),
      done=progress.epoch * plan.steps_per_epoch + progress.steps)


def _outlook(experiment: Experiment, progress: Progress) -> bar.Outlook:
  average = results.summarize(experiment, progress)["average_incremental_accuracy"] if progress.task else None
  return bar.Outlook(len(experiment.plans), experiment.plans[experiment.stop_after_task - 1].stop_step, average)


def _save(saving: Saving, step: int, content: dict[str, Any], progress: Progress, leaving: bool) -> None:
  saving.log.sync()
  saving.checkpoints.save(step, content, dataclasses.asdict(progress))
  if leaving:
    saving.checkpoints.wait()
    raise Interrupted(f"step {step} is saved; rerun the command to resume")


@contextlib.contextmanager
def _blaming(state: Callable[[], TrainState]) -> Iterator[None]:
  """Adds the origin to a divergence. A step with a non-finite loss does not change the state."""
  try:
    yield
  except meter.Diverged as error:
    bad = finite.non_finite(state())
    raise meter.Diverged(
        f"{error}; " + (f"{finite.named(bad)} became non-finite in the previous step" if bad else
                        "every array of the state is finite, so the cause is this batch or an overflow in it") +
        "; the last checkpoint is kept; lower learning_rate or check the data") from error
