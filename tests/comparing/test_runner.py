"""Where the processes of a list run: on GPUs, or on shares of the CPU's cores."""

import json
import os

import pytest

from gr_jax.comparing import runner
from gr_jax.devices import processor
from gr_jax.errors import UserError

# Writes down its cores, and ends once its partner has too: they can only end together.
_SCRIPT = """
import json, os, pathlib, sys, time
mine, partner = map(pathlib.Path, sys.argv[1:])
mine.with_suffix(".part").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
mine.with_suffix(".part").rename(mine)
while not partner.exists():
  time.sleep(0.01)
"""


def test_places_on_gpus(monkeypatch):
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  assert runner.places(2, ["gpu", "gpu"]) == [runner.Place(gpu=name) for name in ("0", "0", "1", "1")]
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
  assert runner.places(1, ["gpu", "gpu"]) == [runner.Place(gpu="3"), runner.Place(gpu="5")]


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
