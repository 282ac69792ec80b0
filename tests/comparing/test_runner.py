"""Where the processes of a list run: on GPUs, or on shares of the CPU's cores."""

import json
import os
import re
import signal

import pytest

from gr_jax.comparing import runner
from gr_jax.devices import processor
from gr_jax.errors import UserError
from gr_jax.runs import signals

# Writes down its cores, and ends once its partner has too: they can only end together.
_SCRIPT = """
import json, os, pathlib, sys, time
mine, partner = map(pathlib.Path, sys.argv[1:])
mine.with_suffix(".part").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
mine.with_suffix(".part").rename(mine)
while not partner.exists():
  time.sleep(0.01)
"""


# Saves for a second once it is asked to exit.
_SAVING = """
import os, pathlib, sys, time
from gr_jax.runs import signals
with signals.listening() as asked:
  pathlib.Path(sys.argv[1] + ".part").write_text(str(os.getpid()))
  pathlib.Path(sys.argv[1] + ".part").rename(sys.argv[1])
  while not asked():
    time.sleep(0.01)
  time.sleep(1)
sys.exit(signals.EXIT_CODE)
"""


def test_places_on_gpus(monkeypatch):
  for name in ("CUDA_VISIBLE_DEVICES", *runner._OF_MEMORY):
    monkeypatch.delenv(name, raising=False)
  assert runner.places(2, ["gpu", "gpu"]) == [runner.Place(gpu=name, memory=0.45) for name in ("0", "0", "1", "1")]
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
  assert runner.places(1, ["gpu", "gpu"]) == [runner.Place(gpu="3"), runner.Place(gpu="5")]


def test_jobs_on_one_gpu_share_out_its_memory(monkeypatch):
  """JAX would reserve three quarters for the first one."""
  for name in runner._OF_MEMORY:
    monkeypatch.delenv(name, raising=False)
  environment = runner.places(3, ["gpu"])[0].environment()
  assert environment["CUDA_VISIBLE_DEVICES"] == "0" and environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.300"
  assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in runner.places(1, ["gpu"])[0].environment()
  monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in runner.places(3, ["gpu"])[0].environment()


def test_places_on_a_cpu(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: {9, 2, 3, 5, 7})
  monkeypatch.setattr(processor, "TOPOLOGY", tmp_path)
  assert runner.places(1, ["cpu"]) == [runner.Place()]
  assert runner.places(2, ["cpu"]) == [runner.Place(cores=(2, 3)), runner.Place(cores=(5, 7, 9))]
  assert [place.cores for place in runner.places(5, ["cpu"])] == [(2,), (3,), (5,), (7,), (9,)]
  with pytest.raises(UserError, match="--jobs_per_device is 6, .* 5 CPU cores; use at most 5"):
    runner.places(6, ["cpu"])


def test_physical_cores_are_not_split_while_there_are_enough(monkeypatch):
  monkeypatch.setattr(processor, "physical_cores", lambda: [(0, 8), (1, 9), (2, 10)])
  assert [place.cores for place in runner.places(2, ["cpu"])] == [(0, 8), (1, 9, 2, 10)]
  assert [place.cores for place in runner.places(4, ["cpu"])] == [(0,), (8, 1), (9,), (2, 10)]


def test_places_on_tpus():
  assert runner.places(1, ["tpu"] * 4) == [runner.Place()]
  with pytest.raises(UserError, match="--jobs_per_device is 2, but on TPUs one process"):
    runner.places(2, ["tpu"] * 4)


def test_platforms_are_those_of_a_new_process(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
  assert runner.platforms() == ["cpu"] * 3


@pytest.mark.parametrize("script, named", [
    ("import sys; sys.exit('RuntimeError: no device\\n  a hint')", "exit code 1: RuntimeError: no device"),
    ("raise AssertionError", "exit code 1: AssertionError"), ("import os; os.abort()", r"exit code -6\)")])
def test_devices_that_cannot_be_used(tmp_path, monkeypatch, script, named):
  (tmp_path / "jax.py").write_text(script)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  monkeypatch.delenv("PYTHONFAULTHANDLER", raising=False)
  with pytest.raises(UserError, match=f"{named}.*JAX_PLATFORMS is 'cuda', XLA_FLAGS is .*: correct them"):
    runner.platforms()


def test_jobs_run_at_the_same_time_each_on_its_cores(tmp_path, monkeypatch):
  (tmp_path / "at_its_place.py").write_text(_SCRIPT)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  files, mine = (tmp_path / "a", tmp_path / "b"), sorted(os.sched_getaffinity(0))
  jobs = [runner.Job(file.name, tmp_path / f"run-{file.name}", "at_its_place", (str(file), str(partner)))
          for file, partner in zip(files, reversed(files))]
  places = [runner.Place(cores=(mine[-1],)), runner.Place()]
  assert not runner.run_all(jobs, places)
  assert sorted(json.loads(file.read_text()) for file in files) == sorted([[mine[-1]], mine])


@pytest.mark.parametrize("asked_already", [True, False])
def test_a_list_that_is_stopped_asks_each_run_once(tmp_path, monkeypatch, capsys, asked_already):
  """A service manager sends SIGTERM to all processes; a second one would end a run before it has saved."""
  (tmp_path / "saving.py").write_text(_SAVING)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))

  def look():
    if (tmp_path / "started").exists():
      if asked_already:
        os.kill(int((tmp_path / "started").read_text()), signal.SIGTERM)
      raise signals.Interrupted("stopped")

  with pytest.raises(signals.Interrupted):
    runner.run_all([runner.Job("a", tmp_path / "run", "saving", (str(tmp_path / "started"),))], [runner.Place()], look)
  assert capsys.readouterr().out == "a: interrupted, and saved\n"


def test_a_job_that_cannot_be_started_has_failed(tmp_path, monkeypatch, capsys):
  (tmp_path / "nothing.py").write_text("")
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  jobs = [runner.Job(name, tmp_path / name, "nothing", ()) for name in ("a", "b")]
  jobs[0].log.mkdir()
  assert runner.run_all(jobs, [runner.Place()]) == {"a": 1}
  assert re.fullmatch(r"a: FAILED, it cannot be started \(.*a.log.*\)\nb: done\n", capsys.readouterr().out)


def test_an_error_of_the_list_itself_is_raised(tmp_path, monkeypatch):
  def broken(*arguments):
    raise ZeroDivisionError

  monkeypatch.setattr(runner, "_finish", broken)
  with pytest.raises(ZeroDivisionError):
    runner.run_all([runner.Job("a", tmp_path / "a", "nothing", ())], [runner.Place()])
