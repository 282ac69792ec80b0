"""The references against their own central differences, cases worked out by hand, and identities."""

import math
from typing import NamedTuple

import numpy as np
import pytest

from references import (
  bic,
  der,
  differences,
  eeil,
  finetune,
  foster,
  icarl,
  il2m,
  joint,
  lucir,
  lwf,
  lws,
  mafdrc,
  notation,
  podnet,
  ssil,
  wa,
)

# Eight columns, not in the order of arrival: tasks 0, 1, 2 and two unseen classes.
TASK_OF_CLASS = np.array([2, 0, 3, 1, 0, 3, 1, 2])
TASK = 2
OLD, NEW = TASK_OF_CLASS < TASK, TASK_OF_CLASS == TASK
SEEN = OLD | NEW
NONE = np.zeros(8, bool)
COUNTS = np.array([30, 4, 9, 5, 20, 9, 20, 7])
ALPHA, BETA = np.array([0.8, 1.3, 1.0, 1.0]), np.array([0.1, -0.4, 0.0, 0.0])
SCALE = np.array([0.5, 1.2, np.nan, 0.7, 1.0, np.inf, -0.3, 2.0])
GARBAGE = [0.0, np.nan, np.inf, -np.inf, 1e30]
BATCH, FEATURES = 6, 5


class Problem(NamedTuple):
  logits: np.ndarray  # [batch, classes], garbage in unseen columns
  teacher: np.ndarray  # [batch, classes], garbage in new and unseen columns
  labels: np.ndarray  # [batch], seen classes, old and new
  fresh: np.ndarray  # [batch], new classes only


def problem(garbage=0.0, seed=0):
  draw = np.random.default_rng(seed)
  logits, teacher = draw.normal(0, 2, (2, BATCH, 8))
  labels = np.array([1, 0, 7, 6, 3, 0])
  logits[:, ~SEEN], teacher[:, ~OLD] = garbage, garbage
  return Problem(logits, teacher, labels, draw.choice(np.flatnonzero(NEW), BATCH))


def row(*values):
  return np.array([values], np.float64)


def mask(text):
  """Masks of a small head: "on." is an old, a new and an unseen class."""
  return np.array([c == "o" for c in text]), np.array([c == "n" for c in text])


def other(p):
  """Further logits [batch, classes], garbage in unseen columns."""
  return 1 - 0.5 * p.logits


def any_old_and_new(p):
  """Logits of the auxiliary head of section 12, for any old class and two new ones."""
  return 0.3 * p.logits[:, [1, 0, 7]]


