"""Several processes as one run, with real processes on this machine's CPU."""

import shutil
import signal
import time

import builders
import numpy as np
import photographs
import pytest
import runs

from gr_jax.devices import processes
from gr_jax.errors import UserError

# Few steps at a low rate: rounding that differs between numbers of devices stays rounding.
SHORT = ("--config=configs/digits_lt.py", "--config.scenario.num_tasks=2", "--config.epochs=2",
         "--config.milestones=()", "--config.learning_rate=0.01", "--config.evaluation_block=50",
         "--config.checkpoint_every_epochs=1")


@pytest.mark.parametrize("spec", ["", "on", "host", "host,2,0", "host:1,2", "host:1,2,2", ":1,2,0", "host:0,2,0",
                                  "host:99999,2,0", "host:1,two,0", "host:1,2,-1"])
def test_a_place_that_cannot_be(spec):
  with pytest.raises(UserError, match=r"distributed is .*HOST:PORT,COUNT,INDEX"):
    processes.parse(spec)


def test_places():
  assert processes.parse("off") is None and processes.parse("auto") is None
  assert processes.parse("[::1]:98,4,3") == ("[::1]:98", 4, 3)


def test_one_process_agrees_with_itself_and_waits_for_nobody():
  processes.agree({"a": 1})
  assert processes.any_process(True) and not processes.any_process(False)
  assert processes.exchange("ä") == ["ä"] and processes.together(lambda: 3) == 3
  error = UserError("mend it")
  with pytest.raises(UserError) as raised:
    processes.together(lambda: (_ for _ in ()).throw(error))
  assert raised.value is error


def assert_same_learning(ours, theirs, in_order=True):
  """The same losses within rounding, the same exemplars, in the same order or in any, the same accuracies."""
  rows, others = runs.rows(ours, "epoch"), runs.rows(theirs, "epoch")
  for row, other in zip(rows, others, strict=True):
    assert (row["task"], row["epoch"], row["global_step"]) == (other["task"], other["epoch"], other["global_step"])
    # beta divides by the gradient of the distillation, which is small while student and teacher are near.
    for name, tolerance in {"loss": 1e-3, "cross_entropy": 1e-3, "alpha": 1e-3, "r_old": 2e-3, "r_new": 2e-3,
                            "beta": 2e-2}.items():
      assert row[name] == pytest.approx(other[name], rel=tolerance), (row["task"], row["epoch"], name)
  kept = [runs.newest(folder)[1]["exemplars"] for folder in (ours, theirs)]
  assert kept[0] == kept[1] if in_order else [*map(sorted, kept[0])] == [*map(sorted, kept[1])]
  for name in ("accuracy_matrix", "accuracy_matrix_task_aware", "task_accuracies"):
    assert runs.results(ours)[name] == runs.results(theirs)[name], name


def run_each_way(folder, flags):
  """Two processes of two devices, one of four, one of one; returns their folders."""
  together = folder / "2x2"
  ended = runs.end_several(runs.start_several([(*flags, f"--workdir={together}")] * 2))
  assert [code for code, _ in ended] == [0, 0], ended
  # Process 0 alone speaks and writes.
  assert "average incremental accuracy" in ended[0][1] and "task 1/" not in ended[1][1]
  for devices in (4, 1):
    done = runs.run("main", *flags, f"--workdir={folder / str(devices)}", JAX_NUM_CPU_DEVICES=str(devices))
    assert done.returncode == 0, done.stderr
  return together, folder / "4", folder / "1"


@pytest.mark.slow
def test_processes_and_devices_change_nothing(tmp_path):
  # So few and small steps that rounding stays rounding: at ten times the rate and twice the steps the loss differs by
  # 4e-5, and accuracies and exemplars with it.
  together, four, one = run_each_way(tmp_path, (*SHORT, "--config.epochs=1", "--config.learning_rate=0.001"))
  assert runs.results(together)["devices"].startswith("4 x ")
  assert len(runs.rows(together)) == 2 * (1 + 1), "a row more than once"
  assert_same_learning(together, four)
  assert_same_learning(together, one)


