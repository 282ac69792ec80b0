"""Methods with their own kinds of stages on a tiny network: interrupted inside one, they end bit-equal."""

import contextlib
import itertools

import pytest
import runs
import tiny

from gr_jax import models, train
from gr_jax.runs import signals

SETTINGS = {"epochs": 3, "milestones": (), "scenario.num_tasks": 2, "batch_size": 64, "steps_per_call": 2,
            "checkpoint_every_epochs": 10, "evaluation_block": 250}
BALANCED = {"balanced_epochs_share": 1.0, "balanced_learning_rate": 0.05}
OPTIONS = {
    "eeil": BALANCED, "podnet": BALANCED,
    "parts": {"method": "lucir", "reweighting": "dgr", "prior": True},
    "lws": {"method": "lucir", "addons": "lws", "lws_epochs_share": 1.0},
    "gvalign,gpa": {"method": "lucir", "addons": "gvalign,gpa", "gvalign_steps": 12}}


@pytest.fixture(autouse=True)
def pixels(monkeypatch):
  monkeypatch.setattr(models, "make_backbone", lambda name, **options: tiny.PixelBackbone())


def config_of(name, **changes):
  options = {key if key in ("method", "addons") else f"method_options.{key}": value
             for key, value in OPTIONS.get(name, {}).items()}
  return runs.short(**{**SETTINGS, "method": name, **options, **changes})


def end_inside(name, folder, monkeypatch, task, stage, looks=1, **changes):
  """Runs until the first epoch of a stage is over, and `looks` - 1 device calls more."""
  seen = itertools.count(1)

  @contextlib.contextmanager
  def listening():
    def asked():
      path = folder / "metrics.jsonl"
      return path.exists() and any((row["task"], row["stage"], row["epoch"]) == (task, stage, 1)
                                   for row in runs.rows(folder, "epoch")) and next(seen) >= looks
    yield asked
  with monkeypatch.context() as patch:
    patch.setattr(signals, "listening", listening)
    with pytest.raises(signals.Interrupted):
      train.train(config_of(name, **changes), folder)


@pytest.mark.parametrize("name, stages", [
    ("eeil", {"train", "balance"}), ("ssil", {"first", "train"}),
    ("podnet", {"train", "balance"}), ("lws", {"train", "scale_classes"}),
    # The slow tests of test_runs.py have these too.
    pytest.param("il2m", {"train"}, marks=pytest.mark.slow),
    pytest.param("parts", {"train"}, marks=pytest.mark.slow),
    pytest.param("simplecil", {"train", "class_means"}, marks=pytest.mark.slow),
    pytest.param("dynamic_distillation", {"train"}, marks=pytest.mark.slow)])
def test_interrupted_inside_the_last_stage(tmp_path, monkeypatch, name, stages):
  """After its first epoch, in the second task; what the first stage left behind must be in the checkpoint."""
  whole = train.train(config_of(name), tmp_path / "whole")
  rows = runs.rows(tmp_path / "whole", "epoch")
  assert {row["stage"] for row in rows} == stages
  # SimpleCIL's last stage is one step, so it ends in the first task, before that step.
  task, last = [(row["task"], row["stage"]) for row in rows if row["epoch"] == 2][-1]
  assert (task == 2) == (name != "simplecil")
  end_inside(name, tmp_path / "cut", monkeypatch, task, last)
  train.train(config_of(name), tmp_path / "cut")
  assert_ended_equal(tmp_path / "cut", tmp_path / "whole")
  assert whole["tasks_done"] == 2


def assert_ended_equal(cut, whole):
  """Results, rows and, at the ends of tasks, the digest of every array; the interruption left a checkpoint besides."""
  resumed, expected = ((runs.timeless(runs.results(folder)), list(map(runs.timeless, runs.rows(folder))))
                       for folder in (cut, whole))
  assert resumed == expected
  ends = [row["global_step"] for row in runs.rows(whole, "task")]
  ours, theirs = runs.records(cut), runs.records(whole)
  assert len(ends) == 2 and all(ours[step] == theirs[step] for step in ends)


def test_interrupted_among_drawn_features(tmp_path, monkeypatch):
  """Inside the one epoch of GVAlign's second stage, with GPA's tracked centroids in the stage before it."""
  name = "gvalign,gpa"
  train.train(config_of(name, epochs=1), tmp_path / "whole")
  # Three device calls after the row of the second task's first stage.
  end_inside(name, tmp_path / "cut", monkeypatch, 2, "train", 3, epochs=1)
  _, record = runs.newest(tmp_path / "cut")
  assert record["stage"] == 1 and 0 < record["steps"] < 12
  train.train(config_of(name, epochs=1), tmp_path / "cut")
  assert_ended_equal(tmp_path / "cut", tmp_path / "whole")
