"""Methods with more than one kind of stage on a tiny network: interrupted inside each stage, they end bit-equal."""

import contextlib

import flax.linen as nn
import pytest
import runs

from gr_jax import models, train
from gr_jax.runs import signals

SETTINGS = {"epochs": 3, "milestones": (), "scenario.num_tasks": 2, "batch_size": 64, "steps_per_call": 2,
            "checkpoint_every_epochs": 10, "evaluation_block": 250}
BALANCED = {"balanced_epochs_share": 1.0, "balanced_learning_rate": 0.05}
OPTIONS = {"eeil": BALANCED, "podnet": BALANCED}


class Tiny(nn.Module):
  """A dense layer on the pixels; its map is signed."""
  num_features: int = 12

  @nn.compact
  def __call__(self, x, *, train):
    del train
    found = nn.Dense(self.num_features)(x.reshape(x.shape[0], -1))
    return nn.relu(found), (found.reshape(-1, 2, 2, 3),)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setattr(models, "make_backbone", lambda name, **options: Tiny())


def config_of(name, **changes):
  options = {f"method_options.{key}": value for key, value in OPTIONS.get(name, {}).items()}
  return runs.short(**{**SETTINGS, "method": name, **options, **changes})


def end_inside(name, folder, monkeypatch, task, stage):
  """Runs until the first epoch of a stage is over, and no further."""
  @contextlib.contextmanager
  def listening():
    def asked():
      path = folder / "metrics.jsonl"
      return path.exists() and any((row["task"], row["stage"], row["epoch"]) == (task, stage, 1)
                                   for row in runs.rows(folder, "epoch"))
    yield asked
  with monkeypatch.context() as patch:
    patch.setattr(signals, "listening", listening)
    with pytest.raises(signals.Interrupted):
      train.train(config_of(name), folder)


@pytest.mark.parametrize("name, stages", [
    ("eeil", {"train", "balance"}), ("il2m", {"train"}), ("ssil", {"first", "train"}),
    ("podnet", {"train", "balance"})])
def test_interrupted_inside_the_last_stage(tmp_path, monkeypatch, name, stages):
  """In the second task, after the first epoch; what the first stage left behind must be in the checkpoint."""
  whole = train.train(config_of(name), tmp_path / "whole")
  rows = runs.rows(tmp_path / "whole", "epoch")
  assert {row["stage"] for row in rows} == stages
  last = [row["stage"] for row in rows if row["task"] == 2][-1]
  end_inside(name, tmp_path / "cut", monkeypatch, 2, last)
  train.train(config_of(name), tmp_path / "cut")
  found, expected = ((runs.timeless(runs.results(folder)), list(map(runs.timeless, runs.rows(folder))))
                     for folder in (tmp_path / "cut", tmp_path / "whole"))
  assert found == expected and whole["tasks_done"] == 2
  # The interruption left a checkpoint of its own; at the ends of tasks every array has the same digest.
  cut, uncut = runs.records(tmp_path / "cut"), runs.records(tmp_path / "whole")
  ends = [row["global_step"] for row in runs.rows(tmp_path / "whole", "task")]
  assert len(ends) == 2 and all(cut[step] == uncut[step] for step in ends)
