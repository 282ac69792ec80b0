"""Parts of Gradient Reweighting on other methods: a real train step against float64 NumPy, and what is refused."""

import numpy as np
import oracle
import pytest
from references import differences, finetune, icarl, lucir, notation, podnet
from test_steps import NEW, NEW_ONLY, OLD, SEEN, Case, close, context

from gr_jax import methods
from gr_jax.errors import UserError

PARTS = {"reweighting": "dgr", "prior": True, "distillation": "dakd"}
ATTENUATION = oracle.attenuation(context().original[OLD].sum(), context().original[NEW].sum(), 0.5)


@pytest.mark.parametrize("task_ratio", ["release", "symmetric"])
@pytest.mark.parametrize("name", ["lwf", "wa"])
def test_all_parts_on_a_linear_head(name, task_ratio):
  case = Case(methods.make(name, {**PARTS, "task_ratio": task_ratio, "attenuation_gamma": 0.5}, memory=20))
  around, share = case.context, OLD.sum() / SEEN.sum() if name == "wa" else 0.5
  ce, on_ce = oracle.cross_entropy(case.logits(), case.labels, around.counts)
  kd, on_kd = oracle.dakd(case.logits(), case.logits(teacher=True), around.lost, OLD)
  ce_weight, kd_weight = (1 - share, share) if name == "wa" else (1.0, 1.0)
  assert case.loss == pytest.approx(ce_weight * ce + kd_weight * kd, rel=2e-5)
  close(case.gradient["backbone"]["shift"],
        (ce_weight * on_ce + kd_weight * on_kd) @ np.where(SEEN, case.head["kernel"], 0.0).T)
  reweighted = oracle.reweight(
      np.zeros(7), *oracle.linear_gradients(case.x, ce_weight * on_ce), *oracle.linear_gradients(
          case.x, kd_weight * on_kd), old=OLD, new=NEW, attenuation=ATTENUATION, task_ratio=task_ratio)
  close(case.gradient["classifier"]["kernel"], reweighted.kernel)
  close(case.gradient["classifier"]["bias"], reweighted.bias)


def test_lwf_with_all_parts_is_gradient_reweighting():
  """Up to the weight of the distillation, which is given."""
  gr = Case(methods.make("gr", {}, memory=20))
  n_old, n_new = (gr.context.original[group].sum() for group in (OLD, NEW))
  weight = 4 * oracle.distillation_weight(n_old, n_new)
  parts = Case(methods.make("lwf", {**PARTS, "weight": float(weight)}, memory=20))
  assert parts.loss == pytest.approx(gr.loss, rel=1e-6)
  for name in ("kernel", "bias"):
    close(parts.gradient["classifier"][name], gr.gradient["classifier"][name])
  close(parts.gradient["backbone"]["shift"], gr.gradient["backbone"]["shift"])


def test_prior_and_rule_on_a_cosine_head():
  """LUCIR distils features, so beta is 0; its ranking is added as it is, and eta has no column to rescale."""
  case = Case(methods.make("lucir", {"reweighting": "dgr", "prior": True, "attenuation_gamma": 0.5}, memory=20))
  x, kernel = case.x.astype(np.float64), np.where(SEEN, case.head["kernel"], 1.0).astype(np.float64)

  def cross_entropy(kernel, eta=1.7):
    logits, seen = notation.with_prior(lucir.logits(x, kernel, eta, SEEN), SEEN, case.context.counts)
    return notation.cross_entropy(logits, case.labels, seen)

  def ranking(kernel):
    return lucir.margin_ranking(lucir.cosines(x, kernel, SEEN), case.labels, OLD, NEW)

  forgotten = lucir.less_forget_weight(OLD, NEW) * lucir.less_forget(case.x, case.before)
  assert case.loss == pytest.approx(cross_entropy(kernel) + forgotten + ranking(kernel), rel=2e-5)
  on_ce, on_ranking = (differences.numeric_gradient(part, kernel) for part in (cross_entropy, ranking))
  reweighted = oracle.reweight(np.zeros(7), on_ce, None, None, None, old=OLD, new=NEW, attenuation=ATTENUATION)
  close(case.gradient["classifier"]["kernel"], np.where(NEW, reweighted.kernel + on_ranking, 0.0))
  close(case.gradient["classifier"]["scale"],
        differences.numeric_gradient(lambda eta: cross_entropy(kernel, eta), 1.7))
  assert np.abs(on_ranking[:, NEW]).max() > 1e-3 and (reweighted.column[NEW] < 1).any()


