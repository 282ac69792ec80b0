"""SIGTERM and Ctrl-C: saved and ended with 75, a second one ends at once; SIGKILL. Gone on with, all end bit-equal."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import builders
import pytest
import runs

from gr_jax import evaluate, train
from gr_jax.runs import signals

_FLAGS = ("--config=configs/digits_lt.py", "--config.epochs=16", "--config.milestones=(8,)",
          "--config.scenario.num_tasks=3", "--config.checkpoint_every_epochs=16", "--config.steps_per_call=1")


def has_row(workdir, text):
  path = workdir / "metrics.jsonl"
  return path.exists() and any(text in line for line in path.read_text().splitlines())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("unbroken") / "run"
  assert runs.run("main", *_FLAGS, f"--workdir={workdir}").returncode == 0
  return workdir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_inside_a_task_and_the_run_goes_on(unbroken, tmp_path, number):
  broken = tmp_path / "broken"
  process = runs.start("main", *_FLAGS, f"--workdir={broken}")
  runs.wait_for(lambda: has_row(broken, '"task": 2, "epoch": 6,'), process)
  process.send_signal(number)
  _, said = process.communicate(timeout=60)
  assert process.returncode == signals.EXIT_CODE == 75, said
  assert f"{number.name}: will save" in said and "rerun the command to resume" in said
  step, record = runs.newest(broken)
  # No checkpoint was due: this one was made for the signal.
  assert record["task"] == 1 and 0 < record["epoch"] < 16
  assert not (broken / "results.json").exists()
  again = runs.run("main", *_FLAGS, f"--workdir={broken}")
  assert again.returncode == 0, again.stderr
  assert f"resuming after step {step}: 1 tasks, {record['epoch']} epochs and {record['steps']} steps" in again.stdout
  for row in runs.rows(broken):
    assert row["start"] == (1 if row["global_step"] <= step else 2)
  runs.assert_equal(unbroken, broken)


def test_killed_inside_a_task_with_a_teacher(unbroken, tmp_path):
  """SIGKILL after a checkpoint inside task 2; the same run goes on and ends bit-equal."""
  broken = tmp_path / "broken"
  process = runs.start("main", *_FLAGS, "--config.checkpoint_every_epochs=4", f"--workdir={broken}")

  def begun():
    """Saving goes on in the background; with its last move a checkpoint's folder has its name."""
    if not has_row(broken, '"task": 2, "epoch": 6,'):
      return False
    (end,) = (json.loads(line)["global_step"] for line in (broken / "metrics.jsonl").read_text().splitlines()
              if '"kind": "task"' in line)
    return any(path.name.isdigit() and int(path.name) > end for path in (broken / "checkpoints").iterdir())

  runs.wait_for(begun, process)
  process.kill()
  assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
  step, record = runs.newest(broken)
  assert record["task"] == 1 and record["epoch"] in (4, 8, 12), "not inside task 2"
  with open(broken / "metrics.jsonl", "a") as file:
    file.write('{"kind": "epoch", "ta')  # What a kill inside a write leaves behind.
  again = runs.run("main", *_FLAGS, f"--workdir={broken}")
  assert again.returncode == 0, again.stderr
  assert f"resuming after step {step}" in again.stdout
  for row in runs.rows(broken):
    assert row["start"] == (1 if row["global_step"] <= step else 2)
  runs.assert_equal(unbroken, broken)


# Calls of two of an epoch's nine steps, so that interruptions fall inside epochs of the first task. The checkpoint of
# an interruption in the last one would stay, as one of the two newest.
_CALLS = {"steps_per_call": 2, "stop_after_task": 2, "checkpoint_every_epochs": 3}


