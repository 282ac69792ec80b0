"""evaluate_on=holdout: a run whose accuracies choose settings reads no test picture. Replicas of other seeds."""

import json
import types

import numpy as np
import pytest
import runs

from gr_jax import evaluate, train
from gr_jax.data import resident
from gr_jax.errors import UserError
from gr_jax.runs import results as summaries
from gr_jax.runs import workdir
from gr_jax.training import experiment as experiments


def test_no_test_picture_is_read(tmp_path, monkeypatch):
  """The whole command except the training: an untrained network is evaluated on the held-out images."""
  def refuse(*args, **kwargs):
    raise AssertionError("test pictures are read")

  def learn(experiment, programs, evaluated, folder, *, asked):
    state = programs.init(experiment.root)
    measured = evaluated({"params": state.params, "batch_stats": state.batch_stats, "carry": {}}, 1)
    np.testing.assert_array_equal(measured.counts[0, 2], [len(rows) for rows in experiment.scenario.holdout])
    learned.append(measured.counts[0])
    return summaries.summarize(experiment, summaries.Progress().after_task(measured, (), 1.0))

  learned = []
  monkeypatch.setattr(resident, "load_test", refuse)
  monkeypatch.setattr(train, "learn", learn)
  config = runs.short(evaluate_on="holdout", **{"scenario.num_tasks": 1, "memory.per_class": 0})
  results = train.train(config, tmp_path)
  (correct, _, images), = learned
  assert results["last_accuracy"] == correct.sum() / images.sum() and 0 < images.sum() < 60
  # Its accuracies are not to be mixed with those on test images.
  with pytest.raises(UserError, match="was evaluated on its held-out images, to choose settings; set --split=holdout"):
    evaluate.evaluate(tmp_path)


def test_there_must_be_held_out_images():
  with pytest.raises(UserError, match="evaluate_on is 'holdout', but no image is held out .validation_fraction is 0.0"):
    experiments.load(runs.short(evaluate_on="holdout", validation_fraction=0.0))
  experiment = experiments.load(runs.short(evaluate_on="holdout"))
  np.testing.assert_array_equal(experiment.evaluated, [len(rows) for rows in experiment.scenario.holdout])
  assert experiments.load(runs.short()).evaluated.tolist() == [50] * 10


def test_results_of_other_replicas_are_not_those_of_this_run(tmp_path):
  (tmp_path / "results.json").write_text(json.dumps({"tasks_done": 3, "seeds": [0, 1]}))
  def finished(seed, replicas):
    experiment = types.SimpleNamespace(config=types.SimpleNamespace(seed=seed, replicas=replicas), stop_after_task=3)
    return workdir.finished(tmp_path, experiment)
  assert finished(0, 2) is not None
  assert finished(0, 3) is None
  assert finished(2, 2) is None
  # A mean over replicas is no run's result, and the other way round.
  assert finished(0, 1) is None
  (tmp_path / "results.json").write_text(json.dumps({"tasks_done": 3}))
  assert finished(0, 1) is not None and finished(0, 2) is None
