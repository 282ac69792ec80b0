"""One real train step of each method against float64 NumPy (tests/references), and the property that defines it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import bic as bic_reference
from references import eeil as eeil_reference
from references import finetune as finetune_reference
from references import icarl as icarl_reference
from references import lucir as lucir_reference
from references import lwf as lwf_reference
from references import podnet as podnet_reference
from references import ssil as ssil_reference
from references import wa as wa_reference

from gr_jax import alignment, losses, methods, nearest_mean, optimizer, pooled_outputs, separated
from gr_jax.data.arrays import Data
from gr_jax.methods.base import Context, Outputs
from gr_jax.models import heads
from gr_jax.training import step as steps
from gr_jax.training.state import TrainState

OLD = np.arange(7) < 3
NEW = (np.arange(7) >= 3) & (np.arange(7) < 5)
SEEN = OLD | NEW
TASK_OF_CLASS = np.asarray([0, 0, 1, 2, 2, 3, 3], np.int32)
BATCH, FEATURES, TASKS = 12, 6, 4
# What stands in columns of unseen classes must not matter.
RUBBISH = 1e30


def maps_of(features):
  """Features as maps of two stages."""
  return features.reshape(-1, 1, 2, 3), features.reshape(-1, 3, 2, 1)


class Shift(nn.Module):
  """Adds a parameter to its inputs, whose gradient is that of the features and of the maps, which are the features."""

  @nn.compact
  def __call__(self, x, *, train):
    shifted = x + self.param("shift", nn.initializers.zeros, x.shape)
    return shifted, maps_of(shifted)


def context(**changes):
  counts = np.where(SEEN, [4, 4, 3, 50, 20, 0, 0], 0)
  return Context(**{
      "task": np.int32(2), "old": OLD, "new": NEW, "counts": counts.astype(np.float32),
      "original": np.where(OLD, counts + 30, counts).astype(np.float32),
      "lost": np.where(OLD, 30, 0).astype(np.float32), "task_of_class": TASK_OF_CLASS, **changes})


class Case:
  """A step at rate 1 without momentum and decay, so that before - after is the gradient."""

  def __init__(self, method, index=0, *, labels=None, teacher=True, around=None, seed=0, scale=None):
    self.method, self.stage, self.context = method, method.stages[index], around or context()
    rng = np.random.default_rng(seed)
    self.x, self.before = rng.normal(size=(2, BATCH, FEATURES)).astype(np.float32)
    self.labels = (rng.integers(0, 5, BATCH) if labels is None else np.asarray(labels)).astype(np.int32)
    self.head, self.old_head = self._head(rng), self._head(rng)
    if scale is not None:
      for head in (self.head, self.old_head):
        head["class_scale"] = np.asarray(scale, np.float32)
    params = {"backbone": {"shift": jnp.zeros_like(self.x)}, "classifier": jax.tree.map(jnp.asarray, self.head)}
    tx = optimizer.sgd((1.0,), momentum=0.0, weight_decay=0.0)
    step = steps.make_train_step(model=Shift(), method=method, stage=self.stage, tx=tx)
    rule = () if self.stage.rule is None else self.stage.rule.init(params["classifier"])
    state = TrainState(jnp.int32(0), params, {}, tx.init(steps.trained_params(params, self.stage)), rule)
    # The teacher's features are others than the student's.
    old = {"params": {"backbone": {"shift": self.before - self.x}, "classifier": self.old_head}, "batch_stats": {}}
    data = Data(jnp.asarray(self.x), jnp.ones((BATCH, 2), jnp.int32), jnp.asarray(self.labels))
    after, metrics = jax.jit(step)(state, old if teacher else None, self.context, data,
                                   steps.Batch(jnp.arange(BATCH), jax.random.key(0), jnp.int32(0)))
    self.loss = float(metrics.loss)
    self.gradient = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, after.params)

  def _head(self, rng):
    shapes = self.method.head.init(FEATURES, 7, TASKS)
    head = {"kernel": rng.normal(size=shapes["kernel"].shape), "bias": rng.normal(size=7)}
    if "scale" in shapes:
      head = {"kernel": head["kernel"], "scale": np.asarray(1.7)}
    if "alpha" in shapes:
      head |= {"alpha": np.asarray([0.8, 1.3, 1.0, 1.0]), "beta": np.asarray([0.2, -0.4, 0.0, 0.0])}
    head["kernel"][..., ~SEEN] = RUBBISH
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), head)

  def logits(self, teacher=False):
    """Before any correction, float64; 0 in unseen columns."""
    features, head = (self.before, self.old_head) if teacher else (self.x, self.head)
    logits = np.zeros((BATCH, 7))
    logits[:, SEEN] = features.astype(np.float64) @ head["kernel"][:, SEEN] + head["bias"][SEEN]
    return logits

  def assert_linear(self, loss, on_logits, trained=SEEN):
    """The step's loss and gradients, given dL/dlogits of a linear head."""
    assert self.loss == pytest.approx(loss, rel=2e-5)
    kernel = np.where(SEEN, self.head["kernel"], 0.0)
    close(self.gradient["backbone"]["shift"], on_logits @ kernel.T)
    close(self.gradient["classifier"]["kernel"], np.where(trained, self.x.T @ on_logits, 0.0))
    close(self.gradient["classifier"]["bias"], np.where(trained, on_logits.sum(axis=0), 0.0))


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-6)