@pytest.fixture(scope="module")
def unbroken_here(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("unbroken here") / "run"
  train.train(runs.short(**_CALLS), workdir)
  return workdir


@pytest.mark.parametrize("after", [1, 2, 7, 12])
def test_interrupted_after_any_call(unbroken_here, tmp_path, monkeypatch, after):
  """Sums and all go on exactly."""

  @contextlib.contextmanager
  def asking_at_a_certain_call():
    calls = iter(range(1, 10**6))
    # Once at the beginning of the task, then after each call.
    yield lambda: next(calls) > after

  with monkeypatch.context() as patch:
    patch.setattr(signals, "listening", asking_at_a_certain_call)
    with pytest.raises(signals.Interrupted, match="rerun the command to resume"):
      train.train(runs.short(**_CALLS), tmp_path / "run")
  # Another length of the calls changes nothing but the rounding of sums.
  train.train(runs.short(**_CALLS), tmp_path / "run")
  runs.assert_equal(unbroken_here, tmp_path / "run")


_DEAF = """
import numpy as np
from gr_jax.runs import signals
with signals.listening():
  print("begun", flush=True)
  np.linalg.svd(np.random.default_rng(0).normal(size=(9000, 9000)))
"""


def test_a_second_signal_ends_at_once(tmp_path):
  """Also while the main thread is deep inside a library, where Python's own handlers would wait for minutes."""
  process = subprocess.Popen([sys.executable, "-c", _DEAF], env=runs.environment(), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
  try:
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: will save" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
  finally:
    process.kill()
    process.communicate()


def test_handlers_are_put_back_and_other_threads_left_alone():
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  with signals.listening() as asked:
    assert not asked()
    os.kill(os.getpid(), signal.SIGTERM)
    runs.wait_for(asked)
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
  heard = []

  def elsewhere():
    with signals.listening() as asked:
      heard.append(asked())

  thread = threading.Thread(target=elsewhere)
  thread.start()
  thread.join()
  assert heard == [False] and signal.getsignal(signal.SIGTERM) == before[0]


def test_replicas_are_interrupted_together(tmp_path):
  flags = ("--config=configs/digits_lt.py", "--config.epochs=200", "--config.milestones=()", "--config.replicas=2",
           "--config.scenario.num_tasks=2", f"--workdir={tmp_path / 'run'}", "--config.checkpoint_every_epochs=200")
  process = runs.start("main", *flags)
  folders = [tmp_path / "run" / f"seed-{seed}" for seed in (0, 1)]
  runs.wait_for(lambda: all(has_row(folder, '"epoch": 2,') for folder in folders), process)
  process.terminate()
  _, said = process.communicate(timeout=60)
  assert process.returncode == 75, said
  for folder in folders:
    (record,) = runs.records(folder).values()
    assert record["task"] == 0 and record["epoch"] >= 2
    # A replica is a run of its own, and nothing of it is finished.
    with pytest.raises(ValueError, match="no checkpoint of a finished task"):
      evaluate.evaluate(folder, 1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "mixed"])
def test_a_resnet32_run_again_and_killed_is_bit_equal(tmp_path, precision):
  """With this jaxlib's convolution library: photographs in CIFAR-100's own form, two tasks of ten classes."""
  builders.cifar100(tmp_path / "data", per_class=24, test_per_class=2)
  flags = ("--config=configs/cifar100_lt.py", f"--config.data_dir={tmp_path / 'data'}", "--config.epochs=3",
           "--config.milestones=(2,)", "--config.batch_size=32", "--config.checkpoint_every_epochs=1",
           "--config.scenario.kind=natural", "--config.stop_after_task=2", "--config.memory.per_class=4",
           "--config.scenario.num_tasks=10", "--config.scenario.first_task_classes=None",
           f"--config.precision={precision}")
  folders = [tmp_path / name for name in ("unbroken", "again", "killed")]
  process = runs.start("main", *flags, f"--workdir={folders[2]}")
  runs.wait_for(lambda: has_row(folders[2], '"task": 2, "epoch": 2,'), process)
  process.kill()
  assert process.wait() == -signal.SIGKILL and not (folders[2] / "results.json").exists()
  for folder in folders:
    done = runs.run("main", *flags, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
  assert "resuming after step" in done.stdout
  runs.assert_equal(folders[0], folders[1])
  runs.assert_equal(folders[0], folders[2])