def test_gradient_reweighting_on_a_cosine_head():
  """All seen columns are trained; beta is that of angles, and eta has the plain gradient of both losses."""
  case = Case(methods.make("gr", {"head": "cosine", "attenuation_gamma": 0.5}, memory=20))
  x, kernel, old_kernel = (values.astype(np.float64) for values in (
      case.x, *(np.where(SEEN, head["kernel"], 1.0) for head in (case.head, case.old_head))))
  teacher = lucir.logits(case.before.astype(np.float64), old_kernel, 1.7, SEEN)
  weight = 4 * oracle.distillation_weight(*(case.context.original[group].sum() for group in (OLD, NEW)))

  def cross_entropy(kernel, eta=1.7, x=x):
    logits, seen = notation.with_prior(lucir.logits(x, kernel, eta, SEEN), SEEN, case.context.counts)
    return notation.cross_entropy(logits, case.labels, seen)

  def distillation(kernel, eta=1.7, x=x):
    logits = np.where(SEEN, lucir.logits(x, kernel, eta, SEEN), 0.0)
    return weight * oracle.dakd(logits, np.where(SEEN, teacher, 0.0), case.context.lost, OLD)[0]

  parts = cross_entropy, distillation
  assert case.loss == pytest.approx(sum(part(kernel) for part in parts), rel=2e-5)
  on_ce, on_kd = (differences.numeric_gradient(part, kernel) for part in parts)
  reweighted = oracle.reweight(np.zeros(7), on_ce, None, on_kd, None, old=OLD, new=NEW, attenuation=ATTENUATION)
  close(case.gradient["classifier"]["kernel"], reweighted.kernel)
  close(case.gradient["classifier"]["scale"],
        differences.numeric_gradient(lambda eta: sum(part(kernel, eta) for part in parts), 1.7))
  close(case.gradient["backbone"]["shift"],
        differences.numeric_gradient(lambda x: sum(part(kernel, x=x) for part in parts), x))
  assert reweighted.beta > 0 and (np.abs(reweighted.kernel[:, OLD]) > 1e-4).any()


def test_prior_and_rule_on_proxies():
  """PODNet distils features and maps, so beta is 0; the proxies of a class together are its column."""
  case = Case(methods.make("podnet", {"proxies": 3, "reweighting": "dgr", "prior": True}, memory=20))
  x, kernel = case.x.astype(np.float64), np.where(SEEN, case.head["kernel"], 1.0).astype(np.float64)

  def cross_entropy(kernel):
    logits, seen = notation.with_prior(1.7 * podnet.scores(x, kernel, SEEN), SEEN, case.context.counts)
    return notation.cross_entropy(logits, case.labels, seen)

  on_ce = differences.numeric_gradient(cross_entropy, kernel).reshape(-1, 7)
  reweighted = oracle.reweight(np.zeros(7), on_ce, None, None, None, old=OLD, new=NEW, attenuation=oracle.attenuation(
      case.context.original[OLD].sum(), case.context.original[NEW].sum(), 1.0))
  close(case.gradient["classifier"]["kernel"], np.where(NEW, reweighted.kernel.reshape(kernel.shape), 0.0))
  assert (reweighted.column[NEW] < 1).any()