NEW_ONLY = np.asarray([3, 4] * 6)


def test_finetune():
  case = Case(methods.make("finetune", {}, memory=20), teacher=False)
  case.assert_linear(finetune_reference.loss(case.logits(), case.labels, OLD, NEW),
                     finetune_reference.gradient(case.logits(), case.labels, OLD, NEW))


def test_finetune_without_memory_never_touches_old_columns():
  case = Case(methods.make("finetune", {}, memory=0), labels=NEW_ONLY, teacher=False)
  case.assert_linear(finetune_reference.loss(case.logits(), NEW_ONLY, OLD, NEW, memory=False),
                     finetune_reference.gradient(case.logits(), NEW_ONLY, OLD, NEW, memory=False), trained=NEW)
  assert not case.gradient["classifier"]["kernel"][:, OLD].any()


@pytest.mark.parametrize("prior", [False, True])
def test_joint(prior):
  around = context(counts=np.asarray([40, 9, 33, 50, 20, 0, 0], np.float32))
  case = Case(methods.make("joint", {"prior": prior}, memory=20), teacher=False, around=around)
  counts = around.counts if prior else None
  case.assert_linear(finetune_reference.loss(case.logits(), case.labels, OLD, NEW, counts=counts),
                     finetune_reference.gradient(case.logits(), case.labels, OLD, NEW, counts=counts))


@pytest.mark.parametrize("memory", [20, 0])
def test_lwf(memory):
  case = Case(methods.make("lwf", {"weight": 0.7, "temperature": 3.0}, memory=memory),
              labels=None if memory else NEW_ONLY)
  options = {"memory": bool(memory), "weight": 0.7, "temperature": 3.0}
  arguments = case.logits(), case.logits(teacher=True), case.labels, OLD, NEW
  case.assert_linear(lwf_reference.loss(*arguments, **options), lwf_reference.gradient(*arguments, **options),
                     trained=SEEN if memory else NEW)


def test_lwf_without_old_classes_is_cross_entropy():
  nothing = np.zeros(7, bool)
  first = context(old=nothing, new=SEEN, lost=np.zeros(7, np.float32), task=np.int32(0))
  with_teacher, without = (Case(methods.make("lwf", {}, memory=20), teacher=teacher, around=first)
                           for teacher in (True, False))
  plain = finetune_reference.loss(without.logits(), without.labels, nothing, SEEN)
  assert with_teacher.loss == pytest.approx(plain, rel=1e-5) and without.loss == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("loss, reference, gradient", [
    ("long_tailed_cil", icarl_reference.loss, icarl_reference.gradient),
    ("paper", icarl_reference.paper_loss, icarl_reference.paper_gradient),
    ("pycil", icarl_reference.pycil_loss, icarl_reference.pycil_gradient)])
