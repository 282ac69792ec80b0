"""A run of the format before: it evaluates to its own numbers, and training into it is refused."""

import json
import pathlib
import tarfile

import pytest
import runs

from gr_jax import evaluate, train
from gr_jax.errors import UserError
from gr_jax.runs import checkpoints
from gr_jax.runs import workdir as workdirs

FILE = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "run_of_format_2.tar.gz"

# The last commit that could resume such runs; it made this one.
COMMIT = "c3bf204"


@pytest.fixture
def workdir(tmp_path):
  with tarfile.open(FILE) as archive:
    archive.extractall(tmp_path / "run", filter="data")
  return tmp_path / "run"


def contents(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*")
          if path.is_file() and path.name != ".lock"}


def test_it_evaluates_to_its_own_numbers(workdir, capsys):
  before, recorded = contents(workdir), runs.results(workdir)
  found = json.loads(json.dumps(evaluate.evaluate(workdir)))
  assert "per-class counts are equal to those of the run" in capsys.readouterr().out
  # Of this machine, not of the run.
  for name in ("versions", "devices"):
    found.pop(name), recorded.pop(name)
  # Not recorded by that version: add-ons, and at most five 8x8 digits of each of ten classes.
  assert found.pop("addons") == "" and found.pop("memory")["exemplars"] <= 50
  # What it did not record is computed for the last task, and missing for the others, whose checkpoints were not kept.
  for name in ("calibration", "neural_collapse"):
    assert found.pop(name)[:2] == [None, None] and name not in recorded
  assert found == recorded
  assert found["tasks_done"] == 3 and found["task_accuracies"][2] == sum((2, 4, 44, 11, 3, 44, 18, 14, 0, 12)) / 500
  assert contents(workdir) == before


def test_training_into_it_is_refused_and_names_the_commit(workdir):
  assert checkpoints.OLDER[2] == COMMIT
  # As a run that was ended before its summary: a finished one is not trained at all.
  (workdir / "results.json").unlink()
  before = contents(workdir)
  with pytest.raises(UserError, match=f"has format 2, .* resumes only format {checkpoints.FORMAT}; commit {COMMIT} "):
    train.train(workdirs.read_config(workdir), workdir)
  # Not damaged, so nothing is set aside, and nothing trained or overwritten.
  after = contents(workdir)
  assert not (workdir / "damaged").exists()
  assert {path for path in before if path.parts[0] == "checkpoints" or path.name == "metrics.jsonl"} == {
      path for path in after if path.parts[0] == "checkpoints" or path.name == "metrics.jsonl"}
  for path in before:
    assert path.name in ("config.json", "scenario.json", "start.json") or after[path] == before[path], path


def test_its_config_is_read_under_the_new_names(workdir):
  saved = json.loads((workdir / "config.json").read_text())
  assert saved["temperature"] == 2.0 and "method_options" not in saved
  config = workdirs.read_config(workdir)
  assert "temperature" not in config
  assert config["method_options"] == {
      name: saved[name] for name in ("reweighting", "prior", "distillation", "task_ratio", "distillation_weight",
                                     "attenuation_gamma", "temperature")}
