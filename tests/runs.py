"""Short digits runs for tests: configs, subprocesses, and what two runs must share to the bit."""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import forked
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

_OPTIONS = "method_options."

# What depends on the clock or on how often a run was started; a record's own digest covers its seconds.
_OF_THE_MOMENT = ("seconds", "start", "digest")


def get_config(name, **changes):
  """The config of configs/<name>.py with keys changed; nested keys with dots."""
  spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.update_from_flattened_dict({key: value for key, value in changes.items() if not key.startswith(_OPTIONS)})
  # Which options there are depends on the method, so a config file need not name any.
  with config.unlocked():
    for key, value in changes.items():
      if key.startswith(_OPTIONS):
        config.method_options[key.removeprefix(_OPTIONS)] = value
  return config


# Three tasks, three epochs each: two seconds, once compiled, which takes half a minute. So that this happens once for
# the whole suite, tests keep to these settings if they can; keys that may change between two starts compile nothing.
# "auto" may be another precision on the processor at hand.
_SHORT = {"precision": "float32", "epochs": 3, "milestones": (2,), "scenario.num_tasks": 3,
          "checkpoint_every_epochs": 1, "evaluation_block": 50}


def short(**changes):
  """The config of a short run on digits."""
  return get_config("digits_lt", **{**_SHORT, **changes})


# The same run by command.
SHORT = ("--config=configs/digits_lt.py", *(f"--config.{key}={value}" for key, value in _SHORT.items()))


# What programs take as an argument, and what they do not depend on.
_NOT_OF_THE_PROGRAMS = ("seed", "stop_after_task", "checkpoint_every_epochs", "tensorboard")


@contextlib.contextmanager
def sharing_programs():
  """Inside, runs in this process with the same config and pictures share their programs, as replicas do.

  Pictures that travel to the device are left out: their programs belong to open files and processes.
  """
  from gr_jax import config as configuration
  from gr_jax.data.arrays import Data
  from gr_jax.training import evaluation, programs
  made = {}

  def shared(make):
    @functools.wraps(make)
    def made_once(experiment, pictures, **options):
      if not isinstance(pictures, Data) or experiment.path[0] != "resident":
        return make(experiment, pictures, **options)
      flat = configuration.flatten(experiment.config)
      content = hashlib.sha256()
      for array in (*pictures, *(options.get("holdout") or ())):
        content.update(array.tobytes())
      others = tuple((name, value) for name, value in options.items() if name != "holdout")
      key = (make, others, experiment.devices, experiment.precision, content.digest(),
             *((name, str(flat[name])) for name in sorted(flat) if name not in _NOT_OF_THE_PROGRAMS))
      if key not in made:
        made[key] = make(experiment, pictures, **options)
      return made[key]
    return made_once

  with pytest.MonkeyPatch.context() as patch:
    for module, name in ((programs, "make_programs"), (evaluation, "make_evaluator")):
      patch.setattr(module, name, shared(getattr(module, name)))
    yield


def command(module, *flags):
  return [sys.executable, "-m", f"gr_jax.{module}", *flags]


def environment(**changes):
  return {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT), **changes}


def start(module, *flags, **environment_changes):
  """Starts a command of the package in a process of its own."""
  return forked.Process(module, flags, environment=environment(**environment_changes), folder=ROOT)


def run(module, *flags, timeout=900, **environment_changes):
  """Runs a command of the package to its end; returns the finished process with its output as text."""
  process = start(module, *flags, **environment_changes)
  try:
    return subprocess.CompletedProcess(flags, process.wait(timeout), *process.communicate())
  finally:
    process.kill()


def run_python(module, *flags, **environment_changes):
  """As `run`, by a start of Python, which takes seconds."""
  return subprocess.run(command(module, *flags), env=environment(**environment_changes), cwd=ROOT, text=True,
                        capture_output=True, timeout=900, check=False)


def wait_for(condition, process=None):
  """Until a condition holds; fails if the process ends before."""
  deadline = time.monotonic() + 900
  while not condition():
    assert time.monotonic() < deadline and (process is None or process.poll() is None), "it did not come to that"
    time.sleep(0.005)


def place(port, count, index):
  """The flag that makes a command process `index` of `count` on this machine."""
  return f"--config.distributed=127.0.0.1:{port},{count},{index}"


def free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def start_several(flags_of_each, *, devices=2, environments=None):
  """Starts gr_jax.main once for each list of flags, as processes of one run; returns them, outputs in one.

  A process has `devices` CPU devices, and a host thread for each of their collectives: with fewer, they can wait for
  each other forever. With `environments`, Python is started: another PYTHONPATH is another package.
  """
  port, count = free_port(), len(flags_of_each)

  def begin(index):
    flags = *flags_of_each[index], place(port, count, index)
    shared = {"JAX_NUM_CPU_DEVICES": str(devices), "NPROC": str(4 * devices)}
    if environments is None:
      return forked.Process("main", flags, environment=environment(**shared), folder=ROOT, merged=True)
    return subprocess.Popen(command("main", *flags), cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, env=environment(**shared, **environments[index]))

  return [begin(index) for index in range(count)]


def end_several(processes, timeout=240):
  """Waits for all; returns the (exit code, output) of each. One that does not end is killed, and fails the test."""
  try:
    return [(process.returncode, output) for process in processes
            for output in [process.communicate(timeout=timeout)[0]]]
  finally:
    for process in processes:
      if process.poll() is None:
        process.kill()
        process.communicate()


def rows(workdir, kind=None):
  lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  return [row for row in map(json.loads, lines) if kind in (None, row["kind"])]


def timeless(content):
  """A result or row without what depends on the clock."""
  return {key: value for key, value in content.items() if key not in _OF_THE_MOMENT}


def results(workdir):
  return json.loads((pathlib.Path(workdir) / "results.json").read_text())


def records(workdir):
  """Global step -> the JSON record of each checkpoint, array digests and exemplars included."""
  from gr_jax.runs.checkpoints import Checkpoints
  with Checkpoints(pathlib.Path(workdir) / "checkpoints", read_only=True) as checkpoints:
    return {step: timeless(checkpoints.record(step)) for step in checkpoints.steps()}


def newest(workdir):
  """(global step, JSON record) of the newest checkpoint; a kill may have left half of an older one."""
  from gr_jax.runs.checkpoints import Checkpoints
  with Checkpoints(pathlib.Path(workdir) / "checkpoints", read_only=True) as checkpoints:
    step = checkpoints.steps()[-1]
    return step, timeless(checkpoints.record(step))


def kill_the_parent_alone(job):
  """SIGKILL to the leader of a process group; those that worked for it are to leave by themselves."""
  job.kill()
  job.wait()
  deadline = time.monotonic() + 30
  with pytest.raises(ProcessLookupError):
    while time.monotonic() < deadline:
      os.killpg(job.pid, 0)
      time.sleep(0.05)


def assert_equal(workdir, other):
  """Bit-equal: accuracies, every row, and by digest parameters, statistics, momentum, Phi and exemplars."""
  assert timeless(results(workdir)) == timeless(results(other))
  assert list(map(timeless, rows(workdir))) == list(map(timeless, rows(other)))
  ours, theirs = records(workdir), records(other)
  assert ours.keys() == theirs.keys()
  for step in ours:
    assert ours[step] == theirs[step]