def test_icarl(loss, reference, gradient):
  case = Case(methods.make("icarl", {"loss": loss}, memory=20))
  arguments = case.logits(), case.logits(teacher=True), case.labels, OLD, NEW
  case.assert_linear(reference(*arguments), gradient(*arguments))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_nearest_mean_equals_an_exhaustive_search(seed):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(0, 4, 5)
  sizes[0] += 1
  features, images = rng.normal(size=(sizes.sum(), FEATURES)), rng.normal(size=(9, FEATURES))
  means, present = nearest_mean.means(features, sizes, 7)
  expected = icarl_reference.exemplar_means(features, np.repeat(np.arange(5), sizes), 7)
  expected = expected[0] if isinstance(expected, tuple) else expected
  np.testing.assert_allclose(means[present], np.asarray(expected)[present], atol=1e-6)
  np.testing.assert_array_equal(present[:5], sizes > 0)
  scores = nearest_mean.scores(jnp.asarray(images, jnp.float32), means, present)
  searched = icarl_reference.nearest_mean_scores(images, means, present)
  np.testing.assert_allclose(np.asarray(scores)[:, present], searched[:, present], atol=1e-5)
  assert present[np.argmax(scores, axis=1)].all()


def test_wa():
  case = Case(methods.make("wa", {"temperature": 3.0}, memory=20))
  arguments = case.logits(), case.logits(teacher=True), case.labels, OLD, NEW
  case.assert_linear(wa_reference.loss(*arguments, temperature=3.0), wa_reference.gradient(*arguments, temperature=3.0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(1e-3, 1e3))
def test_aligned_columns_have_equal_mean_norms(seed, size):
  kernel = np.random.default_rng(seed).normal(size=(FEATURES, 7)).astype(np.float32) * np.where(NEW, size, 1.0)
  kernel = kernel.astype(np.float32)
  stage = methods.make("wa", {}, memory=20).stages[0]
  aligned = np.asarray(stage.end({"kernel": jnp.asarray(kernel)}, context())["kernel"])
  np.testing.assert_allclose(aligned, wa_reference.aligned(kernel, OLD, NEW), rtol=1e-5, atol=1e-7)
  norms = np.linalg.norm(aligned, axis=0)
  assert norms[NEW].mean() == pytest.approx(norms[OLD].mean(), rel=1e-5)
  np.testing.assert_array_equal(aligned[:, ~NEW], kernel[:, ~NEW])


def test_alignment_without_old_classes_or_with_zero_columns_changes_nothing():
  kernel = jnp.ones((FEATURES, 7))
  np.testing.assert_array_equal(alignment.align(kernel, np.zeros(7, bool), SEEN), kernel)
  empty = jnp.where(NEW, 0.0, kernel)
  np.testing.assert_array_equal(alignment.align(empty, OLD, NEW), empty)


def bic_head(case):
  return case.head["alpha"].astype(np.float64), case.head["beta"].astype(np.float64)


def test_bic_trains_the_network_on_corrected_logits():
  case = Case(methods.make("bic", {"temperature": 3.0}, memory=20))
  # Student and teacher share the frozen corrections of old tasks, as after a real second stage.
  arguments = case.logits(), case.logits(teacher=True), case.labels, OLD, NEW, *bic_head(case), TASK_OF_CLASS
  case.assert_linear(bic_reference.loss(*arguments, temperature=3.0),
                     bic_reference.gradient(*arguments, temperature=3.0))
  assert not case.gradient["classifier"]["alpha"].any() and not case.gradient["classifier"]["beta"].any()


def test_bic_corrects_two_numbers_alone():
  case = Case(methods.make("bic", {"bias_penalty": 0.3}, memory=20), index=1, teacher=False)
  case.head["beta"][2] = 0.0
  alpha, beta = bic_head(case)
  arguments = case.logits(), case.labels, alpha, beta, TASK_OF_CLASS, SEEN, 2
  assert case.loss == pytest.approx(bic_reference.correction_loss(*arguments, decay=0.3), rel=1e-5)
  on_alpha, on_beta = bic_reference.correction_gradient(*arguments, decay=0.3)
  close(case.gradient["classifier"]["alpha"], [0, 0, on_alpha, 0])
  close(case.gradient["classifier"]["beta"], [0, 0, on_beta, 0])
  for untouched in (case.gradient["backbone"]["shift"], case.gradient["classifier"]["kernel"],
                    case.gradient["classifier"]["bias"]):
    assert not untouched.any()


def test_bic_with_alpha_one_and_beta_zero_is_the_identity():
  head = methods.make("bic", {}, memory=20).head
  params = head.renew(jax.random.key(0), head.init(FEATURES, 7, TASKS), SEEN)
  corrected, plain = head.apply(params, jnp.ones((2, FEATURES)), context())
  np.testing.assert_array_equal(corrected, plain)


@pytest.mark.parametrize("memory", [1, 5, 10, 15, 20, 21, 70, 100])
def test_bic_holds_out_a_tenth(memory):
  from gr_jax.methods import bic
  assert bic.held_out(memory) == bic_reference.held_out_per_class(memory)


@pytest.mark.parametrize("hardest", [1, 2, 4])
def test_lucir(hardest):
  case = Case(methods.make("lucir", {"hardest": hardest, "margin": 0.6, "distillation_weight": 3.0}, memory=20))
  kernel = np.where(SEEN, case.head["kernel"], 1.0).astype(np.float64)
  arguments = case.x.astype(np.float64), kernel, 1.7, case.labels, case.before.astype(np.float64), OLD, NEW
  options = {"base": 3.0, "margin": 0.6, "number": hardest}
  gradient, loss = lucir_reference.gradients(*arguments, **options), lucir_reference.loss(*arguments, **options)
  assert case.loss == pytest.approx(loss, rel=2e-5)
  close(case.gradient["backbone"]["shift"], gradient.features)
  close(case.gradient["classifier"]["kernel"], np.where(NEW, gradient.kernel, 0.0))
  close(case.gradient["classifier"]["scale"], gradient.eta)
  # Old columns are not trained, whatever their gradient is.
  assert not case.gradient["classifier"]["kernel"][:, OLD].any()


def test_lucir_logits_lie_within_the_scale():
  head = methods.make("lucir", {}, memory=20).head
  params = head.renew(jax.random.key(0), head.init(FEATURES, 7, TASKS), SEEN) | {"scale": jnp.float32(2.5)}
  features = 100 * jax.random.normal(jax.random.key(1), (50, FEATURES))
  logits, scores = head.apply(params, features.at[0].set(0.0), context())
  assert np.abs(logits).max() <= 2.5 + 1e-5 and np.isfinite(logits).all()
  np.testing.assert_allclose(logits, 2.5 * np.asarray(scores), rtol=1e-6)


def test_ranking_without_an_exemplar_is_zero_and_has_a_finite_gradient():
  scores = jax.random.normal(jax.random.key(0), (4, 7))
  value, gradient = jax.value_and_grad(losses.margin_ranking)(scores, jnp.asarray([3, 4, 3, 4]), OLD, NEW)
  assert value == 0 and not np.asarray(gradient).any()


def test_weight_decay_and_momentum_leave_frozen_columns_alone():
  """The mask is on the update, not on the gradient."""
  method = methods.make("lucir", {}, memory=20)
  stage = method.stages[0]
  tx = optimizer.sgd((0.5,), momentum=0.9, weight_decay=0.1)
  step = jax.jit(steps.make_train_step(model=Shift(), method=method, stage=stage, tx=tx))
  rng = np.random.default_rng(1)
  x = rng.normal(size=(BATCH, FEATURES)).astype(np.float32)
  params = {"backbone": {"shift": jnp.zeros_like(x)},
            "classifier": {"kernel": jnp.asarray(rng.normal(size=(FEATURES, 7)), jnp.float32), "scale": jnp.float32(1)}}
  state = TrainState(jnp.int32(0), params, {}, tx.init(params), ())
  data = Data(jnp.asarray(x), jnp.ones((BATCH, 2), jnp.int32), jnp.asarray(rng.integers(0, 5, BATCH), jnp.int32))
  teacher = {"params": params, "batch_stats": {}}
  for _ in range(3):
    state, _ = step(state, teacher, context(), data,
                    steps.Batch(jnp.arange(BATCH), jax.random.key(0), jnp.int32(0)))
  before, after = params["classifier"]["kernel"], state.params["classifier"]["kernel"]
  np.testing.assert_array_equal(after[:, ~NEW], before[:, ~NEW])
  assert (np.asarray(after[:, NEW]) != np.asarray(before[:, NEW])).all()


def test_scores_of_a_method_read_outputs_carry_and_context():
  method = methods.make("icarl", {}, memory=20)
  assert list(method.scores) == ["nearest_mean", "logits"]
  carry = method.init_carry(FEATURES, 7)
  outputs = Outputs(jnp.ones((2, 7)), jnp.ones((2, 7)), jnp.ones((2, FEATURES)), ())
  assert method.scores["nearest_mean"](outputs, carry, context()).shape == (2, 7)



ONE_OLD_TASK = np.asarray([0, 0, 0, 2, 2, 3, 3], np.int32)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("tasks", [TASK_OF_CLASS, ONE_OLD_TASK], ids=["an old task of one class", "one old task"])
def test_eeil(index, tasks):
  """Both stages have one loss; the second has another teacher, which here is any other network."""
  around = context(task_of_class=tasks)
  case = Case(methods.make("eeil", {"weight": 0.7, "temperature": 3.0}, memory=20), index=index, around=around)
  arguments = case.logits(), case.logits(teacher=True), case.labels, OLD, NEW, around.task_of_class
  options = {"weight": 0.7, "temperature": 3.0}
  case.assert_linear(eeil_reference.loss(*arguments, **options), eeil_reference.gradient(*arguments, **options))


def test_shares_of_a_task_are_exact_near_one():
  """log(1 - p) where p rounds to 1 in float32, and classes of other tasks far above."""
  logits = np.asarray([[40.0, 0.0, 500.0, RUBBISH], [0.0, 1.0, -500.0, np.nan]], np.float32)
  classes, tasks = np.asarray([True, True, True, False]), np.asarray([0, 0, 1, 2])
  (log_p, log_rest), pull = jax.vjp(lambda z: separated.task_log_softmax(z, classes, tasks), jnp.asarray(logits))
  np.testing.assert_allclose(log_p[0], [0, -40, 0, 0], atol=1e-6)
  np.testing.assert_allclose(log_rest[0], [-40, 0, 0, 0], atol=1e-6)
  np.testing.assert_allclose(log_p[1, :2], np.log([1 / (1 + np.e), np.e / (1 + np.e)]), rtol=1e-6)
  on_logits, = pull((jnp.ones_like(log_p), jnp.ones_like(log_p)))
  assert np.isfinite(on_logits).all() and not np.asarray(on_logits)[:, 2:].any()


def test_ssil():
  case = Case(methods.make("ssil", {"weight": 0.7, "temperature": 3.0}, memory=20), index=1)
  arguments = case.logits(), case.logits(teacher=True), case.labels, OLD, NEW, TASK_OF_CLASS
  options = {"weight": 0.7, "temperature": 3.0}
  case.assert_linear(ssil_reference.loss(*arguments, **options), ssil_reference.gradient(*arguments, **options))


@pytest.mark.parametrize("labels, untouched", [([3, 4] * 6, OLD), ([0, 1, 2] * 4, NEW)], ids=["new", "memory"])
def test_ssil_has_no_gradient_between_old_and_new_classes(labels, untouched):
  case = Case(methods.make("ssil", {"weight": 0.0}, memory=20), index=1, labels=labels)
  kernel = case.gradient["classifier"]["kernel"]
  assert not kernel[:, untouched].any() and kernel[:, SEEN & ~untouched].all()


def test_ssil_in_the_first_task_is_cross_entropy():
  nothing = np.zeros(7, bool)
  first = context(old=nothing, new=SEEN, lost=np.zeros(7, np.float32), task=np.int32(0))
  case = Case(methods.make("ssil", {}, memory=20), teacher=False, around=first)
  case.assert_linear(finetune_reference.loss(case.logits(), case.labels, nothing, SEEN),
                     finetune_reference.gradient(case.logits(), case.labels, nothing, SEEN))


@pytest.mark.parametrize("loss", ["long_tailed_cil", "pycil"])
@pytest.mark.parametrize("index", [0, 1])
def test_podnet(loss, index):
  """Both stages have one loss."""
  options = {"flat_weight": 0.7, "spatial_weight": 1.5}
  case = Case(methods.make("podnet", {"loss": loss, "proxies": 3, **options}, memory=20), index=index)
  kernel = np.where(SEEN, case.head["kernel"], 1.0).astype(np.float64)
  x, before = case.x.astype(np.float64), case.before.astype(np.float64)
  arguments = x, maps_of(x), kernel, 1.7, case.labels, before, maps_of(before), OLD, NEW
  options["pycil"] = loss == "pycil"
  gradient = podnet_reference.gradients(*arguments, **options)
  assert case.loss == pytest.approx(podnet_reference.loss(*arguments, **options), rel=2e-5)
  close(case.gradient["backbone"]["shift"], gradient.features + sum(part.reshape(BATCH, -1) for part in gradient.maps))
  close(case.gradient["classifier"]["kernel"], np.where(NEW, gradient.kernel, 0.0))
  close(case.gradient["classifier"]["scale"], gradient.sigma)
  # Old proxies are not trained, whatever their gradient is.
  assert gradient.kernel[..., OLD].any() and not case.gradient["classifier"]["kernel"][..., OLD].any()


def test_the_spatial_term_is_zero_for_equal_maps_and_does_not_depend_on_scale():
  ours, theirs = np.random.default_rng(0).normal(size=(2, 5, 4, 3, 6)).astype(np.float32)
  spatial = jax.jit(jax.value_and_grad(lambda a, b: pooled_outputs.spatial_distillation((a,), (b,))))
  value, gradient = spatial(ours, ours)
  assert value == 0 and not np.asarray(gradient).any()
  apart = float(spatial(ours, theirs)[0])
  assert apart > 0.1
  for scaled in ((np.float32(1e-3) * ours, theirs), (ours, np.float32(50) * theirs)):
    assert float(spatial(*scaled)[0]) == pytest.approx(apart, rel=1e-5)
  # A map of zeros, such as behind a dead unit, has a finite gradient.
  assert np.isfinite(spatial(0 * ours, theirs)[1]).all()


def test_one_proxy_is_the_cosine_head():
  features, kernel = np.random.default_rng(0).normal(size=(2, FEATURES, 7)).astype(np.float32)
  kernel[:, ~SEEN] = RUBBISH
  one, cosine = heads.proxies(1), heads.cosine()
  scale = jnp.float32(2.5)
  of_proxies = jax.jit(one.apply)({"kernel": kernel[:, None], "scale": scale}, features.T, context())
  expected = jax.jit(cosine.apply)({"kernel": kernel, "scale": scale}, features.T, context())
  for ours, theirs in zip(of_proxies, expected):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_losses_of_tasks_refuse_shapes_that_do_not_fit():
  z, labels = jnp.zeros((4, 7)), jnp.zeros(4, int)
  for call in (lambda: separated.task_distillation(z, z[:1], OLD, TASK_OF_CLASS, 2.0),
               lambda: separated.task_binary_distillation(z, z, OLD[:1], TASK_OF_CLASS, 2.0),
               lambda: separated.group_cross_entropy(z, labels[:1], NEW),
               lambda: pooled_outputs.nca(z[0], labels, SEEN),
               lambda: pooled_outputs.spatial_distillation((z.reshape(4, 7, 1, 1),), ())):
    with pytest.raises((AssertionError, ValueError)):
      call()
