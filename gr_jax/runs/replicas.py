"""Trains one scenario with several consecutive seeds in one command.

Replicas share the drawn scenario, the decoded pictures and the compiled programs, which take the seed as an argument.
Each replica is a complete run in its own folder, so checkpoints, evaluation and resuming work as for a single run.
With several devices, each device trains one replica at a time.

On one device, replicas are not vectorised into one program: `vmap` creates grouped convolutions, which took 4.4 times
as long as sequential runs on a CPU (`python -m gr_jax.benchmark --replicas=2`), and copies of the step in one program
gained nothing. Two host threads on one CPU gained a fifth, so that is what a CPU uses. On GPUs this has not been
measured; there, replicas run one after another.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import queue
from collections.abc import Callable, Iterator
from typing import Any

import jax

from gr_jax.config import Config
from gr_jax.data.arrays import Data
from gr_jax.data.stream import Originals
from gr_jax.runs import console, results, workdir
from gr_jax.training import evaluation, programs
from gr_jax.training.experiment import Experiment

# Replicas at a time on a machine that has only a CPU.
_CPU_THREADS = 2


def member_config(config: Config, number: int) -> Config:
  """The config of replica `number` (from 0) as a separate run: seed + number, replicas = 1."""
  return dataclasses.replace(config, seed=config.seed + number, replicas=1)


def member_folder(folder: pathlib.Path, config: Config, number: int) -> pathlib.Path:
  """The folder of replica `number` (from 0)."""
  return folder / f"seed-{config.seed + number}"


def check_configs(folder: pathlib.Path, config: Config) -> None:
  """`workdir.check_config` for a run, and for each of its replicas that has a folder.

  So no replica is trained where another one has another config.
  """
  workdir.check_config(folder, config)
  if config.replicas == 1:
    return
  for number in range(config.replicas):
    if member_folder(folder, config, number).exists():
      workdir.check_config(member_folder(folder, config, number), member_config(config, number))


def run_side_by_side(
    experiment: Experiment, folder: pathlib.Path, pictures: Data | Originals, evaluated: tuple[Data, Data],
    learn: Callable[..., dict[str, Any]]) -> dict[str, Any]:
  """Runs every unfinished replica; returns mean, standard deviation and the results of each.

  Args:
    experiment: of the config with `replicas` above 1.
    folder: parent of the replicas' folders.
    pictures: training pictures.
    evaluated: test pictures and held-out ones.
    learn: (experiment, programs, evaluate, folder) -> results: loop.learn.

  Raises:
    Interrupted: the run was asked to exit; every replica that had started has saved.
    FloatingPointError: of the first replica that diverged, after the others have ended.
  """
  count = experiment.config.replicas
  free: queue.SimpleQueue = queue.SimpleQueue()
  devices = experiment.devices[:count]
  at_once = _CPU_THREADS if devices[0].platform == "cpu" and len(devices) == 1 else 1
  for group in [_Group(experiment, device, pictures, evaluated) for device in devices]:
    for _ in range(at_once):
      free.put(group)

  def run(number: int) -> dict[str, Any]:
    group = free.get()
    try:
      config = member_config(experiment.config, number)
      return group.run(config, member_folder(folder, experiment.config, number), learn)
    except FloatingPointError as error:
      raise FloatingPointError(f"seed {experiment.config.seed + number}: {error}") from error
    finally:
      free.put(group)

  with concurrent.futures.ThreadPoolExecutor(min(count, at_once * len(devices))) as pool:
    replicas = [pool.submit(run, number) for number in range(count)]
    for replica in concurrent.futures.as_completed(replicas):
      error = replica.exception()
      # One that diverges says nothing of the others. After anything else no further one begins.
      if error is not None and not isinstance(error, FloatingPointError):
        pool.shutdown(wait=False, cancel_futures=True)
        # Cancelled ones would never be seen as completed.
        break
  errors = [error for replica in replicas if not replica.cancelled() and (error := replica.exception()) is not None]
  if errors:
    raise min(errors, key=lambda error: isinstance(error, FloatingPointError))
  return results.over_replicas([replica.result() for replica in replicas])


@contextlib.contextmanager
def locked(folder: pathlib.Path, config: Config) -> Iterator[None]:
  """Locks the folders of all replicas against jobs that train one of them alone; makes those that are missing.

  Raises:
    UserError: another job is using one of them.
  """
  with contextlib.ExitStack() as stack:
    for number in range(config.replicas if config.replicas > 1 else 0):
      member = member_folder(folder, config, number)
      member.mkdir(exist_ok=True)
      stack.enter_context(workdir.locked(member))
    yield


class _Group:
  """One device and its programs, shared by all replicas that run on it."""

  def __init__(self, experiment: Experiment, device: jax.Device, pictures: Data | Originals,
               evaluated: tuple[Data, Data]):
    self._experiment = dataclasses.replace(experiment, devices=(device,))
    self._programs = programs.make_programs(self._experiment, pictures)
    tests, holdout = evaluated
    self._evaluate = evaluation.make_evaluator(self._experiment, tests, holdout=holdout)

  def run(self, config: Config, folder: pathlib.Path,
          learn: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    member = dataclasses.replace(self._experiment, config=config)
    workdir.check_config(folder, config)
    workdir.check_scenario(folder, member)
    finished = workdir.finished(folder, member)
    if finished is not None:
      return finished
    workdir.write_start(folder, member)
    console.say(f"seed {config.seed} on {self._experiment.devices[0]}: {folder}")
    summary = learn(member, self._programs, self._evaluate, folder)
    workdir.write_results(folder, summary)
    return summary
