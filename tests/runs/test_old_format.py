"""Runs of earlier formats: they evaluate to their own numbers, and training into them is refused."""

import json
import pathlib
import tarfile

import pytest
import runs

import gr_jax
from gr_jax import evaluate, train
from gr_jax.errors import UserError
from gr_jax.runs import checkpoints
from gr_jax.runs import workdir as workdirs

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"

# Format -> the last commit that could resume such runs.
COMMITS = {2: "c3bf204", 3: "cc0290b"}


def unpacked(version, folder):
  with tarfile.open(FIXTURES / f"run_of_format_{version}.tar.gz") as archive:
    archive.extractall(folder, filter="data")
  return folder


@pytest.fixture(params=COMMITS)
def version(request):
  return request.param


@pytest.fixture
def workdir(version, tmp_path):
  return unpacked(version, tmp_path / "run")


def contents(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*")
          if path.is_file() and path.name != ".lock"}


def test_it_evaluates_to_its_own_numbers(workdir, version, capsys):
  before, recorded = contents(workdir), runs.results(workdir)
  evaluated = json.loads(json.dumps(evaluate.evaluate(workdir)))
  assert "per-class counts are equal to those of the run" in capsys.readouterr().out
  # Of this machine, not of the run.
  for name in ("versions", "devices", "processor"):
    evaluated.pop(name), recorded.pop(name, None)
  # At most five 8x8 digits of each of ten classes.
  assert evaluated["memory"]["exemplars"] <= 50
  # Computed anew for the last task; the checkpoints of the others were not kept.
  measured = {name: evaluated.pop(name) for name in ("calibration", "neural_collapse")}
  if version == 2:
    # Not recorded by that version.
    assert evaluated.pop("addons") == "" and evaluated.pop("memory")
    assert all(rows[:2] == [None, None] and name not in recorded for name, rows in measured.items())
  else:
    was = {name: recorded.pop(name) for name in measured}
    assert all(rows[:2] == was[name][:2] for name, rows in measured.items())
    ece = [rows["calibration"][2]["uncalibrated"]["all"]["ece"] for rows in (measured, was)]
    assert ece[0] == pytest.approx(ece[1], abs=1e-5)
  assert evaluated == recorded and "scores" not in evaluated
  assert evaluated["tasks_done"] == 3
  assert evaluated["task_accuracies"][2] == sum((2, 4, 44, 11, 3, 44, 18, 14, 0, 12)) / 500
  assert contents(workdir) == before


def test_training_into_it_is_refused_and_names_the_commit(workdir, version):
  assert checkpoints.OLDER == COMMITS
  # As a run that was ended before its summary: a finished one is not trained at all.
  (workdir / "results.json").unlink()
  before = contents(workdir)
  # Its own, since "auto" may be another one on this processor.
  config = {**workdirs.read_config(workdir), "precision": json.loads((workdir / "start.json").read_text())["precision"]}
  with pytest.raises(UserError, match=f"has format {version}, .* resumes only format {checkpoints.FORMAT}; commit "
                                      f"{COMMITS[version]} "):
    train.train(config, workdir)
  # Not damaged, so nothing is set aside, and nothing trained or overwritten.
  after = contents(workdir)
  assert not (workdir / "damaged").exists()
  assert {path for path in before if path.parts[0] == "checkpoints" or path.name == "metrics.jsonl"} == {
      path for path in after if path.parts[0] == "checkpoints" or path.name == "metrics.jsonl"}
  for path in before:
    assert path.name in ("config.json", "scenario.json", "start.json") or after[path] == before[path], path


def test_its_network_is_loaded(workdir, version):
  model = gr_jax.load(workdir)
  assert (model.task, len(model.classes), model.score) == (3, 10, "logits")
  # The fit to held-out images came with format 3's last versions.
  assert (model.temperature is None) == (version == 2)


def test_a_config_of_format_2_is_read_under_the_new_names(tmp_path):
  workdir = unpacked(2, tmp_path)
  saved = json.loads((workdir / "config.json").read_text())
  assert saved["temperature"] == 2.0 and "method_options" not in saved
  config = workdirs.read_config(workdir)
  assert "temperature" not in config
  assert config["method_options"] == {"head": "linear"} | {
      name: saved[name] for name in ("reweighting", "prior", "distillation", "task_ratio", "distillation_weight",
                                     "attenuation_gamma", "temperature")}
