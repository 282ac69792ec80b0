"""The evaluation after a task: groups, temperatures from the hold-out, arrays; pictures that stay or travel."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import runs
from references import calibration as reference
from references import neural_collapse

from gr_jax import calibration
from gr_jax.devices import parallel
from gr_jax.runs import journal, results
from gr_jax.training import evaluation, pictures
from gr_jax.training import experiment as experiments


class Flat(nn.Module):
  """Features are the pixels, so that nothing takes long to compile."""
  num_features: int = 64

  @nn.compact
  def __call__(self, x, *, train):
    del train
    return x.reshape(len(x), -1), ()


KERNEL = np.random.default_rng(0).normal(0, 0.3, (64, 10)).astype(np.float32)


def loaded(devices=1, **changes):
  experiment = experiments.load(runs.short(**{"scenario.num_tasks": 2, **changes}))
  return dataclasses.replace(experiment, devices=tuple(jax.devices()[:devices]), model=Flat())


def network_of(experiment):
  classifier = {"kernel": KERNEL, "bias": np.zeros(10, np.float32)}
  return parallel.replicate({"params": {"backbone": {}, "classifier": classifier}, "batch_stats": {},
                             "carry": experiment.init_carry()}, experiment.devices)


def evaluated(experiment, task=2, **changes):
  quiet = lambda items, **_: items
  parts = {"pictures": pictures.load(experiment, "test", quiet),
           "holdout": pictures.load(experiment, "calibration", quiet), **changes}
  return evaluation.make_evaluator(experiment, **parts)(network_of(experiment), task), parts


@pytest.fixture(scope="module")
def digits():
  experiment = loaded()
  return experiment, *evaluated(experiment)


def scores_and_features(experiment, data):
  """Of every picture, without the programs under test."""
  pixels = data.images.astype(np.float64).reshape(len(data.labels), -1) / 255
  features = (pixels - experiment.source.mean[0]) / experiment.source.std[0]
  return features @ KERNEL.astype(np.float64), features, data.labels


def test_figures_and_arrays_against_the_references(digits):
  experiment, (_, figures, arrays), parts = digits
  scores, features, labels = scores_and_features(experiment, parts["pictures"])
  held, _, held_labels = scores_and_features(experiment, parts["holdout"])
  fitted = figures["calibration"]["temperatures"]
  assert fitted["images"] == len(held_labels) == 48 and fitted["classes"] == len(set(held_labels)) == 10
  groups = (np.arange(10) >= 5).astype(int)
  assert fitted["one"] == pytest.approx(calibration.fit_temperatures(held, held_labels, np.zeros(10, int))[0], rel=1e-3)
  two = calibration.fit_temperatures(held, held_labels, groups)
  assert (fitted["old"], fitted["new"]) == pytest.approx(tuple(two), rel=1e-3)
  counts = experiment.scenario.counts
  classes = {"all": counts >= 0, "old": groups == 0, "new": groups == 1, "many": counts > 100,
             "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
  variants = {"uncalibrated": np.ones(2), "one_temperature": np.full(2, fitted["one"]),
              "two_temperatures": np.asarray([fitted["old"], fitted["new"]])}
  assert arrays["variants"].tolist() == list(variants) and arrays["groups"].tolist() == list(classes)
  for number, (variant, temperatures) in enumerate(variants.items()):
    probabilities = reference.softmax(reference.scaled(scores, groups, temperatures))
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    for place, (name, members) in enumerate(classes.items()):
      one, chosen = figures["calibration"][variant][name], members[labels]
      if not members.any():
        assert one is None
        continue
      assert one["accuracy"] == correct[chosen].mean() and one["images"] == chosen.sum()
      # An image on the edge of a bin may fall to either side.
      assert one["ece"] == pytest.approx(reference.expected_error(confidence[chosen], correct[chosen]), abs=5e-3)
      likelihoods = probabilities[np.arange(len(labels)), labels]
      assert one["nll"] == pytest.approx(-np.log(likelihoods[chosen]).mean(), rel=1e-3)
      assert calibration.expected_error(arrays["reliability"][number, place]) == pytest.approx(one["ece"])
  predicted = scores.argmax(axis=1)
  confusion = np.zeros((10, 10), int)
  np.add.at(confusion, (labels, predicted), 1)
  np.testing.assert_array_equal(arrays["confusion"], confusion)
  nc1, of_means, _, nc3, nc4 = neural_collapse.figures(
      features, labels, KERNEL, np.zeros(10))
  collapse = figures["neural_collapse"]["all"]
  assert collapse["nc1"] == pytest.approx(nc1, rel=2e-2) and collapse["nc3"] == pytest.approx(nc3, rel=1e-4)
  assert tuple(collapse["nc2"]["means"].values()) == pytest.approx(of_means, rel=1e-3)
  assert collapse["nc4"] == pytest.approx(nc4, abs=2e-3)
  assert figures["neural_collapse"]["old"]["classes"] == 5


def test_pictures_that_travel_and_more_devices_change_nothing(digits):
  _, (counts, figures, arrays), _ = digits
  for changes in ({"devices": 3}, {"pictures": "prefetch", "evaluation_block": 40, "devices": 2}):
    (others, other_figures, other_arrays), _ = evaluated(loaded(**changes))
    np.testing.assert_array_equal(counts, others)
    np.testing.assert_array_equal(arrays["confusion"], other_arrays["confusion"])
    ours, theirs = (jax.tree.leaves(tree) for tree in (figures, other_figures))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_first_task_and_no_hold_out(digits):
  experiment, (counts, figures, _), parts = digits
  (_, first, arrays), _ = evaluated(experiment, task=1)
  fitted = first["calibration"]["temperatures"]
  assert fitted["old"] is None and fitted["new"] == fitted["one"]
  assert first["calibration"]["two_temperatures"] == first["calibration"]["one_temperature"]
  assert first["calibration"]["uncalibrated"]["old"] is None is first["neural_collapse"]["old"]
  assert arrays["confusion"].shape == (5, 5)
  (others, without, arrays), _ = evaluated(experiment, holdout=None)
  np.testing.assert_array_equal(counts, others)
  assert without["calibration"]["temperatures"] is None is without["calibration"]["one_temperature"]
  assert without["calibration"]["uncalibrated"] == figures["calibration"]["uncalibrated"]
  assert arrays["reliability"].shape[0] == 1
  # Held-out images are not judged by a fit to themselves.
  (counts, figures, _), _ = evaluated(experiment, pictures=parts["holdout"], split="holdout")
  assert figures["calibration"]["temperatures"] is None and counts[0, 2].sum() == 48


def test_arrays_are_written_whole_and_read_without_pickle(digits, tmp_path):
  _, (_, _, arrays), _ = digits
  file = results.arrays_file(tmp_path, 3)
  for _ in range(2):
    journal.write_arrays(file, arrays)
  assert [path.name for path in file.parent.iterdir()] == ["task_3.npz"]
  with np.load(file) as read:
    assert set(read) == set(arrays)
    for name, values in arrays.items():
      np.testing.assert_array_equal(read[name], values)
