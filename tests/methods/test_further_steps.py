"""Dynamic distillation and nearest mean on frozen features: against float64 NumPy, and what defines them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from references import dynamic_distillation, simplecil
from test_steps import FEATURES, NEW, OLD, SEEN, Case, close, context

from gr_jax import losses, methods, reweighting
from gr_jax.methods import dynamic_distillation as dynamic
from gr_jax.methods.base import Networks, Outputs


@pytest.mark.parametrize("entropy", dynamic.ENTROPIES)
def test_dynamic_distillation(entropy):
  """A first step, in which the moving average is the gradient itself: the rule of Gradient Reweighting, our weight."""
  options = {"distillation_weight": 0.6, "ramp_start": 0.4, "entropy": entropy, "temperature": 3.0}
  case = Case(methods.make("dynamic_distillation", options, memory=20))
  around = case.context
  even = dynamic_distillation.evenness(around.counts, SEEN)
  n_old, n_new = (around.original[group].sum() for group in (OLD, NEW))
  weight = 9 * dynamic_distillation.weight(n_old, n_new, 0.0, even if entropy == "evenness" else 1 - even, scale=0.6,
                                           start=0.4)
  ce, on_ce = oracle.cross_entropy(case.logits(), case.labels, around.counts)
  kd, on_kd = oracle.distillation(case.logits(), case.logits(teacher=True), OLD, 3.0)
  assert case.loss == pytest.approx(ce + weight * kd, rel=2e-5)
  close(case.gradient["backbone"]["shift"], (on_ce + weight * on_kd) @ np.where(SEEN, case.head["kernel"], 0.0).T)
  reweighted = oracle.reweight(
      np.zeros(7), *oracle.linear_gradients(case.x, on_ce), *oracle.linear_gradients(case.x, weight * on_kd), old=OLD,
      new=NEW, attenuation=oracle.attenuation(n_old, n_new))
  close(case.gradient["classifier"]["kernel"], reweighted.kernel)
  close(case.gradient["classifier"]["bias"], reweighted.bias)


def test_weight_of_the_distillation_rises_with_the_epochs():
  loss = methods.make("dynamic_distillation", {"ramp_start": 0.25}, memory=20).stages[0].losses["distillation"].value
  z, q = np.random.default_rng(0).normal(size=(2, 4, 7)).astype(np.float32)
  student, teacher = (Outputs(jnp.asarray(part), jnp.asarray(part), None, ()) for part in (z, q))
  values = [float(loss(student, teacher, None, context(progress=np.float32(share)))) for share in (0.0, 0.5, 0.9)]
  np.testing.assert_allclose(np.asarray(values) / values[0], [1.0, 2.5, 3.7], rtol=1e-5)


def test_gradients_are_pulled_towards_their_average_and_it_outlives_the_task():
  method = methods.make("dynamic_distillation", {"consistency": 0.3, "momentum": 0.8}, memory=20)
  stage, rng = method.stages[0], np.random.default_rng(1)
  head = {"kernel": jnp.zeros((FEATURES, 7)), "bias": jnp.zeros(7)}
  inner, carry = reweighting.gradient_reweighting(), method.init_carry(FEATURES, 7)
  plain, pulled = [], []
  for _ in range(2):
    # Two tasks of three steps each: the rule begins anew, the average goes on.
    begun = stage.begin(Networks({}, {}, carry, stage.rule.init(head)), context(), None)
    state, alone = begun.rule, inner.init(head)
    for _ in range(3):
      gradient = {"kernel": jnp.asarray(rng.normal(size=(FEATURES, 7)), jnp.float32),
                  "bias": jnp.asarray(rng.normal(size=7), jnp.float32)}
      arguments = {"gradients": {"cross_entropy": gradient}, "old": OLD, "new": NEW, "counts": context().original}
      moved, state = stage.rule.update(gradient, state, head, **arguments)
      expected, alone = inner.update(gradient, alone, head, **arguments)
      pulled.append(moved["kernel"])
      plain.append(expected["kernel"])
    carry = stage.remember(state, carry)
  for ours, expected in zip(pulled, dynamic_distillation.consistent(plain, 0.3, 0.8)):
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
  assert float(carry["mean_gradient_steps"]) == 6


def test_evenness():
  counts = np.asarray([4, 0, 9, 1, 100, 7, 7], np.float32)
  assert float(losses.evenness(counts, SEEN)) == pytest.approx(dynamic_distillation.evenness(counts, SEEN), rel=1e-6)
  assert float(losses.evenness(np.full(7, 3.0), SEEN)) == pytest.approx(1.0, rel=1e-6)
  assert float(losses.evenness(counts, np.arange(7) == 2)) == 1.0 == float(losses.evenness(0 * counts, SEEN))


def test_class_means_are_the_classifier():
  """The means of new classes only are set; features are those of the frozen network, so old means stay."""
  method, rng = methods.make("simplecil", {}, memory=0), np.random.default_rng(0)
  boundary, carry = method.stages[1].before, method.init_carry(FEATURES, 7)
  features, labels = rng.normal(size=(30, FEATURES)).astype(np.float32), rng.integers(0, 5, 30)
  for group, around in ((OLD, context(old=np.zeros(7, bool), new=OLD)), (NEW, context())):
    rows = group[labels]
    outputs = Outputs(None, None, jnp.asarray(features[rows]), ())
    sums = jax.jit(boundary.measure)(outputs, labels[rows], np.ones(rows.sum(), bool), around)
    carry = jax.jit(boundary.keep)(carry, sums, around)
  expected = simplecil.means(features, labels, 7)
  np.testing.assert_allclose(carry["class_means"], expected, atol=1e-6)
  np.testing.assert_array_equal(carry["has_class_mean"], SEEN)
  images = rng.normal(size=(20, FEATURES)).astype(np.float32)
  scores = method.scores["nearest_mean"](Outputs(None, None, jnp.asarray(images), ()), carry, context())
  np.testing.assert_array_equal(np.argmax(np.where(SEEN, scores, -np.inf), axis=1),
                                simplecil.answers(images, expected, SEEN))


def test_after_the_first_task_nothing_is_trained():
  method = methods.make("simplecil", {}, memory=0)
  case = Case(method, index=1, teacher=False)
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(case.gradient))
  assert [stage.takes_part(1) for stage in method.stages] == [False, True] and method.stages[1].steps == 1
