"""Calibration: against float64 references and scikit-learn, calibrated predictors, known temperatures."""

import numpy as np
import pytest
from references import calibration as reference
from sklearn import metrics as sklearn_metrics

from gr_jax import calibration

RNG = np.random.default_rng(0)
IMAGES, CLASSES = 3000, 6
SCORES = RNG.normal(0, 2, (IMAGES, CLASSES)).astype(np.float32)
LABELS = np.asarray([RNG.choice(CLASSES, p=p) for p in reference.softmax(SCORES * 0.6)])
SEEN = np.asarray([True] * CLASSES + [False] * 2)


def judged(scores, labels, inverse=1.0):
  """calibration.judge with two unseen columns of NaN."""
  wide = np.concatenate([scores, np.full((len(scores), 2), np.nan, np.float32)], axis=1)
  return calibration.judge(wide, labels, np.full(len(SEEN), inverse, np.float32), SEEN)


def figures_of(scores, labels):
  one = judged(scores, labels)
  bins = np.asarray(calibration.class_bins(one.probabilities, labels, np.ones(len(labels), bool)))
  return calibration.figures({name: np.asarray(getattr(one, name)) for name in ("confidence", "nll", "brier")},
                             np.asarray(one.predicted) == labels, bins[:CLASSES])


def test_figures_against_the_reference():
  figures, probabilities = figures_of(SCORES, LABELS), reference.softmax(SCORES)
  confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == LABELS
  expected = {
      "images": IMAGES, "accuracy": correct.mean(), "confidence": confidence.mean(),
      "ece": reference.expected_error(confidence, correct),
      "adaptive_ece": reference.adaptive_error(confidence, correct),
      "classwise_ece": reference.classwise_error(probabilities, LABELS),
      "over_confidence": reference.over_confidence(confidence, correct),
      "under_confidence": reference.under_confidence(confidence, correct),
      "nll": reference.nll(SCORES, LABELS), "brier": reference.brier(SCORES, LABELS)}
  assert figures == pytest.approx(expected, abs=2e-6)
  assert figures["ece"] > 0.05 and figures["over_confidence"] > figures["under_confidence"]


def test_nll_and_brier_against_scikit_learn():
  figures, probabilities = figures_of(SCORES, LABELS), reference.softmax(SCORES)
  assert figures["nll"] == pytest.approx(sklearn_metrics.log_loss(LABELS, probabilities), abs=1e-6)
  by_class = [sklearn_metrics.brier_score_loss(c == LABELS, probabilities[:, c]) for c in range(CLASSES)]
  assert figures["brier"] == pytest.approx(sum(by_class), abs=1e-6)


def test_bins_against_scikit_learn():
  """calibration_curve: accuracy and mean confidence of the bins that have images; its bins are [lower, upper)."""
  from sklearn.calibration import calibration_curve
  probabilities = reference.softmax(SCORES)
  confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == LABELS
  images, sure, right = calibration.reliability_bins(confidence, correct).T
  some = images > 0
  accuracy, mean = calibration_curve(correct, confidence, n_bins=calibration.BINS)
  np.testing.assert_allclose(right[some] / images[some], accuracy)
  np.testing.assert_allclose(sure[some] / images[some], mean)


