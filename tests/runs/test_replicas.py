"""Replicas side by side: what one that fails does to the others, and locks; without a network."""

import dataclasses
import threading
import types

import jax
import pytest
import runs

from gr_jax import config as configuration
from gr_jax import train
from gr_jax.errors import UserError
from gr_jax.runs import replicas, results, signals, workdir


@pytest.fixture
def side_by_side(monkeypatch, tmp_path):
  """Calls run_side_by_side for five seeds on one device, two at a time; `ends` has what each raises, if anything."""
  begun = []

  def run(ends):
    both_began = threading.Barrier(2)

    class Group:
      def __init__(self, *arguments):
        del arguments

      def run(self, config, folder, learn):
        del folder, learn
        begun.append(config.seed)
        if config.seed < 2:
          both_began.wait(timeout=10)
        if config.seed in ends:
          raise ends[config.seed]
        return {"seed": config.seed}

    monkeypatch.setattr(replicas, "_Group", Group)
    monkeypatch.setattr(results, "over_replicas", lambda summaries: summaries)
    experiment = types.SimpleNamespace(config=configuration.check(runs.short(replicas=5)),
                                       devices=jax.devices("cpu")[:1])
    return replicas.run_side_by_side(experiment, tmp_path, None, (None, None), None)

  return types.SimpleNamespace(run=run, begun=begun)


def test_results_are_in_the_order_of_the_seeds(side_by_side):
  assert side_by_side.run({}) == [{"seed": seed} for seed in range(5)]


def test_one_that_diverges_does_not_stop_those_that_have_not_begun(side_by_side):
  with pytest.raises(FloatingPointError, match="^seed 0: the loss"):
    side_by_side.run({0: FloatingPointError("the loss is nan"), 3: FloatingPointError("this too")})
  assert sorted(side_by_side.begun) == [0, 1, 2, 3, 4]


def test_an_interruption_comes_before_a_loss_that_is_not_finite(side_by_side):
  """So that the exit code says that a rerun resumes."""
  with pytest.raises(signals.Interrupted):
    side_by_side.run({0: FloatingPointError("the loss is nan"), 4: signals.Interrupted("asked")})


def test_after_another_error_no_further_one_begins(side_by_side):
  with pytest.raises(UserError, match="disk"):
    side_by_side.run({0: UserError("disk"), 1: UserError("disk")})
  # A thread may have taken one more before the error was seen.
  assert len(side_by_side.begun) < 5


def test_a_replica_is_not_trained_by_two_jobs(tmp_path):
  config = configuration.check(runs.short(replicas=2, seed=3))
  (tmp_path / "seed-4").mkdir()
  with workdir.locked(tmp_path / "seed-4"), pytest.raises(UserError, match="another job is using .*seed-4"):
    train.train(config, tmp_path)
  alone = dataclasses.replace(config, replicas=1)
  with replicas.locked(tmp_path, config), pytest.raises(UserError, match="another job is using .*seed-3"):
    train.train(alone, tmp_path / "seed-3")
  assert not any(tmp_path.glob("seed-*/config.json"))
