"""The command: bad input, two at a time, killed and started again; and on a folder of pictures."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import photographs
import pytest
import runs

from gr_jax.errors import UserError
from gr_jax.runs import workdir

HERE = pathlib.Path(__file__).resolve().parent


def start(root, *flags, **environment):
  """The command with stand-ins for its runs."""
  return subprocess.Popen(
      [sys.executable, HERE / "with_stand_in.py", "--config=configs/digits_lt.py", f"--workdir={root}", *flags],
      env=runs.environment(PYTHONPATH=f"{runs.ROOT}:{HERE}", **environment), cwd=runs.ROOT, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(path, seconds=60):
  deadline = time.monotonic() + seconds
  while not (path.exists() and path.stat().st_size):
    assert time.monotonic() < deadline, path
    time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed_and_started_again_it_does_no_work_twice(tmp_path, number):
  """Its run saves and frees its folder even if the command had no time to ask for it; then more methods are added."""
  flags, times = ("--methods=gr,wa", "--seeds=1"), {"STEPS": "8", "STEP_SECONDS": "0.25"}
  log = tmp_path / "runs" / "gr" / "seed-0" / "steps.log"
  command = start(tmp_path, *flags, **times)
  try:
    wait_for(log)
    # While it is running, nobody else may use the folder.
    with pytest.raises(UserError, match="another job is using"), workdir.locked(tmp_path):
      pass
    os.kill(command.pid, number)
    assert command.wait(timeout=60) == (75 if number == signal.SIGTERM else -number)
  finally:
    command.kill()
    command.communicate()
  # And a method that fails makes the exit code 2, but nothing else.
  again = start(tmp_path, "--methods=gr,lwf,wa", "--seeds=1", FAILING="lwf", **times)
  output = again.communicate(timeout=120)[0]
  assert again.returncode == 2 and "error: 1 of the runs failed" in output, output
  assert "lwf, seed 0: FAILED with code 1" in output and "| lwf | 0 of 1 | - |" in output
  for name in ("gr", "wa"):
    assert (tmp_path / "runs" / name / "seed-0" / "steps.log").read_text().split() == list("12345678")
  assert len((tmp_path / "runs" / "gr" / "seed-0" / "started").read_text().split("\n")) == 3
  assert "| wa | 1 |" in (tmp_path / "table.md").read_text() and "| wa | 1 |" in output


@pytest.mark.slow
def test_bad_input_ends_with_one_message_and_no_folder(tmp_path):
  """test_entries.py has the quick twins."""
  root = tmp_path / "none"
  for flags, words in (
      (("--methods=gr,gr",), "error: --methods has 'gr' twice"),
      (("--methods=gr", "--config.method=wa"), "error: --config.method names one method"),
      (("--methods=gr,bic", "--config.scenario.imbalance=100", "--config.memory.per_class=20"),
       "error: bic, seed 0: method 'bic' holds out 2 images of each class, but class")):
    done = runs.run("compare", "--config=configs/digits_lt.py", f"--workdir={root}", *flags)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (root / "runs").exists()


@pytest.mark.slow
def test_a_folder_of_pictures_from_the_question_to_the_table(tmp_path):
  """docs/comparing.md: one command, settings chosen by held-out images; a second start only shows the table."""
  pictures = photographs.write(tmp_path / "pictures", classes=4, per_class=30, test_per_class=5, sides=(20, 40))
  flags = ("--config=configs/folder_lt.py", f"--config.data_dir={pictures}", "--config.scenario.num_tasks=2",
           "--config.model=resnet8", "--config.image_size=16", "--config.stored_size=18", "--config.epochs=2",
           "--config.milestones=()", "--config.batch_size=20", f"--workdir={tmp_path / 'all'}",
           "--methods=finetune,wa", "--seeds=2", "--tune=learning_rate=0.1,0.05")
  done = runs.run("compare", *flags, timeout=580)
  assert done.returncode == 0, done.stdout + done.stderr
  table = (tmp_path / "all" / "table.md").read_text()
  assert "| finetune | 2 |" in table and "| wa | 2 |" in table and "chosen on held-out images" in table
  stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").rglob("metrics.jsonl")}
  assert len(stamps) == 2 * 2 * 2 + 2 * 2
  again = runs.run("compare", *flags)
  assert again.returncode == 0 and table.strip() in again.stdout
  assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "all").rglob("metrics.jsonl")}
