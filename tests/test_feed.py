"""Resident, prefetched and streamed pictures: the same rows, boxes and results; what is chosen, what is refused."""

import builders
import jax
import numpy as np
import pytest
import runs

from gr_jax import experiment, feed, train
from gr_jax.errors import UserError

SIDE = 37


def large(folder, **changes):
  """ImageNet-Subset in small: two tasks of 50 classes, an epoch each, views of 32 pixels, ResNet-32."""
  return runs.get_config("imagenetsubset_lt", **{
      "data_dir": str(folder), "image_size": 32, "stored_size": SIDE, "epochs": 1, "milestones": (), "batch_size": 64,
      # At the protocol's 0.1 the first steps blow a grey level of difference up.
      "learning_rate": 1e-3,
      "model": "resnet32", "scenario.num_tasks": 2, "scenario.imbalance": 1.0, "memory.per_class": 1,
      "validation_fraction": 0.0, "evaluation_block": 52, "steps_per_call": 2, "worker_timeout": 120.0, **changes})


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  """Path -> folder of the run; every original has just the stored size."""
  folder = tmp_path_factory.mktemp("three")
  builders.imagenet2012(folder / "tfds", per_class=3, test_per_class=1, sides=(SIDE, SIDE))
  for path in ("resident", "prefetch", "stream"):
    train.train(large(folder / "tfds", pictures=path), folder / path)
  return {path: folder / path for path in ("resident", "prefetch", "stream")}


def losses(workdir):
  return [row["loss"] for row in runs.rows(workdir, "epoch")]


@pytest.mark.slow
def test_prefetched_runs_are_resident_ones_to_the_bit(three):
  assert losses(three["prefetch"]) == losses(three["resident"])
  # Digests of every array of every checkpoint, and the exemplars.
  assert runs.records(three["prefetch"]) == runs.records(three["resident"])
  assert runs.results(three["prefetch"])["accuracy_matrix"] == runs.results(three["resident"])["accuracy_matrix"]


@pytest.mark.slow
def test_streamed_losses_are_those_of_resident_pictures(three):
  # The same boxes: other views would move the first epoch's loss by far more than Pillow's rounding does.
  np.testing.assert_allclose(losses(three["stream"]), losses(three["resident"]), rtol=5e-3)
  assert runs.results(three["stream"])["tasks_done"] == 2


def test_digits_prefetched_equal_resident_ones_to_the_bit(tmp_path):
  for path in ("resident", "prefetch"):
    train.train(runs.short(pictures=path, epochs=2), tmp_path / path)
  assert runs.records(tmp_path / "prefetch") == runs.records(tmp_path / "resident")


def test_resident_where_the_pictures_fit():
  assert feed.choose("auto", 599, 1000)[0] == "resident"
  path, line = feed.choose("auto", 601 * 10**6, 10**9)
  assert path == "prefetch" and "0.60 GB of pictures, 1.00 GB free" in line
  assert feed.choose("stream", 1, 10)[0] == "stream"
  assert 0 < feed.free_bytes(jax.local_devices()[0]) < 2**50


def test_calls_are_short_where_pictures_travel():
  assert feed.steps_together(100, 2**27) == 4
  assert feed.steps_together(3, 2**27) == 3
  assert feed.steps_together(100, 2**40) == 1


@pytest.mark.parametrize("changes, words", [
    ({"pictures": "stream"}, "pictures is 'stream', but the pictures of digits have one size"),
    ({"pictures": "prefetch", "replicas": 2}, "pictures is 'prefetch', but 2 replicas")])
def test_refusals(changes, words):
  with pytest.raises(UserError, match=words):
    experiment.load(runs.short(**changes))
