"""Checks configs against their data set and this machine: python -m gr_jax.comparing.probe < configs.json

A process of its own, because the comparison itself must not occupy a GPU. Reads {"missing": {name: flat config},
"finished": {name: [folder, flat config]}} of one data set; prints {"platforms": ..., "steps": {name: ...},
"resident": ...}, or {"name": ..., "error": ...}.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from gr_jax import config as configuration
from gr_jax.comparing import runner
from gr_jax.config import Config
from gr_jax.errors import UserError
from gr_jax.runs import workdir
from gr_jax.training import experiment


class Report(NamedTuple):
  """What the process reports.

  Attributes:
    platforms: of the devices that it sees.
    steps: label of a run -> its number of steps.
    resident: whether all pictures stay on the device.
  """
  platforms: Sequence[str]
  steps: Mapping[str, int]
  resident: bool


def probe(missing: Mapping[str, Config], finished: Mapping[str, tuple[pathlib.Path, Config]]) -> Report:
  """Loads every config in a separate process.

  Args:
    missing: configs of the runs that are to be trained, by label.
    finished: folders and configs of those that are done.

  Raises:
    UserError: a config that cannot be run, or a finished run on other images than there are now, which the message
      names; or devices that JAX cannot use.
  """
  asked = {"missing": {name: configuration.flatten(config) for name, config in missing.items()},
           "finished": {name: [str(folder), configuration.flatten(config)]
                        for name, (folder, config) in finished.items()}}
  done = subprocess.run(
      [sys.executable, "-m", "gr_jax.comparing.probe"], text=True, capture_output=True, check=False,
      input=json.dumps(asked))
  if done.returncode:
    # Tells devices that cannot be used from a bug.
    runner.platforms()
    raise RuntimeError(f"the check of the configs failed:\n{done.stderr}")
  reply = json.loads(done.stdout.splitlines()[-1])
  if "error" in reply:
    raise UserError(f"{reply['name']}: {reply['error']}")
  return Report(reply["platforms"], reply["steps"], reply["resident"])


def _look(missing: Mapping[str, Mapping[str, Any]], finished: Mapping[str, Any]) -> dict[str, Any]:
  """The content of the answer."""
  source, steps, resident = None, {}, True
  for name, flat in missing.items():
    try:
      loaded = experiment.load(configuration.check(_with_tuples(flat)), source=source)
      resident = resident and loaded.path[0] == "resident"
    except UserError as error:
      return {"name": name, "error": str(error)}
    source = loaded.source
    steps[name] = loaded.plans[loaded.stop_after_task - 1].stop_step
  for name, (folder, flat) in finished.items():
    try:
      # A chosen setting may have changed what is drawn; only the place of the data is that of this command.
      saved = configuration.flatten(workdir.read_config(pathlib.Path(folder)))
      loaded = experiment.load(configuration.check({**saved, **{key: flat[key] for key in ("data_dir", "cache_dir")}}),
                               source=source)
      workdir.check_scenario(pathlib.Path(folder), loaded)
    except UserError as error:
      return {"name": name, "error": str(error)}
    source = loaded.source
  return {"platforms": [device.platform for device in jax.local_devices()], "steps": steps, "resident": resident}


def _with_tuples(flat: Mapping[str, Any]) -> dict[str, Any]:
  """JSON has no tuples."""
  return {key: tuple(value) if isinstance(value, list) else value for key, value in flat.items()}


if __name__ == "__main__":
  # Standard output is the answer.
  with contextlib.redirect_stdout(sys.stderr):
    answer = _look(**json.load(sys.stdin))
  print(json.dumps(answer))
