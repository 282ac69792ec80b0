"""Several trainings of one scenario with consecutive seeds, as one command.

Replicas share the drawn scenario, the decoded pictures and the compiled programs, into which a seed comes as an
argument. Each is a complete run in a folder of its own, so checkpoints, evaluation and resuming are those of a single
run. Where there are several devices, each takes a replica at a time; on one device they run one after another.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
import queue
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from gr_jax import console, results, workdir
from gr_jax import experiment as experiments
from gr_jax.experiment import Experiment
from gr_jax.state import Data


def member_config(config: ml_collections.ConfigDict, number: int) -> ml_collections.ConfigDict:
  """The config of replica `number` (from 0) as a run of its own: seed + number, replicas = 1."""
  member = config.copy_and_resolve_references()
  with member.unlocked():
    member.seed, member.replicas = config.seed + number, 1
  return member


def member_folder(folder: pathlib.Path, config: ml_collections.ConfigDict, number: int) -> pathlib.Path:
  """Where replica `number` (from 0) keeps its files."""
  return folder / f"seed-{config.seed + number}"


def run_side_by_side(
    experiment: Experiment, folder: pathlib.Path, pictures: Data, tests: Data,
    learn: Callable[..., dict[str, Any]]) -> dict[str, Any]:
  """Runs every replica that is not finished; returns their mean, standard deviation and results.

  Args:
    experiment: of the config with `replicas` above 1.
    folder: of the whole; replicas have theirs inside.
    pictures, tests: decoded training and test pictures.
    learn: (experiment, programs, count_correct, folder) -> results: train.learn.
  """
  count = experiment.config.replicas
  groups: queue.SimpleQueue = queue.SimpleQueue()
  workers = min(count, len(experiment.devices))
  for device in experiment.devices[:workers]:
    groups.put(_Group(experiment, device, pictures, tests))

  def run(number: int) -> dict[str, Any]:
    group = groups.get()
    try:
      config, own = member_config(experiment.config, number), member_folder(folder, experiment.config, number)
      return group.run(config, own, learn)
    finally:
      groups.put(group)

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    found = list(pool.map(run, range(count)))
  return results.over_replicas(found)


class _Group:
  """One device with its programs, which every replica that runs there shares."""

  def __init__(self, experiment: Experiment, device: jax.Device, pictures: Data, tests: Data):
    self._experiment = dataclasses.replace(experiment, devices=(device,))
    self._programs = experiments.train_programs(self._experiment, pictures)
    self._count_correct = experiments.evaluator(self._experiment, tests)

  def run(self, config: ml_collections.ConfigDict, folder: pathlib.Path,
          learn: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    member = dataclasses.replace(self._experiment, config=config)
    workdir.check_config(folder, config)
    workdir.check_scenario(folder, member)
    finished = workdir.finished(folder, member)
    if finished is not None:
      return finished
    workdir.write_start(folder, member)
    console.say(f"seed {config.seed} on {self._experiment.devices[0]}: {folder}")
    found = learn(member, self._programs, self._count_correct, folder)
    workdir.write_results(folder, found)
    return found
