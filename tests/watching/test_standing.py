"""Where a run stands: on the way, half written, empty, damaged, of an earlier version; and that nothing is touched."""

import json
import os
import types

import pytest
import runs

from gr_jax import files, status
from gr_jax.errors import UserError
from gr_jax.watching import lines, standing

CONFIG = {"epochs": 4, "batch_size": 32, "stop_after_task": None, "scenario": {"num_tasks": 3}}
# Steps of an epoch: 3, 2 and 2, and in later tasks a second stage of two epochs of one step.
TASKS = [{"steps_per_epoch": steps, "stages": [
    {"name": "train", "epochs": 4, "steps_per_epoch": steps, "batch_size": 40},
    *([{"name": "correct_bias", "epochs": 2, "steps_per_epoch": 1, "batch_size": 32}] if number else [])]}
         for number, steps in enumerate((3, 2, 2))]


def epoch(task, number, step, seconds, *, stage="train", start=1):
  return {"kind": "epoch", "task": task, "epoch": number, "stage": stage, "global_step": step, "seconds": seconds,
          "start": start, "loss": 1.0}


def done(task, step, seconds):
  return {"kind": "task", "task": task, "global_step": step, "seconds": seconds, "task_accuracies": 0.9 / task,
          "average_incremental_accuracy": 0.8, "start": 1}


# Task 1: a second an epoch, and half a second for exemplars; then evaluation and compiling; then 0.4 s an epoch.
ROWS = [*(epoch(1, number, 3 * number, 1.0 * number) for number in range(1, 5)), done(1, 12, 4.5),
        epoch(2, 1, 14, 6.9), epoch(2, 2, 16, 7.3)]


def write(folder, rows=ROWS, *, config=CONFIG, tasks=TASKS, checkpoints=(12,), end=""):
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "scenario.json").write_text(json.dumps({"tasks": tasks}))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
  for step in checkpoints:
    (folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
  (folder / ".lock").touch()
  return folder


def contents(folder):
  return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
          for path in sorted(folder.rglob("*"))}


def test_a_run_on_its_way(tmp_path):
  folder = write(tmp_path / "run", checkpoints=(9, 12))
  (folder / "checkpoints" / "16.orbax-checkpoint-tmp").mkdir()
  before = contents(folder)
  with files.locked(folder / ".lock", lambda: None):
    changed = (folder / "metrics.jsonl").stat().st_mtime
    run = standing.of(folder, now=changed + 1)
    assert run.state == "running" and run.process == os.getpid()
    text = lines.lines([run])
  # In files only the time of the lock, which this test opens, may differ.
  assert {path: part for path, part in contents(folder).items() if path.name != ".lock"} == {
      path: part for path, part in before.items() if path.name != ".lock"}
  assert (run.task, run.num_tasks, run.stage, run.epoch, run.epochs) == (2, 3, "train", 2, 4)
  assert (run.accuracy, run.average, run.checkpoint) == (0.9, 0.8, 12)
  # The median of 1/3 s a step three times, and of 0.2 s once; 40 images a step.
  assert run.rate == pytest.approx(40 * 3)
  # Of 12 + 10 + 10 steps 16 are done; 0.5 s after each of two tasks; a second has passed since the last row.
  assert run.left == pytest.approx(16 / 3 + 2 * 0.5 - 1) and run.age == pytest.approx(1)
  assert text.splitlines()[:3] == [f"{folder}: running, process {os.getpid()}",
                                   "  task 2 of 3, 2 of 4 epochs done (train)",
                                   "  accuracy so far 90.00 %, average 80.00 %"]
  assert standing.of(folder).state == "stopped"


@pytest.mark.parametrize("rows, expected", [
    ([], (1, 0, 4)), (ROWS[:1], (1, 1, 4)), (ROWS[:5], (2, 0, 4)),
    ([*ROWS, epoch(2, 1, 21, 9.0, stage="correct_bias")], (2, 1, 2)),
    ([*ROWS, done(2, 22, 10), done(3, 32, 20)], (3, 2, 2))])
def test_places(tmp_path, rows, expected):
  run = standing.of(write(tmp_path / "run", rows))
  assert (run.task, run.epoch, run.epochs) == expected


def test_states(tmp_path):
  folder = write(tmp_path / "run", [], checkpoints=())
  assert standing.of(folder).state == "not started"
  write(folder, [])
  assert standing.of(folder).state == "stopped"
  (folder / "results.json").write_text('{"tasks_done": 2}')
  assert standing.of(folder).state == "stopped"
  write(folder, config={**CONFIG, "stop_after_task": 2})
  run = standing.of(folder)
  assert run.state == "finished" and run.num_tasks == 2 and run.left is None