@pytest.mark.parametrize("change, words", [
    (["--config.momentum=0.8", "--config.steps_per_call=7"],
     ["steps_per_call: 100 in process 0, 7 in process 1", "momentum: 0.9 in process 0, 0.8 in process 1"]),
    (["--config.data_dir={tmp}/other"], ["digest of the images: ", "in process 1"]),
    (["--config.data_dir={tmp}/none"], ["process 1 of 2 cannot continue: ", "{tmp}/none"])],
    ids=["config", "data", "no data"])
def test_processes_that_differ_refuse_to_start(tmp_path, change, words):
  flags = list(SHORT)
  if "data_dir" in change[0]:
    flags = ["--config=configs/cifar100_lt.py", "--config.scenario.kind=natural", f"--config.data_dir={tmp_path}/data"]
    builders.cifar100(tmp_path / "data", per_class=10)
    builders.cifar100(tmp_path / "other", per_class=11)
  flags.append(f"--workdir={tmp_path / 'run'}")
  ended = runs.end_several(runs.start_several([flags, [*flags, *(text.format(tmp=tmp_path) for text in change)]]))
  assert [code for code, _ in ended] == [2, 2], ended
  for word in words:
    assert word.format(tmp=tmp_path) in ended[0][1], ended[0][1]
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_processes_with_other_code_refuse_to_start(tmp_path):
  shutil.copytree(runs.ROOT / "gr_jax", tmp_path / "gr_jax")
  with open(tmp_path / "gr_jax" / "losses.py", "a") as file:
    file.write("# Changed.\n")
  processes = runs.start_several([(*SHORT, f"--workdir={tmp_path / 'run'}")] * 2,
                                 environments=[{}, {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}])
  ended = runs.end_several(processes)
  assert [code for code, _ in ended] == [2, 2], ended
  assert all("code: " in output and "in process 1" in output for _, output in ended)


def test_a_job_in_the_same_folder_is_refused_by_all_processes(tmp_path):
  from gr_jax.runs import workdir
  with workdir.locked(tmp_path):
    ended = runs.end_several(runs.start_several([(*SHORT, f"--workdir={tmp_path}")] * 2))
  assert [code for code, _ in ended] == [2, 2], ended
  assert all("another job is using" in output for _, output in ended)


def wait_for_rows(workdir, text):
  """Until metrics.jsonl holds a text."""
  path, deadline = workdir / "metrics.jsonl", time.monotonic() + 240
  while time.monotonic() < deadline and not (path.exists() and text in path.read_text()):
    time.sleep(0.01)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_ends(tmp_path, victim):
  flags = (*SHORT, "--config.epochs=3000", "--config.steps_per_call=1", "--heartbeat_timeout=10",
           f"--workdir={tmp_path}")
  processes = runs.start_several([flags] * 2, devices=1)
  wait_for_rows(tmp_path, '"epoch": 1,')
  processes[victim].kill()
  killed = time.monotonic()
  ended = runs.end_several(processes, timeout=60)
  assert time.monotonic() - killed < 45
  assert ended[victim][0] == -signal.SIGKILL, ended
  assert ended[1 - victim][0] != 0, ended


def test_a_signal_to_one_process_saves_and_ends_all(tmp_path):
  flags = (*SHORT, "--config.epochs=3000", "--config.steps_per_call=1", f"--workdir={tmp_path}")
  processes = runs.start_several([flags] * 2, devices=1)
  wait_for_rows(tmp_path, '"epoch": 1,')
  processes[1].terminate()
  ended = runs.end_several(processes, timeout=90)
  assert [code for code, _ in ended] == [75, 75], ended
  assert "SIGTERM" in ended[1][1] and "SIGTERM" not in ended[0][1]
  assert f"step {runs.newest(tmp_path)[0]} is saved" in ended[0][1], ended


def test_waiting_for_a_process_that_does_not_come_has_an_end(tmp_path):
  processes = runs.start_several([(*SHORT, "--join_timeout=3", f"--workdir={tmp_path}")] * 2, devices=1)
  processes[1].kill()
  ended = runs.end_several(processes, timeout=60)
  assert ended[0][0] not in (0, None), ended