def test_a_perfectly_calibrated_predictor():
  rng = np.random.default_rng(1)
  scores = rng.normal(0, 2, (40_000, 4)).astype(np.float32)
  probabilities = reference.softmax(scores)
  labels = (rng.uniform(size=(len(scores), 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=3)
  one = calibration.judge(scores, labels, np.ones(4, np.float32), np.ones(4, bool))
  bins = np.asarray(calibration.class_bins(one.probabilities, labels, np.ones(len(labels), bool)))
  figures = calibration.figures({name: np.asarray(getattr(one, name)) for name in ("confidence", "nll", "brier")},
                                np.asarray(one.predicted) == labels, bins)
  assert max(figures["ece"], figures["adaptive_ece"], figures["classwise_ece"]) < 0.012
  assert figures["accuracy"] == pytest.approx(figures["confidence"], abs=0.01)


def test_a_predictor_that_is_always_sure_and_half_right():
  bins = calibration.reliability_bins(np.ones(10), np.arange(10) < 5)
  assert calibration.expected_error(bins) == calibration.over_confidence(bins) == 0.5
  assert calibration.under_confidence(bins) == 0
  # A bin has its upper edge: 1/3 is in bin 4, and 0 in the first.
  assert calibration.reliability_bins(np.asarray([0.0, 1 / 3]), np.ones(2))[:, 0].nonzero()[0].tolist() == [0, 4]


def test_equal_confidences_share_an_adaptive_bin_in_any_order():
  confidence = np.repeat([0.2, 0.9, 1.0], [3, 1, 30])
  correct = np.arange(34) % 3 == 0
  errors = {calibration.expected_error(calibration.adaptive_bins(confidence[order], correct[order]))
            for order in (np.arange(34), np.arange(34)[::-1], np.roll(np.arange(34), 7))}
  assert max(errors) - min(errors) < 1e-12
  assert errors.pop() == pytest.approx(reference.adaptive_error(confidence, correct))


def test_without_images_nothing_is_known():
  empty = np.zeros((calibration.BINS, 3))
  assert calibration.expected_error(empty) is None and calibration.over_confidence(empty) is None
  assert calibration.expected_error(calibration.adaptive_bins(np.zeros(0), np.zeros(0))) is None
  assert calibration.classwise_error(np.zeros((0, calibration.BINS, 3))) is None


def test_padding_and_unseen_classes_count_nowhere():
  valid = np.arange(IMAGES) < 10
  bins = np.asarray(calibration.class_bins(judged(SCORES, LABELS).probabilities, LABELS, valid))
  assert bins[..., 0].sum(axis=1).tolist() == [10] * len(SEEN)
  assert bins[..., 2].sum() == 10 and not bins[CLASSES:, 1:].any()


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0, 12.0])
def test_a_known_temperature_is_recovered(temperature):
  """Labels drawn from softmax(z): scores z T have the temperature T, and the gradient there is 0."""
  rng = np.random.default_rng(2)
  clean = rng.normal(0, 2, (20_000, 5))
  labels = (rng.uniform(size=(len(clean), 1)) > reference.softmax(clean).cumsum(axis=1)).sum(axis=1).clip(max=4)
  fitted, = calibration.fit_temperatures(clean * temperature, labels, np.zeros(5, int))
  assert fitted == pytest.approx(temperature, rel=0.03)
  weights = reference.class_weights(labels)
  loss = lambda t: reference.nll(clean * temperature / t, labels, weights)
  assert loss(fitted) <= min(loss(fitted * 1.001), loss(fitted / 1.001))
  slope = (loss(fitted * (1 + 1e-4)) - loss(fitted * (1 - 1e-4))) / 2e-4
  assert abs(slope) < 1e-7


def test_two_temperatures_are_recovered():
  rng = np.random.default_rng(3)
  clean, groups, wanted = rng.normal(0, 2, (40_000, 6)), np.asarray([0, 0, 0, 1, 1, 1]), np.asarray([0.5, 4.0])
  labels = (rng.uniform(size=(len(clean), 1)) > reference.softmax(clean).cumsum(axis=1)).sum(axis=1).clip(max=5)
  scores, weights = clean * wanted[groups], reference.class_weights(labels)
  fitted = calibration.fit_temperatures(scores, labels, groups)
  np.testing.assert_allclose(fitted, wanted, rtol=0.05)
  loss = lambda t: reference.nll(reference.scaled(scores, groups, t), labels, weights)
  for factor in ([1.002, 1], [1 / 1.002, 1], [1, 1.002], [1, 1 / 1.002]):
    assert loss(fitted) < loss(fitted * factor)
  # They are at least as good as one for all.
  one = calibration.fit_temperatures(scores, labels, np.zeros(6, int))
  assert loss(fitted) < loss(one[[0, 0]])


def test_every_class_weighs_the_same():
  """Images of one class repeated a hundred times change nothing."""
  rng = np.random.default_rng(4)
  scores, labels = rng.normal(0, 3, (60, 3)), np.arange(60) % 3
  again = np.concatenate([np.arange(60), np.repeat(np.flatnonzero(labels == 1), 99)])
  alone, repeated = (calibration.fit_temperatures(scores[rows], labels[rows], np.zeros(3, int))
                     for rows in (np.arange(60), again))
  np.testing.assert_allclose(alone, repeated, rtol=1e-8)


def test_temperatures_stay_inside_their_limits():
  """All correct: colder is better without end. All wrong: hotter is."""
  scores, labels = np.asarray([[1.0, 0.0], [0.0, 1.0]]), np.asarray([0, 1])
  assert calibration.fit_temperatures(scores * 0.1, labels, np.zeros(2, int)) == pytest.approx(0.01, rel=1e-6)
  assert calibration.fit_temperatures(scores, 1 - labels, np.zeros(2, int)) == pytest.approx(100)
  # Nearest means: squared distances, a class without a mean, one image.
  distances = np.asarray([[-0.1, -0.3, -1e9], [-0.5, -0.2, -1e9], [-0.3, -0.2, -1e9]])
  temperature, = calibration.fit_temperatures(distances, np.asarray([0, 1, 0]), np.zeros(3, int))
  assert 0.01 < temperature < 1
  assert np.isfinite(calibration.fit_temperatures(distances[:1], np.asarray([0]), np.asarray([0, 0, 1]))).all()


@pytest.mark.parametrize("scores, labels", [(np.zeros((0, 3)), []), ([[np.nan, 1.0]], [0])])
def test_nothing_to_fit(scores, labels):
  with pytest.raises(ValueError, match="fit_temperatures"):
    calibration.fit_temperatures(np.asarray(scores), np.asarray(labels, int), np.zeros(3, int))