def test_dakd_of_another_distillation_is_that_distillation_on_mixed_logits():
  case = Case(methods.make("icarl", {"distillation": "dakd"}, memory=20))
  z, q, lost = case.logits(), case.logits(teacher=True), case.context.lost
  h, v = oracle.imbalance(lost, OLD), oracle.mixing(lost, OLD)
  plain = finetune.loss(z, case.labels, OLD, NEW)
  distilled = [icarl.loss(logits, q, case.labels, OLD, NEW) - finetune.loss(logits, case.labels, OLD, NEW)
               for logits in (z, v * z + (1 - v) * q)]
  assert case.loss == pytest.approx(plain + h * distilled[0] + (1 - h) * distilled[1], rel=2e-5)


def test_prior_leaves_out_classes_without_images():
  """Without a memory WA has old classes in its softmax, but none of their images."""
  counts = np.where(NEW, context().counts, 0.0).astype(np.float32)
  case = Case(methods.make("wa", {"prior": True}, memory=0), labels=NEW_ONLY, around=context(counts=counts))
  plain = Case(methods.make("wa", {}, memory=0), labels=NEW_ONLY, around=context(counts=counts))
  share = OLD.sum() / SEEN.sum()
  ce, _ = oracle.cross_entropy(case.logits(), NEW_ONLY, counts)
  other, _ = oracle.cross_entropy(case.logits(), NEW_ONLY, SEEN.astype(float))
  assert case.loss - plain.loss == pytest.approx((1 - share) * (ce - other), rel=1e-4)


def test_equal_counts_make_the_prior_the_identity():
  around = context(counts=np.where(SEEN, 9, 0).astype(np.float32))
  parts, plain = (Case(methods.make("lucir", options, memory=20), around=around) for options in ({"prior": True}, {}))
  assert parts.loss == pytest.approx(plain.loss, rel=1e-6)
  close(parts.gradient["classifier"]["kernel"], plain.gradient["classifier"]["kernel"])


@pytest.mark.parametrize("name, options, words", [
    ("bic", {"prior": True}, "'bic' does not combine with prior=True, because its head is none of linear, cosine"),
    ("podnet", {"loss": "pycil", "prior": True}, "with prior=True, because it has no cross-entropy of a softmax"),
    ("podnet", {"distillation": "dakd"}, "with distillation=dakd, because it does not distil logits"),
    ("dynamic_distillation", {"prior": True}, "does not combine with prior=True, because it has the prior already"),
    ("finetune", {"distillation": "dakd"}, "does not combine with distillation=dakd, because it does not distil"),
    ("lucir", {"prior": True, "distillation": "dakd"}, "'lucir' does not combine with distillation=dakd, because"),
    ("icarl", {"loss": "paper", "reweighting": "class", "prior": True},
     "with reweighting=class and prior=True, because it has no cross-entropy of a softmax"),
    ("lwf", {"task_ratio": "symmetric"}, "task_ratio is set, but it belongs to reweighting='dgr', which is off"),
    ("lwf", {"reweighting": "class", "attenuation_gamma": 2.0}, "attenuation_gamma is set, but"),
    ("wa", {"reweighting": "drg"}, "reweighting is 'drg'.*did you mean 'dgr'"),
    ("wa", {"distillation": "kd"}, "distillation is 'kd'; it can be 'own', 'dakd'"),
    ("joint", {"distilation": "dakd"},
     "did you mean method_options.distillation.*'joint' has prior; parts and add-ons have")])
def test_what_does_not_combine_is_refused(name, options, words):
  with pytest.raises(UserError, match=words):
    methods.make(name, options, memory=20)


def test_options_of_parts_are_saved_only_if_the_part_is_on():
  defaults = methods.resolve("wa", {})
  assert methods.resolve("wa", {"reweighting": "none", "prior": False, "distillation": "own"}) == defaults
  on = methods.resolve("wa", {"reweighting": "dgr", "attenuation_gamma": 2})
  assert on == {**defaults, "reweighting": "dgr", "task_ratio": "release", "attenuation_gamma": 2.0}
  assert methods.resolve("wa", on) == on
  assert methods.resolve("joint", {"prior": True, "reweighting": "class"}) == {"prior": True, "reweighting": "class"}