def test_auto_on_a_plain_machine(tmp_path):
  done = runs.run("main", *SHORT, "--config.distributed=auto", f"--workdir={tmp_path}")
  assert done.returncode == 2 and "no cluster was found" in done.stderr and "set it to 'off'" in done.stderr


def test_replicas_want_one_process(tmp_path):
  ended = runs.end_several(runs.start_several(
      [(*SHORT, "--config.replicas=2", f"--workdir={tmp_path}")] * 2, devices=1))
  assert [code for code, _ in ended] == [2, 2], ended
  assert "replicas is 2 with 2 processes" in ended[0][1]


@pytest.mark.slow
def test_two_processes_killed_and_resumed_as_one(tmp_path):
  flags = (*SHORT, "--config.epochs=3", "--config.learning_rate=0.0005", "--config.steps_per_call=1")
  unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
  done = runs.run("main", *flags, f"--workdir={unbroken}")
  assert done.returncode == 0, done.stderr
  processes = runs.start_several([(*flags, f"--workdir={broken}")] * 2)
  wait_for_rows(broken, '"task": 2, "epoch": 2,')
  for process in processes:
    process.kill()
  assert [code for code, _ in runs.end_several(processes)] == [-signal.SIGKILL] * 2, "ended before it was killed"
  step, record = runs.newest(broken)
  assert record["task"] == 1, "not inside task 2"
  again = runs.run("main", *flags, f"--workdir={broken}")
  assert again.returncode == 0 and f"resuming after step {step}" in again.stdout, again.stderr
  assert {row["start"] for row in runs.rows(broken)} == {1, 2}
  assert_same_learning(broken, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["prefetch", "stream"])
def test_pictures_travel_to_the_devices_of_several_processes(tmp_path, path):
  """Two processes build one cache, and each reads what its devices work on."""
  photographs.write(tmp_path / "data", classes=4, per_class=16, test_per_class=3, sides=(37, 37))
  flags = ("--config=configs/folder_lt.py", f"--config.data_dir={tmp_path / 'data'}", "--config.model=resnet8",
           "--config.image_size=32", "--config.stored_size=37", "--config.scenario.num_tasks=2", "--config.epochs=1",
           "--config.milestones=5", "--config.batch_size=8", "--config.learning_rate=0.00001",
           "--config.memory.per_class=2", "--config.evaluation_block=8", "--config.steps_per_call=2",
           f"--config.cache_dir={tmp_path / 'cache'}")
  together, four, one = run_each_way(tmp_path, (*flags, f"--config.pictures={path}"))
  # Of two pictures that lie equally near to a class's mean, rounding decides which comes first.
  assert_same_learning(together, four, in_order=False)
  assert_same_learning(together, one, in_order=False)
  done = runs.run("main", *flags, f"--workdir={tmp_path / 'resident'}")
  assert done.returncode == 0 and "pictures: resident" in done.stdout, done.stderr
  losses = [[row["loss"] for row in runs.rows(folder, "epoch")] for folder in (together, tmp_path / "resident")]
  np.testing.assert_allclose(*losses, rtol=1e-4 if path == "prefetch" else 5e-3)


@pytest.mark.slow
def test_processes_and_devices_change_nothing_on_cifar(tmp_path):
  """Photographs in CIFAR-100's own form; two tasks of ten classes."""
  builders.cifar100(tmp_path / "data", per_class=24, test_per_class=2)
  flags = ("--config=configs/cifar100_lt.py", f"--config.data_dir={tmp_path / 'data'}", "--config.epochs=1",
           "--config.milestones=()", "--config.learning_rate=0.00001", "--config.batch_size=32",
           "--config.scenario.kind=natural", "--config.stop_after_task=2", "--config.memory.per_class=4",
           "--config.scenario.num_tasks=10", "--config.scenario.first_task_classes=None")
  together, four, one = run_each_way(tmp_path, flags)
  assert_same_learning(together, four)
  assert_same_learning(together, one)
  assert np.isfinite([row["loss"] for row in runs.rows(one, "epoch")]).all()