# Every loss of logits with its gradient, as functions of the logits and the rest of the problem.
LOSSES = {
    "finetune": (lambda z, p: finetune.loss(z, p.labels, OLD, NEW),
                 lambda z, p: finetune.gradient(z, p.labels, OLD, NEW)),
    "finetune without memory": (lambda z, p: finetune.loss(z, p.fresh, OLD, NEW, memory=False),
                                lambda z, p: finetune.gradient(z, p.fresh, OLD, NEW, memory=False)),
    "finetune with prior": (lambda z, p: finetune.loss(z, p.labels, OLD, NEW, counts=COUNTS),
                            lambda z, p: finetune.gradient(z, p.labels, OLD, NEW, counts=COUNTS)),
    "joint": (lambda z, p: joint.loss(z, p.labels, SEEN), lambda z, p: joint.gradient(z, p.labels, SEEN)),
    "joint with prior": (lambda z, p: joint.loss(z, p.labels, SEEN, COUNTS),
                         lambda z, p: joint.gradient(z, p.labels, SEEN, COUNTS)),
    "lwf": (lambda z, p: lwf.loss(z, p.teacher, p.labels, OLD, NEW),
            lambda z, p: lwf.gradient(z, p.teacher, p.labels, OLD, NEW)),
    "lwf without memory": (lambda z, p: lwf.loss(z, p.teacher, p.fresh, OLD, NEW, memory=False),
                           lambda z, p: lwf.gradient(z, p.teacher, p.fresh, OLD, NEW, memory=False)),
    "lwf, smoothed": (lambda z, p: lwf.loss(z, p.teacher, p.labels, OLD, NEW, smoothing=0.1),
                      lambda z, p: lwf.gradient(z, p.teacher, p.labels, OLD, NEW, smoothing=0.1)),
    "lwf of PyCIL": (lambda z, p: lwf.pycil_loss(z, p.teacher, p.fresh, OLD, NEW),
                     lambda z, p: lwf.pycil_gradient(z, p.teacher, p.fresh, OLD, NEW)),
    "icarl": (lambda z, p: icarl.loss(z, p.teacher, p.labels, OLD, NEW, 0.7),
              lambda z, p: icarl.gradient(z, p.teacher, p.labels, OLD, NEW, 0.7)),
    "icarl of the paper": (lambda z, p: icarl.paper_loss(z, p.teacher, p.labels, OLD, NEW),
                           lambda z, p: icarl.paper_gradient(z, p.teacher, p.labels, OLD, NEW)),
    "icarl of PyCIL": (lambda z, p: icarl.pycil_loss(z, p.teacher, p.labels, OLD, NEW),
                       lambda z, p: icarl.pycil_gradient(z, p.teacher, p.labels, OLD, NEW)),
    "wa": (lambda z, p: wa.loss(z, p.teacher, p.labels, OLD, NEW),
           lambda z, p: wa.gradient(z, p.teacher, p.labels, OLD, NEW)),
    "bic": (lambda z, p: bic.loss(z, p.teacher, p.labels, OLD, NEW, ALPHA, BETA, TASK_OF_CLASS),
            lambda z, p: bic.gradient(z, p.teacher, p.labels, OLD, NEW, ALPHA, BETA, TASK_OF_CLASS)),
    "eeil": (lambda z, p: eeil.loss(z, p.teacher, p.labels, OLD, NEW, TASK_OF_CLASS),
             lambda z, p: eeil.gradient(z, p.teacher, p.labels, OLD, NEW, TASK_OF_CLASS)),
    "eeil, last task skipped": (
        lambda z, p: eeil.loss(z, p.teacher, p.labels, OLD, NEW, TASK_OF_CLASS, skip_last=True),
        lambda z, p: eeil.gradient(z, p.teacher, p.labels, OLD, NEW, TASK_OF_CLASS, skip_last=True)),
    "ssil": (lambda z, p: ssil.loss(z, p.teacher, p.labels, OLD, NEW, TASK_OF_CLASS),
             lambda z, p: ssil.gradient(z, p.teacher, p.labels, OLD, NEW, TASK_OF_CLASS)),
    "lws": (lambda z, p: lws.loss(z, SCALE, p.labels, SEEN),
            lambda z, p: lws.gradients(z, SCALE, p.labels, SEEN, NEW, frozen=False)[0]),
    "der": (lambda z, p: der.loss(z, any_old_and_new(p), p.labels, OLD, NEW),
            lambda z, p: der.gradients(z, any_old_and_new(p), p.labels, OLD, NEW)[0]),
    "foster, boosting": (
        lambda z, p: foster.boosting_loss(z, other(p), p.teacher, p.labels, OLD, NEW, COUNTS, weight=0.7),
        lambda z, p: foster.boosting_gradients(z, other(p), p.teacher, p.labels, OLD, NEW, COUNTS, weight=0.7)[0]),
    "foster, new features": (
        lambda z, p: foster.boosting_loss(other(p), z, p.teacher, p.labels, OLD, NEW, COUNTS),
        lambda z, p: foster.boosting_gradients(other(p), z, p.teacher, p.labels, OLD, NEW, COUNTS)[1]),
    "foster, compression": (lambda z, p: foster.compression_loss(z, other(p), SEEN, COUNTS),
                            lambda z, p: foster.compression_gradient(z, other(p), SEEN, COUNTS)),
    "mafdrc, adaptation": (lambda z, p: mafdrc.adaptation_loss(z, p.fresh, NEW),
                           lambda z, p: mafdrc.adaptation_gradient(z, p.fresh, NEW)),
    "mafdrc, old branch": (
        lambda z, p: mafdrc.fusion_loss(z, other(p), p.teacher, p.logits, p.labels, OLD, NEW, COUNTS),
        lambda z, p: mafdrc.fusion_gradients(z, other(p), p.teacher, p.logits, p.labels, OLD, NEW, COUNTS)[0]),
    "mafdrc, new branch": (
        lambda z, p: mafdrc.fusion_loss(other(p), z, p.teacher, p.logits, p.labels, OLD, NEW, COUNTS),
        lambda z, p: mafdrc.fusion_gradients(other(p), z, p.teacher, p.logits, p.labels, OLD, NEW, COUNTS)[1]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_central_differences(name):
  loss, gradient = LOSSES[name]
  p = problem()
  numeric = differences.numeric_gradient(lambda z: loss(z, p), p.logits)
  np.testing.assert_allclose(gradient(p.logits, p), numeric, rtol=1e-7, atol=1e-9)
  assert np.abs(numeric).max() > 0.01


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_unused_columns_change_nothing(name, garbage):
  loss, gradient = LOSSES[name]
  clean, dirty = problem(), problem(garbage)
  assert loss(dirty.logits, dirty) == loss(clean.logits, clean)
  result = gradient(dirty.logits, dirty)
  np.testing.assert_array_equal(result, gradient(clean.logits, clean))
  assert not result[:, ~SEEN].any()


@pytest.mark.parametrize("name", LOSSES)
def test_large_logits_stay_finite(name):
  loss, gradient = LOSSES[name]
  p = problem()
  assert np.isfinite(loss(1e3 * p.logits, p)) and np.isfinite(gradient(1e3 * p.logits, p)).all()


# ------------------------------------------------------------------------------------ differences and notation


def test_central_differences_of_a_cubic():
  # f = x^3 + x y: f_x = 3 x^2 + y = 14, f_y = x = 2 at (2, 2). Entry 2 is not read.
  result = differences.numeric_gradient(lambda v: v[0] ** 3 + v[0] * v[1], [2.0, 2.0, np.nan])
  np.testing.assert_allclose(result, [14, 2, 0], rtol=1e-8)
  np.testing.assert_allclose(differences.numeric_gradient(lambda x: x**2, 3.0), 6, rtol=1e-8)


def test_cross_entropy_by_hand():
  # softmax(0, ln 3) = (1/4, 3/4). Label 1: -ln 3/4 = ln 4/3; gradient (1/4, 3/4 - 1).
  z = row(0, math.log(3), np.nan)
  assert notation.cross_entropy(z, [1], [True, True, False]) == pytest.approx(math.log(4 / 3), rel=1e-14)
  np.testing.assert_allclose(notation.cross_entropy_gradient(z, [1], [True, True, False]), row(0.25, -0.25, 0))


def test_a_label_outside_the_softmax_is_refused():
  with pytest.raises(ValueError, match=r"labels \[2\]"):
    notation.cross_entropy(np.zeros((2, 3)), [0, 2], [True, True, False])


def test_prior_by_hand():
  # pi = (3/4, 1/4), equal logits: softmax(z + log pi) = pi. Label 1: -ln 1/4 = ln 4; gradient (3/4, -3/4).
  seen, counts = np.array([True, True, False]), [3, 1, 100]
  assert joint.loss(row(5, 5, np.inf), [1], seen, counts) == pytest.approx(math.log(4), rel=1e-14)
  np.testing.assert_allclose(joint.gradient(row(5, 5, np.inf), [1], seen, counts), row(0.75, -0.75, 0))


def test_prior_of_equal_counts_is_plain_cross_entropy():
  p = problem()
  assert joint.loss(p.logits, p.labels, SEEN, np.full(8, 7)) == pytest.approx(joint.loss(p.logits, p.labels, SEEN))


def test_distillation_by_hand():
  # T = 2: softmax((0, 2 ln 3) / 2) = (1/4, 3/4); the teacher's (0, 0) is (1/2, 1/2).
  # KD = -(ln 1/4 + ln 3/4) / 2 = ln 4 - ln(3) / 2; gradient ((1/4, 3/4) - (1/2, 1/2)) / 2 = (-1/8, 1/8).
  old, _ = mask("oo.")
  student, teacher = row(0, 2 * math.log(3), np.nan), row(0, 0, np.inf)
  assert notation.distillation(student, teacher, old) == pytest.approx(math.log(4) - math.log(3) / 2, rel=1e-14)
  np.testing.assert_allclose(notation.distillation_gradient(student, teacher, old), row(-0.125, 0.125, 0))


def test_smoothed_distillation_by_hand():
  # As above with smoothing 1: ((1/4 + 1/2) / 2, (3/4 + 1/2) / 2) = (3/8, 5/8). KD = -(ln 3/8 + ln 5/8) / 2.
  old, _ = mask("oo.")
  kd = notation.distillation(row(0, 2 * math.log(3), 0), row(0, 0, 0), old, smoothing=1.0)
  assert kd == pytest.approx(-math.log(15 / 64) / 2, rel=1e-14)


@pytest.mark.parametrize("temperature", [0.5, 1, 2])
def test_distillation_of_equal_logits_has_no_gradient(temperature):
  p = problem()
  gradient = notation.distillation_gradient(p.logits, p.logits, OLD, temperature)
  np.testing.assert_array_equal(gradient, np.zeros((BATCH, 8)))
  # Its value there is the entropy, the least it can be; a shift of a row's logits changes nothing.
  least = notation.distillation(p.logits, p.logits, OLD, temperature)
  assert notation.distillation(p.logits + 3, p.logits, OLD, temperature) == pytest.approx(least)
  assert notation.distillation(p.teacher + 0.0, p.logits, OLD, temperature) > least


def test_losses_are_means_over_the_batch():
  p = problem()
  for name, (loss, gradient) in LOSSES.items():
    twice = Problem(*(np.concatenate([part, part]) for part in p))
    assert loss(twice.logits, twice) == pytest.approx(loss(p.logits, p), rel=1e-13), name
    np.testing.assert_allclose(gradient(twice.logits, twice)[:BATCH], gradient(p.logits, p) / 2, rtol=1e-12)


# --------------------------------------------------------------------------------------------- finetune, joint


def test_finetune_without_memory_leaves_old_columns_alone():
  p = problem()
  assert not finetune.gradient(p.logits, p.fresh, OLD, NEW, memory=False)[:, OLD].any()
  pair = p.logits, np.where(OLD, np.nan, p.logits)
  clean, dirty = (finetune.loss(z, p.fresh, OLD, NEW, memory=False) for z in pair)
  assert clean == dirty
  with pytest.raises(ValueError, match="not among"):
    finetune.loss(p.logits, p.labels, OLD, NEW, memory=False)


def test_finetune_counts_what_is_present():
  old, new = mask("oon.")
  np.testing.assert_array_equal(finetune.present_counts([500, 5, 300, 9], old, new, 20), [20, 5, 300, 0])


def test_finetune_of_the_first_task_needs_no_memory():
  p = problem()
  first = finetune.loss(p.logits, p.fresh, NONE, NEW)
  assert first == finetune.loss(p.logits, p.fresh, NONE, NEW, memory=False)


def test_joint_takes_all_rows_of_all_seen_classes():
  task_of_class, labels = [1, 0, 2], [0, 1, 2, 1, 0, 0, 2]
  np.testing.assert_array_equal(joint.rows(labels, task_of_class, 0), [1, 3])
  np.testing.assert_array_equal(joint.rows(labels, task_of_class, 1), [0, 1, 3, 4, 5])
  np.testing.assert_array_equal(joint.rows(labels, task_of_class, 2), np.arange(7))
  np.testing.assert_array_equal(joint.counts(labels, task_of_class, 1), [3, 2, 0])


# -------------------------------------------------------------------------------------------------------- lwf


@pytest.mark.parametrize("loss", [lwf.loss, lwf.pycil_loss, icarl.loss, icarl.pycil_loss, wa.loss])
def test_without_old_classes_a_loss_is_cross_entropy(loss):
  p = problem()
  alone = loss(p.logits, np.full((BATCH, 8), np.nan), p.fresh, NONE, NEW)
  assert alone == notation.cross_entropy(p.logits, p.fresh, NEW)


def test_lwf_by_hand():
  # Old classes 0, 1 with the logits of test_distillation_by_hand, new class 2 at 0. exp(z) = 1, 9, 1: CE of label 2 is
  # ln 11. PyCIL: one new class, so CE is 0, + 3 KD.
  old, new = mask("oon")
  z, teacher, kd = row(0, 2 * math.log(3), 0), row(0, 0, np.nan), math.log(4) - math.log(3) / 2
  assert lwf.loss(z, teacher, [2], old, new) == pytest.approx(math.log(11) + kd, rel=1e-14)
  assert lwf.pycil_loss(z, teacher, [2], old, new) == pytest.approx(3 * kd, rel=1e-14)
  np.testing.assert_allclose(lwf.pycil_gradient(z, teacher, [2], old, new), row(-0.375, 0.375, 0), atol=1e-16)


def test_softening_by_powers_is_softening_by_temperature():
  z = problem().logits[:, SEEN]
  softened = lwf.tempered(np.exp(notation.log_softmax(z)), 2)
  np.testing.assert_allclose(softened, np.exp(notation.log_softmax(z / 2)), rtol=1e-13)


def test_released_smoothing_moves_the_loss_by_about_itself():
  p = problem()
  clean = lwf.loss(p.logits, p.teacher, p.labels, OLD, NEW)
  smoothed = lwf.loss(p.logits, p.teacher, p.labels, OLD, NEW, smoothing=lwf.RELEASED_SMOOTHING)
  assert 0 < abs(smoothed - clean) < 1e-3


# ------------------------------------------------------------------------------------------------------ icarl


def test_icarl_by_hand():
  # sigmoid(0) = 1/2, teacher sigmoid(ln 3) = 3/4: BCE = ln 2 whatever the target; its gradient 1/2 - 3/4 = -1/4.
  # Two old classes, one new, logits 0, label 2: CE = ln 3, gradient (1/3, 1/3, -2/3).
  old, new = mask("oon.")
  z, teacher = row(0, 0, 0, np.nan), row(math.log(3), math.log(3), np.nan, np.nan)
  assert icarl.loss(z, teacher, [2], old, new) == pytest.approx(math.log(3) + 2 * math.log(2), rel=1e-14)
  np.testing.assert_allclose(icarl.gradient(z, teacher, [2], old, new), row(1 / 12, 1 / 12, -2 / 3, 0))
  # The paper's form: three BCEs of ln 2; the new class has target 1.
  assert icarl.paper_loss(z, teacher, [2], old, new) == pytest.approx(3 * math.log(2), rel=1e-14)
  np.testing.assert_allclose(icarl.paper_gradient(z, teacher, [2], old, new), row(-0.25, -0.25, -0.5, 0))
  # A row of the memory has target 0 for the new class, whichever old class it is.
  np.testing.assert_allclose(icarl.paper_gradient(z, teacher, [0], old, new), row(-0.25, -0.25, 0.5, 0))


def test_icarl_of_the_paper_in_the_first_task_is_one_hot():
  p = problem()
  targets = icarl.binary_targets(p.teacher, p.fresh, NONE, NEW)
  np.testing.assert_array_equal(targets, np.eye(8)[p.fresh])


def test_binary_distillation_of_equal_logits_has_no_gradient():
  p = problem()
  np.testing.assert_array_equal(icarl.gradient(p.logits, p.logits, p.labels, OLD, NEW),
                                notation.cross_entropy_gradient(p.logits, p.labels, SEEN))
  assert not icarl.paper_gradient(p.logits, p.logits, p.labels, OLD, NEW)[:, OLD].any()


def test_exemplar_means_and_nearest_mean_by_hand():
  # Class 0: (2, 0) and (0, 5) -> units (1, 0), (0, 1) -> mean (1/2, 1/2) -> (1, 1)/sqrt 2. Class 2: (-1, 0).
  means, present = icarl.exemplar_means([[2, 0], [0, 5], [-1, 0]], [0, 0, 2], 3)
  np.testing.assert_allclose(means, [[math.sqrt(0.5)] * 2, [0, 0], [-1, 0]], rtol=1e-15)
  np.testing.assert_array_equal(present, [True, False, True])
  # (3, 0) -> (1, 0): |.|^2 to (1, 1)/sqrt 2 is 2 - sqrt 2, to (-1, 0) it is 4. Class 1 has no exemplar.
  scores = icarl.nearest_mean_scores([[3, 0], [-2, 0]], np.where(present[:, None], means, np.nan), present)
  np.testing.assert_allclose(scores, [[math.sqrt(2) - 2, -np.inf, -4], [-2 - math.sqrt(2), -np.inf, 0]], atol=1e-15)
  np.testing.assert_array_equal(icarl.nearest_mean([[3, 0], [-2, 0]], means, present), [0, 2])


def test_nearest_mean_is_the_largest_cosine():
  draw = np.random.default_rng(3)
  labels = np.array([0, 0, 1, 3, 3, 3, 5, 5])
  means, present = icarl.exemplar_means(draw.normal(size=(8, FEATURES)), labels, 8)
  features = draw.normal(size=(20, FEATURES))
  # The mean of units, not of raw features: scaling an exemplar changes nothing; scaling a test feature neither.
  cosines = np.where(present, notation.normalized(features) @ means.T, -np.inf)
  np.testing.assert_array_equal(icarl.nearest_mean(7 * features, means, present), cosines.argmax(axis=1))
  np.testing.assert_allclose(icarl.nearest_mean_scores(features, means, present), 2 * cosines - 2, atol=1e-14)
  assert not np.isin(icarl.nearest_mean(features, means, present), np.flatnonzero(~present)).any()


# --------------------------------------------------------------------------------------------------------- wa


def test_alignment_by_hand():
  # Old columns (3, 4) and (0, 1): lengths 5, 1, mean 3. New (6, 8) and (2, 0): 10, 2, mean 6. gamma = 1/2.
  old, new = mask("onon.")
  kernel = np.array([[3, 6, 0, 2, np.nan], [4, 8, 1, 0, np.inf]])
  assert wa.gamma(kernel, old, new) == pytest.approx(0.5, rel=1e-15)
  np.testing.assert_allclose(wa.aligned(kernel, old, new), [[3, 3, 0, 1, np.nan], [4, 4, 1, 0, np.inf]], rtol=1e-15)


def test_alignment_makes_mean_lengths_equal_and_keeps_the_rest():
  kernel = np.random.default_rng(5).normal(size=(FEATURES, 8))
  kernel[:, NEW] *= 3
  aligned = wa.aligned(kernel, OLD, NEW)
  assert wa.mean_norm(aligned, NEW) == pytest.approx(wa.mean_norm(aligned, OLD), rel=1e-14)
  np.testing.assert_array_equal(aligned[:, ~NEW], kernel[:, ~NEW])
  np.testing.assert_allclose(wa.aligned(aligned, OLD, NEW), aligned, rtol=1e-14)
  np.testing.assert_array_equal(wa.aligned(kernel, NONE, SEEN), kernel)


def test_clipping_keeps_what_is_positive():
  old, new = mask("on.")
  np.testing.assert_array_equal(wa.clipped([[-1, 2, -3], [4, -5, np.nan]], old, new), [[0, 2, -3], [4, 0, np.nan]])


def test_wa_by_hand():
  # One new class of three: lambda = 2/3. CE = ln 11 and KD as in test_lwf_by_hand.
  old, new = mask("oon")
  expected = math.log(11) / 3 + 2 / 3 * (math.log(4) - math.log(3) / 2)
  assert wa.loss(row(0, 2 * math.log(3), 0), row(0, 0, 0), [2], old, new) == pytest.approx(expected, rel=1e-14)


# -------------------------------------------------------------------------------------------------------- bic


def test_correction_of_one_and_zero_is_the_identity():
  p = problem(np.nan)
  q = bic.corrected(p.logits, np.ones(4), np.zeros(4), TASK_OF_CLASS, SEEN)
  np.testing.assert_array_equal(q[:, SEEN], p.logits[:, SEEN])
  assert (q[:, ~SEEN] == -np.inf).all()
  stage = bic.loss(p.logits, p.teacher, p.labels, OLD, NEW, np.ones(4), np.zeros(4), TASK_OF_CLASS)
  assert stage == wa.loss(p.logits, p.teacher, p.labels, OLD, NEW)


def test_bic_without_old_classes_is_cross_entropy():
  p = problem()
  stage = bic.loss(p.logits, p.teacher, p.fresh, NONE, NEW, np.ones(4), np.zeros(4), TASK_OF_CLASS)
  assert stage == notation.cross_entropy(p.logits, p.fresh, NEW)


def test_bic_by_hand():
  # Tasks {0, 1} and {2}; alpha_0 = 2, beta_0 = 1. z = (0, ln 3, 1): q = (1, 1 + 2 ln 3, 1), exp(q) / e = (1, 9, 1): CE
  # of label 2 is ln 11. The teacher (5, 5) becomes (11, 11): KD as in test_distillation_by_hand. lambda = 2/3.
  old, new = mask("oon")
  arguments = [2], old, new, [2, 1], [1, 0], [0, 0, 1]
  expected = math.log(11) / 3 + 2 / 3 * (math.log(4) - math.log(3) / 2)
  assert bic.loss(row(0, math.log(3), 1), row(5, 5, np.nan), *arguments) == pytest.approx(expected, rel=1e-14)


def test_stage_two_by_hand():
  # Class 0 of task 0 at 0, class 1 of task 1 at ln 3: p = (1/4, 3/4). Label 0: CE = ln 4, dCE/dq_1 = 3/4, so the slope
  # is (3/4 ln 3, 3/4); beta = 0 adds nothing. First step of SGD: (1 - 0.075 ln 3, -0.075).
  # With beta = 2 and z_1 = ln 3 - 2, the same p: 0.05 * 4 more loss, slope (3/4 (ln 3 - 2), 3/4 + 0.2).
  seen, tasks = np.array([True, True]), [0, 1]
  z = row(0, math.log(3))
  assert bic.correction_loss(z, [0], [1, 1], [0, 0], tasks, seen, 1) == pytest.approx(math.log(4), rel=1e-14)
  slope = bic.correction_gradient(z, [0], [1, 1], [0, 0], tasks, seen, 1)
  np.testing.assert_allclose(slope, [0.75 * math.log(3), 0.75], rtol=1e-14)
  alpha, beta = bic.learn_correction(z, [0], [1, 1], [0, 0], tasks, seen, 1, [[0]])
  np.testing.assert_allclose([*alpha, *beta], [1, 1 - 0.075 * math.log(3), 0, -0.075], rtol=1e-14)

  z = row(0, math.log(3) - 2)
  assert bic.correction_loss(z, [0], [1, 1], [0, 2], tasks, seen, 1) == pytest.approx(math.log(4) + 0.2, rel=1e-14)
  slope = bic.correction_gradient(z, [0], [1, 1], [0, 2], tasks, seen, 1)
  np.testing.assert_allclose(slope, [0.75 * (math.log(3) - 2), 0.95], rtol=1e-14)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_stage_two_gradient_is_that_of_central_differences(garbage):
  p = problem(garbage)
  alpha, beta = np.array([0.8, 1.3, 0.9, 1]), np.array([0.1, -0.4, 0.6, 0])

  def loss(pair):
    a, b = alpha.copy(), beta.copy()
    a[TASK], b[TASK] = pair
    return bic.correction_loss(p.logits, p.labels, a, b, TASK_OF_CLASS, SEEN, TASK)

  slope = bic.correction_gradient(p.logits, p.labels, alpha, beta, TASK_OF_CLASS, SEEN, TASK)
  numeric = differences.numeric_gradient(loss, [alpha[TASK], beta[TASK]])
  np.testing.assert_allclose(slope, numeric, rtol=1e-8, atol=1e-10)


def test_two_steps_of_stage_two_carry_momentum():
  # With v_1 = g_1 and v_2 = 0.9 g_1 + g_2, two steps from x are x - 0.1 (1.9 g_1 + g_2).
  p, start = problem(), (np.array([0.8, 1.3, 1, 1]), np.array([0.1, -0.4, 0, 0]))
  arguments = p.logits, p.labels
  settings = TASK_OF_CLASS, SEEN, TASK
  every = np.arange(BATCH)
  one = bic.learn_correction(*arguments, *start, *settings, [every])
  two = bic.learn_correction(*arguments, *start, *settings, [every, every])
  first, second = (bic.correction_gradient(*arguments, *pair, *settings) for pair in (start, one))
  moved = np.array([two[0][TASK] - start[0][TASK], two[1][TASK] - start[1][TASK]])
  np.testing.assert_allclose(moved, -0.1 * (1.9 * first + second), rtol=1e-12)
  others = np.arange(4) != TASK
  np.testing.assert_array_equal(two[0][others], start[0][others])
  np.testing.assert_array_equal(two[1][others], start[1][others])


def test_stage_two_ends_where_its_slope_is_zero():
  p = problem()
  start, batches = (np.ones(4), np.zeros(4)), [np.arange(BATCH)] * 600
  alpha, beta = bic.learn_correction(p.logits, p.labels, *start, TASK_OF_CLASS, SEEN, TASK, batches)
  slope = bic.correction_gradient(p.logits, p.labels, alpha, beta, TASK_OF_CLASS, SEEN, TASK)
  np.testing.assert_allclose(slope, 0, atol=1e-9)


@pytest.mark.parametrize("memory, held", [(20, 2), (21, 3), (10, 1), (1, 1), (70, 7), (30, 3)])
def test_held_out_per_class(memory, held):
  assert bic.held_out_per_class(memory) == held


def test_the_first_two_rows_of_each_new_class_are_held_out():
  _, new = mask("on.n")
  labels = [1, 0, 3, 1, 1, 3, 3, 0, 1]
  np.testing.assert_array_equal(bic.held_out_rows(labels, new), [0, 2, 3, 5])
  with pytest.raises(ValueError, match="class 3 has 2 images"):
    bic.held_out_rows([1, 1, 1, 3, 3], new)


# ------------------------------------------------------------------------------------------------------ lucir


class Cosine(NamedTuple):
  features: np.ndarray
  kernel: np.ndarray
  old_features: np.ndarray
  labels: np.ndarray


def cosine_problem(garbage=0.0, seed=7):
  draw = np.random.default_rng(seed)
  kernel = draw.normal(size=(FEATURES, 8))
  kernel[:, ~SEEN] = garbage
  return Cosine(draw.normal(size=(BATCH, FEATURES)), kernel, draw.normal(size=(BATCH, FEATURES)), problem().labels)


@pytest.mark.parametrize("eta", [0.5, 1, 16])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_lucir_logits_lie_within_eta(eta, scale):
  c = cosine_problem(np.nan)
  z = lucir.logits(scale * c.features, c.kernel, eta, SEEN)
  assert (np.abs(z[:, SEEN]) <= eta * (1 + 1e-15)).all() and (z[:, ~SEEN] == -np.inf).all()
  np.testing.assert_allclose(z[:, SEEN], lucir.logits(c.features, c.kernel, eta, SEEN)[:, SEEN], rtol=1e-12)
  of_columns = lucir.logits(3 * c.kernel[:, SEEN].T, c.kernel, eta, SEEN)[:, SEEN]
  np.testing.assert_allclose(np.diag(of_columns), eta, rtol=1e-14)


def test_lucir_by_hand():
  # f = (3, 4), length 5. Columns (1, 0): 3/5; (0, 2): 4/5; (-1, 0): -3/5; (4, 3): 24/25. Class 0 is old.
  old, new = mask("onnn.")
  features, kernel = row(3, 4), np.array([[1, 0, -1, 4, np.nan], [0, 2, 0, 3, np.nan]])
  scores = lucir.cosines(features, kernel, old | new)
  np.testing.assert_allclose(scores, row(0.6, 0.8, -0.6, 0.96, -np.inf), rtol=1e-15)
  np.testing.assert_allclose(lucir.logits(features, kernel, 5, old | new), row(3, 4, -3, 4.8, -np.inf), rtol=1e-15)
  # The two hardest new classes are 3 and 1: terms 0.5 - 0.6 + 0.96 = 0.86 and 0.5 - 0.6 + 0.8 = 0.7, mean 0.78.
  np.testing.assert_array_equal(lucir.hardest(scores, new), [[3, 1]])
  assert lucir.margin_ranking(scores, [0], old, new) == pytest.approx(0.78, rel=1e-14)
  np.testing.assert_allclose(lucir.margin_ranking_gradient(scores, [0], old, new), row(-1, 0.5, 0, 0.5, 0))
  # Against (8, 6): cosine 24/25, so 1/25. One old class, three new: 5 / sqrt 3.
  assert lucir.less_forget(features, row(8, 6)) == pytest.approx(0.04, rel=1e-13)
  assert lucir.less_forget_weight(old, new) == pytest.approx(5 / math.sqrt(3), rel=1e-15)
  ce = -math.log(math.exp(3) / sum(math.exp(z) for z in (3, 4, -3, 4.8)))
  total = lucir.loss(features, kernel, 5, [0], row(8, 6), old, new)
  assert total == pytest.approx(ce + 0.2 / math.sqrt(3) + 0.78, rel=1e-13)


def test_margin_ranking_leaves_out_new_rows_and_takes_one_competitor_of_one_new_class():
  old, new = mask("oon")
  scores = np.array([[0.9, 0.1, 0.2], [0.3, 0.0, 0.6], [0.1, 0.2, 0.9]])
  # Row 0: 0.5 - 0.9 + 0.2 < 0 -> 0. Row 1: 0.5 - 0.3 + 0.6 = 0.8. Row 2 is new. Mean over two rows: 0.4.
  assert lucir.margin_ranking(scores, [0, 0, 2], old, new) == pytest.approx(0.4, rel=1e-14)
  assert lucir.margin_ranking(scores, [2, 2, 2], old, new) == 0
  assert not lucir.margin_ranking_gradient(scores, [2, 2, 2], old, new).any()


def test_less_forget_weight_grows_with_the_old_classes():
  four, one = mask("oooon")
  assert lucir.less_forget_weight(four, one) == 10 and lucir.less_forget_weight(four, one, 10) == 20
  assert lucir.less_forget_weight(NONE, NEW) == 0


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("old, new", [(OLD, NEW), (NONE, SEEN)], ids=["later task", "first task"])
def test_lucir_gradients_are_those_of_central_differences(garbage, old, new):
  c, eta = cosine_problem(garbage), 2.5
  rest = c.labels, c.old_features, old, new
  result = lucir.gradients(c.features, c.kernel, eta, *rest, frozen=False)
  expected = lucir.Gradients(
      differences.numeric_gradient(lambda f: lucir.loss(f, c.kernel, eta, *rest), c.features),
      differences.numeric_gradient(lambda w: lucir.loss(c.features, w, eta, *rest), c.kernel),
      differences.numeric_gradient(lambda e: lucir.loss(c.features, c.kernel, e, *rest), eta))
  for ours, numeric in zip(result, expected):
    np.testing.assert_allclose(ours, numeric, rtol=1e-7, atol=1e-9)


def test_lucir_first_task_reads_no_old_features():
  c = cosine_problem()
  missing = np.full_like(c.old_features, np.nan)
  seen = lucir.loss(c.features, c.kernel, 1.0, c.labels, missing, NONE, SEEN)
  assert seen == notation.cross_entropy(lucir.logits(c.features, c.kernel, 1.0, SEEN), c.labels, SEEN)


def test_lucir_old_columns_are_frozen():
  c = cosine_problem()
  free = lucir.gradients(c.features, c.kernel, 1.0, c.labels, c.old_features, OLD, NEW, frozen=False)
  frozen = lucir.gradients(c.features, c.kernel, 1.0, c.labels, c.old_features, OLD, NEW)
  assert not frozen.kernel[:, OLD].any() and free.kernel[:, OLD].any()
  np.testing.assert_array_equal(frozen.kernel[:, NEW], free.kernel[:, NEW])
  assert frozen.eta == free.eta != 0
  # A step along the surface of the sphere: the gradient is orthogonal to its feature and to its column.
  np.testing.assert_allclose((free.features * c.features).sum(axis=1), 0, atol=1e-14)
  np.testing.assert_allclose((free.kernel * c.kernel).sum(axis=0), 0, atol=1e-14)


# ------------------------------------------------------------------------------------------------------- eeil


def test_eeil_by_hand():
  # p = (1/2, 1/2): every BCE is ln 2, so is their mean. Teacher q = (1/4, 3/4). The mean BCE's derivative with respect
  # to p_c is u = ((1 - q) / (1 - p) - q / p) / 2 = (1/2, -1/2); p (u - p.u) = (1/4, -1/4); over T = 2: (1/8, -1/8).
  old, new = mask("oon.")
  z, teacher = row(0, 0, 0, np.nan), row(0, 2 * math.log(3), np.nan, np.nan)
  assert eeil.distillation(z, teacher, old) == pytest.approx(math.log(2), rel=1e-14)
  np.testing.assert_allclose(eeil.distillation_gradient(z, teacher, old), row(0.125, -0.125, 0, 0))
  assert eeil.loss(z, teacher, [2], old, new, [0, 0, 1, 2]) == pytest.approx(math.log(3) + math.log(2), rel=1e-14)
  # p = (1/4, 3/4), q = (1/2, 1/2): both classes have -(ln 1/4 + ln 3/4) / 2 = -ln(3/16) / 2.
  assert eeil.distillation(teacher, z, old) == pytest.approx(-math.log(3 / 16) / 2, rel=1e-14)


def test_eeil_of_equal_logits_has_no_gradient_and_a_single_class_no_term():
  p = problem()
  np.testing.assert_allclose(eeil.distillation_gradient(p.logits, p.logits, OLD), 0, atol=1e-16)
  one = np.arange(8) == 1
  assert eeil.distillation(p.logits, p.teacher, one) == 0
  assert not eeil.distillation_gradient(p.logits, p.teacher, one).any()


def test_eeil_distils_every_old_task():
  assert eeil.distilled_tasks(TASK_OF_CLASS, OLD) == [0, 1]
  assert eeil.distilled_tasks(TASK_OF_CLASS, OLD, skip_last=True) == [0]
  assert eeil.distilled_tasks(TASK_OF_CLASS, NONE) == []
  p = problem()
  np.testing.assert_allclose(
      eeil.gradient(p.logits, p.teacher, p.labels, OLD, NEW, TASK_OF_CLASS, skip_last=True)[:, TASK_OF_CLASS == 1],
      notation.cross_entropy_gradient(p.logits, p.labels, SEEN)[:, TASK_OF_CLASS == 1])


def test_eeil_balanced_rows_and_noise():
  np.testing.assert_array_equal(eeil.balanced_rows([7, 8], [3, 0, 5]), [0, 3, 7, 8])
  np.testing.assert_array_equal(eeil.balanced_rows([7, 8, 9, 6], [3, 0]), [0, 3, 6, 7, 8, 9])
  assert eeil.gradient_noise(0) == 0.3 and eeil.gradient_noise(3) == pytest.approx(0.3 / 4**0.55)


# ------------------------------------------------------------------------------------------------------- ssil


def test_ssil_by_hand():
  # Old 0, 1, new 2, 3. Row 0 is new: new logits (0, ln 3), label 3: ln 4/3. Row 1 is of the memory: old logits
  # (0, 2 ln 3), i.e. (1/10, 9/10), label 0: ln 10. KL at T = 2 from the teacher's (1/2, 1/2): row 0 equal: 0;
  # row 1 to (1/4, 3/4): ln 4 - ln(3)/2 - ln 2 = ln 2 - ln(3)/2; half of that over two rows.
  old, new = mask("oonn.")
  z = np.array([[1, 1, 0, math.log(3), np.nan], [0, 2 * math.log(3), 9, 9, np.nan]])
  expected = math.log(4 / 3) + math.log(10) + (math.log(2) - math.log(3) / 2) / 2
  tasks = [0, 0, 1, 1, 2]
  assert ssil.loss(z, 0 * row(1, 1, 1, 1, 1).repeat(2, axis=0), [3, 0], old, new, tasks) == pytest.approx(expected)


def test_ssil_softmaxes_are_separate():
  p = problem()
  gradient = ssil.gradient(p.logits, p.logits, p.labels, OLD, NEW, TASK_OF_CLASS)
  of_old = OLD[p.labels]
  assert not gradient[of_old][:, NEW].any() and not gradient[~of_old][:, OLD].any()
  assert gradient[of_old][:, OLD].all() and gradient[~of_old][:, NEW].all()


def test_ssil_padding_counts_nowhere():
  p = problem()
  arguments = OLD, NEW, TASK_OF_CLASS
  present = np.array([True, True, False, True, False, True])
  fewer = [part[present] for part in p[:3]]
  dirty = np.where(present[:, None], p.logits, np.nan), np.where(present[:, None], p.teacher, np.nan), p.labels
  assert ssil.loss(*dirty, *arguments, present=present) == ssil.loss(*fewer, *arguments)
  gradient = ssil.gradient(*dirty, *arguments, present=present)
  np.testing.assert_array_equal(gradient[present], ssil.gradient(*fewer, *arguments))
  assert not gradient[~present].any()
  # A memory that is all padding, as in the first task.
  first = ssil.loss(p.logits, p.teacher, p.labels, NONE, SEEN, TASK_OF_CLASS, present=~OLD[p.labels])
  assert first == notation.cross_entropy(p.logits[~OLD[p.labels]], p.labels[~OLD[p.labels]], SEEN)


# ------------------------------------------------------------------------------------------------------- il2m


def test_il2m_by_hand():
  # Old class 0 of task 0, new class 1 of task 1. Factor (4 / 2) (6 / 3) = 4. Row 0: 1 -> 4 overtakes 3. Row 1: the
  # largest is old, so nothing changes.
  old, new = mask("on.")
  scores = np.array([[1, 3, np.nan], [5, 3, np.inf]])
  result = il2m.rectified(scores, [4, 0, 0], [2, 0, 0], [3, 6], [0, 1, 9], old, new, 1)
  np.testing.assert_array_equal(result, [[4, 3, -np.inf], [5, 3, -np.inf]])
  np.testing.assert_array_equal(il2m.rectified(scores, [4, 0, 0], [0, 0, 0], [3, 6], [0, 1, 9], old, new, 1)[:, :2],
                                scores[:, :2])


def test_il2m_statistics_by_hand():
  scores = np.array([[1, 9, 5], [3, 0, 4], [2, 8, np.nan]])
  means, measured = il2m.class_means(scores, [0, 0, 1], [True, True, True])
  np.testing.assert_array_equal(means, [2, 8, 0])
  np.testing.assert_array_equal(measured, [True, True, False])
  # The largest of the first two columns: 9, 3, 8.
  assert il2m.confidence(scores, [True, True, False]) == pytest.approx(20 / 3)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_il2m_of_unchanged_statistics_is_the_identity(garbage):
  p = problem(garbage)
  scores, means = il2m.probabilities(p.logits, SEEN), np.full(8, 0.7)
  np.testing.assert_allclose(scores.sum(axis=1), 1)
  result = il2m.rectified(scores, means, means, [0.6, 0.6, 0.6, 0.6], TASK_OF_CLASS, OLD, NEW, TASK)
  np.testing.assert_allclose(result[:, SEEN], scores[:, SEEN], rtol=1e-15)


# -------------------------------------------------------------------------------------------------------- lws


@pytest.mark.parametrize("garbage", GARBAGE)
def test_lws_gradient_of_the_scales_is_that_of_central_differences(garbage):
  p = problem(garbage)
  numeric = differences.numeric_gradient(lambda scale: lws.loss(p.logits, scale, p.labels, SEEN), SCALE)
  upon_logits, upon_scale = lws.gradients(p.logits, SCALE, p.labels, SEEN, NEW)
  np.testing.assert_allclose(upon_scale, numeric, rtol=1e-7, atol=1e-9)
  free, _ = lws.gradients(p.logits, SCALE, p.labels, SEEN, NEW, frozen=False)
  np.testing.assert_array_equal(upon_logits, np.where(NEW, free, 0))
  assert upon_scale[OLD].all() and not upon_scale[~SEEN].any()


def test_lws_of_ones_is_the_identity():
  p = problem(np.nan)
  assert lws.loss(p.logits, np.ones(8), p.labels, SEEN) == notation.cross_entropy(p.logits, p.labels, SEEN)
  np.testing.assert_array_equal(lws.scaled(p.logits, np.ones(8), SEEN)[:, SEEN], p.logits[:, SEEN])


def test_lws_by_hand():
  # z = (0, 2 ln 3), l = (5, 1/2): l z = (0, ln 3), p = (1/4, 3/4). Label 1: ln 4/3, g = (1/4, -1/4).
  # dz = l g = (5/4, -1/8); dl = z g = (0, -ln(3) / 2).
  z, seen = row(0, 2 * math.log(3)), np.array([True, True])
  assert lws.loss(z, [5, 0.5], [1], seen) == pytest.approx(math.log(4 / 3), rel=1e-14)
  upon_logits, upon_scale = lws.gradients(z, [5, 0.5], [1], seen, seen)
  np.testing.assert_allclose(upon_logits, row(1.25, -0.125))
  np.testing.assert_allclose(upon_scale, [0, -math.log(3) / 2])
  np.testing.assert_allclose([lws.rate(0), lws.rate(15), lws.rate(30)], [0.1, 0.05, 0], atol=1e-17)


def test_lws_class_aware_rows():
  # Class 0 has rows 0..4, class 1 only 5, 6: two of each at a time, whatever the class has.
  rows = lws.class_aware_rows([[1, 0], [0, 1]], {0: [[3, 0, 4, 1, 2]], 1: [[6, 5], [5, 6]]}, 7, repeats=2)
  np.testing.assert_array_equal(rows, [6, 5, 3, 0, 4, 1, 5])
  with pytest.raises(ValueError, match="4 rows from 1 classes"):
    lws.class_aware_rows([[0]], {0: [[3, 0, 4, 1, 2]]}, 7)


# ----------------------------------------------------------------------------------------------------- podnet


class Proxies(NamedTuple):
  features: np.ndarray
  maps: list
  kernel: np.ndarray
  sigma: float
  labels: np.ndarray
  old_features: np.ndarray
  old_maps: list


def proxies_problem(garbage=0.0, seed=11):
  draw = np.random.default_rng(seed)
  kernel = draw.normal(size=(FEATURES, 3, 8))
  kernel[..., ~SEEN] = garbage
  maps, old_maps = ([draw.normal(size=(BATCH, 2, 3, 4)), draw.normal(size=(BATCH, 1, 2, 2))] for _ in range(2))
  return Proxies(draw.normal(size=(BATCH, FEATURES)), maps, kernel, 2.5, problem().labels,
                 draw.normal(size=(BATCH, FEATURES)), old_maps)


@pytest.mark.parametrize("pycil", [False, True])
@pytest.mark.parametrize("garbage", [0.0, np.nan])
@pytest.mark.parametrize("old, new", [(OLD, NEW), (NONE, SEEN)], ids=["later task", "first task"])
def test_podnet_gradients_are_those_of_central_differences(pycil, garbage, old, new):
  p = proxies_problem(garbage)

  def loss(**changes):
    return podnet.loss(*p._replace(**changes), old, new, pycil=pycil, flat_weight=0.6)

  gradient = podnet.gradients(*p, old, new, pycil=pycil, flat_weight=0.6)
  expected = [differences.numeric_gradient(lambda v: loss(features=v), p.features),
              *(differences.numeric_gradient(
                  lambda v, l=l: loss(maps=[v if i == l else other for i, other in enumerate(p.maps)]), p.maps[l])
                for l in range(2)),
              differences.numeric_gradient(lambda v: loss(kernel=v), p.kernel),
              differences.numeric_gradient(lambda v: loss(sigma=v), p.sigma)]
  for ours, numeric in zip((gradient.features, *gradient.maps, gradient.kernel, gradient.sigma), expected, strict=True):
    np.testing.assert_allclose(ours, numeric, rtol=1e-6, atol=1e-9)


def test_podnet_by_hand():
  # f = (3, 4), of length 5. Class 0 has proxies (1, 0) and (0, 2), cosines 3/5 and 4/5; softmax weights 1 / (1 + e^0.2)
  # and the rest. Class 1 has twice (4, 3): 24/25 whatever the weights.
  seen = np.array([True, True, False])
  kernel = np.array([[[1, 4, np.nan], [0, 4, np.nan]], [[0, 3, np.nan], [2, 3, np.nan]]])
  share = 1 / (1 + math.exp(0.2))
  np.testing.assert_allclose(podnet.scores(row(3, 4), kernel, seen),
                             row(0.6 * share + 0.8 * (1 - share), 0.96, -np.inf), rtol=1e-14)
  # s = (0, ln 3), label 0: s' = (-ln 3, 0), so ln 3 + ln(1 + 1). Label 1: ln(1/3 + 1).
  z = row(0, math.log(3), np.nan)
  assert podnet.nca(z, [0], seen) == pytest.approx(math.log(6), rel=1e-14)
  assert podnet.nca(z, [1], seen) == pytest.approx(math.log(4 / 3), rel=1e-14)
  # Squares ((1, 4), (9, 16)): sums over the width 5, 25, over the height 10, 20; length sqrt(1150).
  maps = np.array([[[[1.0], [-2]], [[3], [4]]]])
  np.testing.assert_allclose(podnet.pooled(maps), row(5, 25, 10, 20) / math.sqrt(1150), rtol=1e-14)
  assert podnet.spatial([maps], [3 * maps]) == pytest.approx(0, abs=1e-15)
  assert podnet.factor(*mask("oooon")) == pytest.approx(math.sqrt(5))


# ----------------------------------------------------------------------------------------- der, foster, mafdrc


def test_der_auxiliary_gradient_is_that_of_central_differences():
  p = problem()
  auxiliary = any_old_and_new(p)
  numeric = differences.numeric_gradient(lambda a: der.loss(p.logits, a, p.labels, OLD, NEW, 0.7), auxiliary)
  np.testing.assert_allclose(der.gradients(p.logits, auxiliary, p.labels, OLD, NEW, 0.7)[1], numeric, rtol=1e-7,
                             atol=1e-9)
  assert np.abs(numeric).max() > 0.01


def test_der_auxiliary_labels_by_hand():
  old, new = mask("onno.")
  np.testing.assert_array_equal(der.auxiliary_labels([3, 1, 2, 0], old, new), [0, 1, 2, 0])
  with pytest.raises(ValueError, match=r"labels \[4\]"):
    der.auxiliary_labels([4], old, new)


def test_der_of_one_task_is_finetuning():
  p = problem()
  loss = der.loss(p.logits, any_old_and_new(p), p.labels, NONE, SEEN)
  assert loss == finetune.loss(p.logits, p.labels, NONE, SEEN)


def test_der_copies_the_old_block_by_hand():
  # One feature a backbone, three backbones, one old class of three: its entries in the first two blocks.
  np.testing.assert_array_equal(der.is_copied([True, False, False], 1, 3), [[1, 0, 0], [1, 0, 0], [0, 0, 0]])


def test_foster_class_weights_by_hand():
  # beta = 1/2: (1/2) / (1 - 1/2) = 1 for one image, (1/2) / (3/4) = 2/3 for two; scaled by 2 / (5/3) = 6/5.
  weights = foster.class_weights([1, 2, 9], np.array([True, True, False]), 0.5)
  np.testing.assert_allclose(weights, [1.2, 0.8, 1.0], rtol=1e-14)


def test_foster_with_weights_one_is_plain():
  p = problem()
  np.testing.assert_allclose(foster.class_weights(COUNTS, SEEN, 0.0), np.ones(8))
  boosting = foster.boosting_loss(p.logits, other(p), p.teacher, p.labels, OLD, NEW, COUNTS, beta=0.0, weight=0.0)
  plain = finetune.loss(p.logits, p.labels, OLD, NEW) + finetune.loss(other(p), p.labels, OLD, NEW)
  assert boosting == pytest.approx(plain, rel=1e-14)
  compression = foster.compression_loss(p.logits, other(p), SEEN, COUNTS, beta=0.0)
  assert compression == pytest.approx(notation.distillation(p.logits, other(p), SEEN), rel=1e-14)


def test_foster_compression_targets_by_hand():
  # softmax (1/2, 1/2) times (1.2, 0.8), made to add up to 1.
  targets = foster.compression_targets(row(3, 3, np.nan), np.array([True, True, False]), [1, 2, 9], beta=0.5)
  np.testing.assert_allclose(targets, row(0.6, 0.4))


def test_mafdrc_branch_by_hand():
  # A map with the values -1 and 1 in both channels: mean 0, variance 1. Its standardised mean over the pixels is 0, so
  # a branch is shift @ kernel + bias; with other statistics the mean moves.
  maps = np.array([-1.0, 1, 1, -1]).reshape(1, 2, 2, 1) * np.ones(2)
  kernel, bias = np.array([[1.0, 2], [3, 4]]), np.array([10.0, 20])
  np.testing.assert_allclose(mafdrc.branch(maps, [5, 6], [1, 2], kernel, bias), row(17, 30))
  moved = mafdrc.branch(maps, [5, 6], [1, 2], kernel, bias, mean=np.array([-1.0, 0]), variance=1 - mafdrc.EPSILON)
  np.testing.assert_allclose(moved, row(22, 40))


def test_mafdrc_merges_by_hand():
  np.testing.assert_array_equal(mafdrc.merged([2, 4], [6, 0], 1), [6, 0])
  np.testing.assert_array_equal(mafdrc.merged([2, 4], [6, 0], 2), [4, 2])


def test_mafdrc_prior_by_hand():
  prior = mafdrc.prior([3, 1, 100], np.array([True, True, False]), power=2.0)
  np.testing.assert_allclose(prior, [math.log(9 / 16), math.log(1 / 16), 0], rtol=1e-10)


def test_mafdrc_counts_old_images_twice():
  """Equal branches: L_ice is the mean in which an image of an old class counts twice; without any, plain CE."""
  p = problem()
  only = {"alpha": 1.0, "beta1": 0.0, "beta2": 0.0}
  twice = np.concatenate([np.arange(BATCH), np.flatnonzero(OLD[p.labels])])
  loss = mafdrc.fusion_loss(p.logits, p.logits, p.teacher, p.logits, p.labels, OLD, NEW, COUNTS, **only)
  assert loss == pytest.approx(notation.cross_entropy(p.logits[twice], p.labels[twice], SEEN), rel=1e-14)
  fresh = mafdrc.fusion_loss(p.logits, p.logits, p.teacher, p.logits, p.fresh, OLD, NEW, COUNTS, **only)
  assert fresh == pytest.approx(notation.cross_entropy(p.logits, p.fresh, SEEN), rel=1e-14)
