"""The network of a run as it was after one of its tasks, from the checkpoint."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax

from gr_jax import config as configuration
from gr_jax.config import Config
from gr_jax.errors import UserError
from gr_jax.methods.base import without_nearest_mean
from gr_jax.runs import replicas, workdir
from gr_jax.runs.checkpoints import Checkpoints, DamagedCheckpoint
from gr_jax.runs.stage import items
from gr_jax.training.experiment import Experiment


class Restored(NamedTuple):
  """A finished task of a run.

  Attributes:
    task: after which task, from 1.
    record: JSON of its checkpoint, see results.Progress.
    network: {"params", "batch_stats", "carry"} of NumPy arrays.
  """
  task: int
  record: dict[str, Any]
  network: dict[str, Any]


def read_config(folder: pathlib.Path, **changes: Any) -> Config:
  """The config of the single run in a folder, with keys changed.

  Raises:
    UserError: no run, one with replicas, or a config that cannot be used.
  """
  if not (folder / "config.json").is_file():
    raise UserError(f"{folder} holds no run (no config.json); set --workdir to the folder of a run")
  config = configuration.check({**workdir.read_config(folder), **changes})
  if config.precision == "auto":
    # What it stood for where the run was trained, so that its accuracies come out again.
    trained = workdir.saved_precision(folder, config.precision)
    usable = trained != "tf32" or jax.devices()[0].platform == "gpu"
    config = dataclasses.replace(config, precision=trained if usable else "float32")
  if config.replicas > 1:
    folders = [replicas.member_folder(folder, config, number) for number in range(config.replicas)]
    raise UserError(f"{folder} holds {config.replicas} replicas; choose one of them: --workdir={folders[0]}, ..., "
                    f"{folders[-1].name}")
  return config


def as_trained(folder: pathlib.Path, experiment: Experiment) -> Experiment:
  """The experiment with the scores that the run recorded.

  Until format 3 the nearest mean of exemplars was recorded only for methods that predict by it.
  """
  with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
    for step in checkpoints.steps():
      try:
        written = checkpoints.record(step)["format"]
      except DamagedCheckpoint:
        # Reported if it is the one that is asked for.
        continue
      return experiment if written > 3 else dataclasses.replace(
          experiment, method=without_nearest_mean(experiment.method))
  return experiment


def after_task(folder: pathlib.Path, experiment: Experiment, task: int | None) -> Restored:
  """Restores the network after a task; reads only the record and the item `model`, so the folder may be read-only.

  Args:
    folder: of the run.
    experiment: of the run's config.
    task: from 1; None: the last finished one.

  Raises:
    UserError: no such task, an unreadable checkpoint.
  """
  with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
    ends = {plan.stop_step: plan.number + 1 for plan in experiment.plans}
    done = {ends[step]: step for step in checkpoints.steps() if step in ends}
    if not done:
      raise UserError(f"{folder} has no checkpoint of a finished task yet; rerun the training command to resume")
    task = max(done) if task is None else task
    if task not in done:
      raise UserError(f"--task is {task}; {folder} has checkpoints after task {', '.join(map(str, sorted(done)))}")
    record = checkpoints.record(done[task])
    network = checkpoints.restore(done[task], {"model": items(experiment.abstract_state(), jax.eval_shape(
        experiment.init_carry))["model"]})["model"]
  return Restored(task, record, {"carry": {}, **network})
