"""The function behind the main command; the task loop is in runs/loop.py."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from gr_jax import config as configuration
from gr_jax import origin
from gr_jax.devices import convolution_library, processes
from gr_jax.runs import console, events, replicas, signals
from gr_jax.runs import workdir as workdirs
from gr_jax.runs.loop import learn
from gr_jax.training import evaluation, pictures, programs
from gr_jax.training import experiment as experiments


def train(config: configuration.AnyConfig, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Trains a config to the end, or resumes the run in `workdir`.

  Args:
    config: see configs/.
    workdir: folder of the run; created if missing.

  Returns:
    The content of results.json.

  Raises:
    UserError: bad config or data, a workdir with another config, a checkpoint that cannot be written, processes
      that do not agree.
    FloatingPointError: the loss, or an array to be saved, is not finite.
    Interrupted: SIGTERM or Ctrl-C came during training; the progress is saved.
  """
  folder, config = workdirs.locate(workdir), configuration.check(config)
  if config.tensorboard:
    events.check()
  convolution_library.enable()
  processes.agree({**configuration.shared(config), "code": origin.code()["gr_jax"], "jax": jax.__version__})
  experiment = processes.together(lambda: experiments.load(
      config, before_data=lambda: replicas.check_configs(folder, config), progress=console.decoding,
      say=console.say))
  with workdirs.held(folder), replicas.locked(folder, config):
    # Once more: while this process waited or loaded its data, another one may have begun a run here.
    processes.together(lambda: replicas.check_configs(folder, config))
    processes.together(lambda: workdirs.check_scenario(folder, experiment))
    finished = processes.together(lambda: workdirs.finished(folder, experiment))
    processes.agree({"digest of the images": experiment.scenario.digest, "precision": experiment.precision,
                       "digest of the pictures": workdirs.pictures_digest(experiment),
                       "a finished run in the workdir": finished is not None})
    if finished is not None:
      console.say(f"the run in {folder} is finished; nothing to train\n{console.closing_table(finished)}")
      return finished
    console.say(f"{console.scenario_lines(experiment)}\n{experiment.path[1]}\n{console.computation_line(experiment)}")
    images, tests, holdout = processes.together(lambda: (
        pictures.load(experiment, "train", console.decoding, console.say),
        pictures.load(experiment, "holdout" if config.evaluate_on == "holdout" else "test", console.decoding,
                      console.say),
        pictures.load(experiment, "calibration", console.decoding, console.say)))
    processes.together(lambda: workdirs.write_start(folder, experiment))
    # Before this point a signal exits immediately: there is no progress to lose.
    with signals.listening() as asked_here:
      asked = functools.partial(_asked_anywhere, asked_here)
      if config.replicas > 1:
        summary = replicas.run_side_by_side(experiment, folder, images, (tests, holdout), functools.partial(
            learn, asked=asked, alone=False))
      else:
        summary = learn(experiment, programs.make_programs(experiment, images),
                        evaluation.make_evaluator(experiment, tests, holdout=holdout), folder, asked=asked)
    workdirs.write_results(folder, summary)
  console.say(console.closing_table(summary))
  return summary


def _asked_anywhere(asked_here: Callable[[], bool]) -> bool:
  """True on all processes if one was asked to exit, so that all stop after the same call."""
  return processes.any_process(asked_here())
