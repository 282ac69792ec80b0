"""evaluate_on=holdout: a run whose accuracies choose settings reads no test picture. Replicas of other seeds."""

import json
import types

import numpy as np
import pytest
import runs

from gr_jax import evaluate, train
from gr_jax.data import resident
from gr_jax.errors import UserError
from gr_jax.runs import workdir
from gr_jax.training import experiment


def test_no_test_picture_is_read(tmp_path, monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError("test pictures are read")

  monkeypatch.setattr(resident, "load_test", refuse)
  config = runs.short(epochs=1, milestones=(), evaluate_on="holdout", **{
      "scenario.num_tasks": 2, "memory.selection": "random"})
  results = train.train(config, tmp_path)
  held = json.loads((tmp_path / "scenario.json").read_text())["holdout_counts"]
  last = runs.rows(tmp_path, "task")[-1]
  assert results["last_accuracy"] == sum(last["correct"]) / sum(held)
  assert all(right <= images for right, images in zip(last["correct"], held))
  # The same images as those of the evaluation command, which refuses to mix them with test images.
  found = evaluate.evaluate(tmp_path, split="holdout")
  assert found["accuracy"] == results["last_accuracy"]
  with pytest.raises(UserError, match="was evaluated on its held-out images, to choose settings; set --split=holdout"):
    evaluate.evaluate(tmp_path)


def test_there_must_be_held_out_images():
  with pytest.raises(UserError, match="evaluate_on is 'holdout', but no image is held out .validation_fraction is 0.0"):
    experiment.load(runs.short(evaluate_on="holdout", validation_fraction=0.0))
  found = experiment.load(runs.short(evaluate_on="holdout"))
  np.testing.assert_array_equal(found.evaluated, [len(rows) for rows in found.scenario.holdout])
  assert experiment.load(runs.short()).evaluated.tolist() == [50] * 10


def test_results_of_other_replicas_are_not_those_of_this_run(tmp_path):
  (tmp_path / "results.json").write_text(json.dumps({"tasks_done": 3, "seeds": [0, 1]}))
  def finished(seed, replicas):
    found = types.SimpleNamespace(config=types.SimpleNamespace(seed=seed, replicas=replicas), stop_after_task=3)
    return workdir.finished(tmp_path, found)
  assert finished(0, 2) is not None
  assert finished(0, 3) is None
  assert finished(2, 2) is None