@pytest.mark.parametrize("end", ['{"kind": "epo', "\0\0\0"])
def test_a_row_that_is_being_written_is_left_out(tmp_path, end):
  run = standing.of(write(tmp_path / "run", end=end))
  assert run.state == "stopped" and run.epoch == 2


def test_a_run_of_an_earlier_version(tmp_path):
  """Without stages in scenario.json; and one that has only its config yet."""
  run = standing.of(write(tmp_path / "old", tasks=[{"steps_per_epoch": 3}] * 3))
  assert (run.state, run.task, run.epoch, run.epochs) == ("stopped", 2, 2, 4) and run.rate > 0
  (tmp_path / "new").mkdir()
  (tmp_path / "new" / "config.json").write_text(json.dumps(CONFIG))
  assert standing.of(tmp_path / "new").state == "not started"


@pytest.mark.parametrize("name, content", [
    ("config.json", "{"), ("config.json", '{"epochs": 4}'), ("scenario.json", "[]"), ("scenario.json", '{"tasks": 7}'),
    ("metrics.jsonl", "rubbish\n{}\n"), ("metrics.jsonl", '{"kind": "epoch"}\n'), ("results.json", "{")])
def test_damage_is_said_and_the_others_are_shown(tmp_path, name, content, capsys):
  write(tmp_path / "good")
  (write(tmp_path / "bad") / name).write_text(content)
  status.show(tmp_path)
  header, bad, good = capsys.readouterr().out.splitlines()
  assert "damaged" in bad and "bad" in bad
  assert good.split()[1:5] == ["stopped", "2/3", "2/4", "90.00"] and header.split()[:2] == ["run", "state"]


def test_runs_are_found(tmp_path):
  """Replicas in place of the folder that holds them, whose lock is theirs."""
  for name in ("a", "b"):
    (tmp_path / "runs" / name).mkdir(parents=True)
    write(tmp_path / "runs" / name)
  parent = write(tmp_path / "runs" / "b", [], config={**CONFIG, "replicas": 2})
  for seed in (0, 1):
    write(parent / f"seed-{seed}")
    (parent / f"seed-{seed}" / ".lock").unlink()
  folders = standing.find(tmp_path / "runs")
  assert [path.relative_to(tmp_path / "runs").as_posix() for path in folders] == ["a", "b/seed-0", "b/seed-1"]
  with files.locked(parent / ".lock", lambda: None):
    assert [standing.of(path).state for path in folders] == ["stopped", "running", "running"]
  with pytest.raises(UserError, match="holds no run"):
    standing.find(tmp_path / "runs" / "a" / "checkpoints")


def test_runs_of_a_comparison_are_found(tmp_path, monkeypatch, capsys):
  """From the folder of all runs, which may have a ~; what is in checkpoints is no run."""
  names = ("compare-all/runs/gr/seed-0", "compare-all/tuning/gr/learning_rate=0.1/scenario-1")
  for name in names:
    (tmp_path / "runs" / name).mkdir(parents=True)
    write(tmp_path / "runs" / name)
  (tmp_path / "runs" / names[0] / "checkpoints" / "9").mkdir(parents=True)
  (tmp_path / "runs" / names[0] / "checkpoints" / "9" / "config.json").write_text("{}")
  assert standing.find(tmp_path / "runs") == [tmp_path / "runs" / name for name in names]
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setattr(status.flags, "FLAGS", types.SimpleNamespace(workdir="~/runs", watch=False, every=1.0))
  status.main([])
  assert capsys.readouterr().out.count("stopped") == 2


def test_watching_ends_when_all_have_finished(tmp_path, monkeypatch, capsys):
  folder = write(tmp_path / "run")
  looks = []

  def sleep(seconds):
    looks.append(seconds)
    (folder / "results.json").write_text('{"tasks_done": 3}')

  monkeypatch.setattr(status.time, "sleep", sleep)
  status.show(tmp_path, every=0.5)
  said = capsys.readouterr().out
  assert looks == [0.5] and said.index("stopped") < said.index("finished")


def test_the_command_uses_no_device(tmp_path):
  write(tmp_path / "run")
  # A platform that does not exist: JAX would fail.
  completed = runs.run_python("status", f"--workdir={tmp_path}", JAX_PLATFORMS="none")
  assert completed.returncode == 0 and "2 of 4 epochs done (train)" in completed.stdout, completed.stderr
  missing = runs.run("status", f"--workdir={tmp_path / 'none'}")
  assert missing.returncode == 2 and "holds no run" in missing.stderr


def test_times():
  assert [lines.clock(seconds) for seconds in (0, 7.4, 723, 18010)] == ["0:00", "0:07", "12:03", "5:00:10"]
