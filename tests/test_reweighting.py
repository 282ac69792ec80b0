"""Gradient reweighting against the oracle, the recorded trajectory and its own properties."""

import math
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import trajectory
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gr_jax import losses, methods, reweighting

SETTINGS = hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
FEATURES, CLASSES = 5, 8
# Groups that are neither contiguous nor in order, and two unseen classes.
OLD = np.isin(np.arange(CLASSES), [0, 3, 6])
NEW = np.isin(np.arange(CLASSES), [1, 4, 5])
SEEN = OLD | NEW
NONE = np.zeros(CLASSES, bool)
TASK_RATIOS = ["release", "symmetric"]


def _device(grads):
  return None if grads is None else {n: jnp.asarray(g, jnp.float32) for n, g in grads.items()}


@partial(jax.jit, static_argnames=("task_ratio", "eps"))
def _update(state, ce, kd, old, new, attenuation, task_ratio, eps):
  return reweighting.update(
    state, ce, kd, old=old, new=new, attenuation=attenuation, task_ratio=task_ratio, eps=eps
  )


def update(state, ce, kd, *, old=OLD, new=NEW, attenuation=1.0, task_ratio="release", eps=1e-6):
  """The package's update, jitted with masks and attenuation traced."""
  masks = jnp.asarray(old), jnp.asarray(new)
  return _update(
    state, _device(ce), _device(kd), *masks, jnp.float32(attenuation), task_ratio, eps
  )


def warmed(phi, *, old=OLD, new=NEW):
  """A state with the given Phi, reached as any state is: by an update."""
  phi = np.asarray(phi, np.float32)
  grads = {"kernel": np.zeros((FEATURES, len(phi)), np.float32), "bias": np.zeros(len(phi))}
  grads["kernel"][0] = phi
  _, state, _ = update(reweighting.init(len(phi)), grads, None, old=old, new=new)
  return state


def expected(phi, ce, kd, *, old=OLD, new=NEW, **options):
  """The oracle's result on the same float32 numbers."""
  kd = kd or {}
  return oracle.reweight(
    np.asarray(phi, np.float32),
    np.asarray(ce["kernel"], np.float32),
    None if "bias" not in ce else np.asarray(ce["bias"], np.float32),
    None if "kernel" not in kd else np.asarray(kd["kernel"], np.float32),
    None if "bias" not in kd else np.asarray(kd["bias"], np.float32),
    old=old,
    new=new,
    **options,
  )


def _close(ours, theirs, rtol=2e-5):
  """Relative to the largest entry: sums of terms of both signs lose digits."""
  theirs = np.asarray(theirs, np.float64)
  scale = np.max(np.abs(theirs), initial=0.0)
  ours = np.asarray(ours, np.float64)
  np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * 0.1 * scale)


def assert_same(result, theirs, old=OLD, new=NEW, *, ratios_too=True):
  """Everything that `update` returns equals the oracle's `theirs`."""
  grads, state, ratios = result
  np.testing.assert_allclose(state.phi, theirs.phi, rtol=2e-6)
  np.testing.assert_allclose(state.column, theirs.column, rtol=1e-5)
  np.testing.assert_array_equal(ratios.column, state.column)
  np.testing.assert_allclose(ratios.alpha, theirs.alpha, rtol=1e-5)
  if ratios_too:
    np.testing.assert_allclose(ratios.r_old, theirs.r_old, rtol=1e-5)
    np.testing.assert_allclose(ratios.r_new, theirs.r_new, rtol=1e-5)
    np.testing.assert_allclose(ratios.beta, theirs.beta, rtol=1e-5)
  _close(grads["kernel"], theirs.kernel)
  if theirs.bias is None:
    assert set(grads) == {"kernel"}
  else:
    _close(grads["bias"], theirs.bias)
  unseen = ~(np.asarray(old) | np.asarray(new))
  for array in (state.phi, state.column, ratios.alpha, *grads.values()):
    assert np.all(np.isfinite(array))
    assert np.all(np.asarray(array)[..., unseen] == 0.0)


def check(phi, ce, kd, *, old=OLD, new=NEW, **options):
  """Runs both on one step, compares, and returns the oracle's result."""
  theirs = expected(phi, ce, kd, old=old, new=new, **options)
  result = update(warmed(phi, old=old, new=new), ce, kd, old=old, new=new, **options)
  assert_same(result, theirs, old, new)
  return theirs


def _random_grads(rng, scale=1.0, classes=CLASSES):
  return {
    "kernel": (scale * rng.normal(size=(FEATURES, classes))).astype(np.float32),
    "bias": (scale * rng.normal(size=classes)).astype(np.float32),
  }


def a_state(new_to_old, seed=0, old=OLD, new=NEW):
  """(Phi before the step, ce_grads, kd_grads), such that PhiBar_n / PhiBar_o = `new_to_old`.

  The step's own gradient is as large as what Phi holds, so it matters whether it is counted.
  """
  rng = np.random.default_rng(seed)
  phi = np.where(old | new, rng.uniform(0.2, 2.0, CLASSES), 0.0)
  ce, kd = _random_grads(rng), _random_grads(rng, 0.3)
  after = phi + np.linalg.norm(ce["kernel"].astype(np.float64), axis=0)
  factor = np.where(new, new_to_old * after[old].mean() / after[new].mean(), 1.0)
  ce = {name: (factor * grad).astype(np.float32) for name, grad in ce.items()}
  return (factor * phi).astype(np.float32), ce, kd


# --------------------------------------------------------------------------- the oracle by itself


def _recorded_features(parameters, x):
  """Backbone of the recording in float64: relu(x @ kernel + bias)."""
  backbone = parameters["backbone"]
  return np.maximum(x.astype(np.float64) @ backbone["kernel"] + backbone["bias"][None, :], 0.0)


def _recorded_steps():
  """Yields (t, step, recorded task, features, teacher logits or None) over the recording."""
  recorded = trajectory.load()
  for t, task in enumerate(recorded.tasks):
    before = task.initial
    for step, x in enumerate(task.x):
      features = _recorded_features(before, x)
      logits = None
      if t > 0:
        teacher = recorded.teacher(t)
        logits = oracle.linear_logits(
          _recorded_features(teacher, x), **teacher["classifier"]
        )
      yield t, step, task, features, logits
      before = task.after(step)


def test_oracle_agrees_with_the_recorded_trajectory():
  settings = trajectory.load()
  state = setting = None
  for _, step, task, features, teacher_logits in _recorded_steps():
    if step == 0:
      state = oracle.start(**task.initial["classifier"])
      setting = oracle.LinearTask(
        class_counts=task.class_counts,
        old=task.old,
        new=task.new,
        lost=task.lost,
        attenuation=task.attenuation,
        distillation_weight=task.distillation_weight,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
      )
    state = oracle.linear_step(state, setting, features, task.labels[step], teacher_logits)
    after = task.after(step)["classifier"]
    np.testing.assert_allclose(state.kernel, after["kernel"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.bias, after["bias"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.phi, task.phi[step], rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.column, task.column[step], rtol=0, atol=1e-6)
    assert state.cross_entropy == pytest.approx(task.cross_entropy[step], abs=2e-6)
    assert state.distillation == pytest.approx(task.distillation[step], abs=2e-6)


def test_oracle_classifier_gradients_are_the_slopes_of_the_losses():
  rng = np.random.default_rng(0)
  features, labels = rng.normal(size=(6, 3)), rng.integers(0, 4, 6)
  kernel, bias, teacher = rng.normal(size=(3, 4)), rng.normal(size=4), rng.normal(size=(6, 4))
  counts, lost, old = [5, 1, 9, 2], [3, 0, 8, 0], [True, True, True, False]

  def both(kernel, bias):
    logits = oracle.linear_logits(features, kernel, bias)
    ce = oracle.cross_entropy(logits, labels, counts)
    kd = oracle.dakd(logits, teacher, lost, old)
    return ce[0] + kd[0], ce[1] + kd[1]

  ours = oracle.linear_gradients(features, both(kernel, bias)[1])
  slope = oracle.central_difference(lambda k: both(k, bias)[0], kernel)
  np.testing.assert_allclose(ours[0], slope, atol=1e-8)
  slope = oracle.central_difference(lambda b: both(kernel, b)[0], bias)
  np.testing.assert_allclose(ours[1], slope, atol=1e-8)


def test_oracle_switches():
  """"class": one group and the plain sum; "none": the plain gradient of the total loss."""
  phi, ce, kd = a_state(0.3)
  joint = expected(phi, ce, kd, attenuation=0.5, reweighting="class")
  single = expected(phi, ce, None, old=NONE, new=SEEN)
  np.testing.assert_array_equal(joint.alpha, single.alpha)
  np.testing.assert_array_equal(joint.column, single.alpha)
  masked = np.where(OLD, kd["kernel"].astype(np.float64), 0.0)
  np.testing.assert_allclose(joint.kernel, single.kernel + masked, rtol=1e-12)
  plain = expected(phi, ce, kd, attenuation=0.5, reweighting="none")
  np.testing.assert_allclose(
    plain.kernel, np.where(SEEN, ce["kernel"].astype(np.float64), 0.0) + masked, rtol=1e-12
  )


# -------------------------------------------------------------------------- one step, all regimes


def _regime(theirs):
  return ("<" if theirs.r_old < 1.0 else "=") + ("<" if theirs.r_new < 1.0 else "=")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
  "task_ratio, new_to_old, regime",
  [
    ("release", 0.3, "<<"),
    ("release", 1.3, "=<"),
    ("release", 4.0, "=="),
    ("symmetric", 0.3, "<="),
    ("symmetric", 0.8, "<<"),
    ("symmetric", 4.0, "=<"),
  ],
)
def test_update_agrees_with_the_oracle(task_ratio, new_to_old, regime, seed):
  """`regime`: whether r_old and r_new are below (<) or at (=) 1."""
  phi, ce, kd = a_state(new_to_old, seed)
  theirs = check(phi, ce, kd, attenuation=0.5, task_ratio=task_ratio)
  assert _regime(theirs) == regime
  assert theirs.beta > 0.0


def test_update_by_hand():
  """Two old and two new classes, one feature, numbers that a reader can follow."""
  ce = {"kernel": np.array([[1.0, -1.0, 2.0, 0.5]]), "bias": np.array([4.0, 4.0, 4.0, 4.0])}
  kd = {"kernel": np.array([[3.0, 4.0, 9.0, 9.0]]), "bias": np.array([1.0, 2.0, 9.0, 9.0])}
  old, new = np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1], bool)
  state = reweighting.init(4)
  # Phi becomes 1 + 3, 1 + 1, 2 + 1, 0.5 + 0.5 = 4, 2, 3, 1; the means are 3 and 2.
  before = {"kernel": np.array([[3.0, 1.0, 1.0, 0.5]]), "bias": np.zeros(4)}
  _, state, _ = update(state, before, None, old=old, new=new)
  grads, state, ratios = update(state, ce, kd, old=old, new=new, attenuation=0.75)
  np.testing.assert_allclose(state.phi, [4.0, 2.0, 3.0, 1.0], rtol=1e-6)
  np.testing.assert_allclose(ratios.alpha, [1 / 2, 1.0, 1 / 3, 1.0], rtol=1e-6)
  assert float(ratios.r_old) == pytest.approx(2 / 3, rel=1e-6)
  assert float(ratios.r_new) == pytest.approx(1 / 2, rel=1e-6)
  column = np.array([1 / 3, 2 / 3, 1 / 6, 1 / 2])
  np.testing.assert_allclose(ratios.column, column, rtol=1e-6)
  beta = math.sqrt((1 / 3) ** 2 + (2 / 3) ** 2 + (1 / 3) ** 2 + (1 / 4) ** 2) / 5.0
  assert float(ratios.beta) == pytest.approx(beta, rel=1e-6)
  kernel = [1 / 3 + 3 * beta, -2 / 3 + 4 * beta, 1 / 3, 1 / 4]
  np.testing.assert_allclose(grads["kernel"], [kernel], rtol=1e-5)
  bias = [4 / 3 + beta, 8 / 3 + 2 * beta, 2 / 3, 2.0]
  np.testing.assert_allclose(grads["bias"], bias, rtol=1e-5)


@pytest.mark.parametrize("task_ratio", TASK_RATIOS)
def test_first_task_has_one_group(task_ratio):
  """No old class: r = 1 whatever the attenuation, and no beta."""
  phi, ce, kd = a_state(0.5)
  for other in (None, kd):
    theirs = check(phi, ce, other, old=NONE, new=SEEN, attenuation=0.5, task_ratio=task_ratio)
    assert theirs.r_old == theirs.r_new == 1.0
    assert theirs.beta == 0.0
    assert theirs.alpha[SEEN].max() == 1.0


@pytest.mark.parametrize("task_ratio", TASK_RATIOS)
@pytest.mark.parametrize("new_to_old", [0.2, 5.0])
def test_one_old_class(new_to_old, task_ratio):
  old, new = np.arange(CLASSES) == 6, np.isin(np.arange(CLASSES), [0, 2, 7])
  phi, ce, kd = a_state(new_to_old, 3, old, new)
  theirs = check(phi, ce, kd, old=old, new=new, attenuation=0.4, task_ratio=task_ratio)
  assert theirs.alpha[6] == 1.0


@pytest.mark.parametrize("task_ratio", TASK_RATIOS)
@pytest.mark.parametrize("confidence", [0.0, 40.0, 200.0])
def test_batch_with_only_new_classes(confidence, task_ratio):
  """From real logits; with much confidence the old columns' gradients are tiny or vanish."""
  rng = np.random.default_rng(4)
  features = rng.normal(size=(6, FEATURES)).astype(np.float32)
  labels, counts = rng.choice(np.flatnonzero(NEW), 6), np.where(SEEN, 5, 0)
  logits = rng.normal(size=(6, CLASSES)).astype(np.float32) - confidence * OLD[None, :]
  cotangent = np.asarray(
    jax.grad(losses.prior_regularized_cross_entropy)(
      jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.asarray(counts)
    )
  )
  ce = {"kernel": features.T @ cotangent, "bias": cotangent.sum(axis=0)}
  size = np.abs(ce["kernel"][:, OLD]).max()
  assert size > 1e-3 if confidence == 0.0 else size < 1e-12
  kd = _random_grads(rng)
  start = np.where(SEEN, rng.uniform(0.2, 2.0, CLASSES), 0.0)
  for phi in (np.zeros(CLASSES), start):
    check(phi, ce, kd, attenuation=0.6, task_ratio=task_ratio)


@pytest.mark.parametrize("task_ratio", TASK_RATIOS)
def test_phi_is_carried_over_several_steps(task_ratio):
  rng = np.random.default_rng(5)
  state, phi, regimes = reweighting.init(CLASSES), np.zeros(CLASSES), set()
  for step in range(6):
    ce, kd = _random_grads(rng), _random_grads(rng, 0.1)
    for grad in ce.values():  # the new classes' gradients fade
      grad *= np.where(NEW, 3.0 * 0.4**step, 1.0).astype(np.float32)
    theirs = expected(phi, ce, kd, attenuation=0.5, task_ratio=task_ratio)
    result = update(state, ce, kd, attenuation=0.5, task_ratio=task_ratio)
    assert_same(result, theirs)
    state, phi = result[1], theirs.phi
    regimes.add(_regime(theirs))
  assert len(regimes) > 1


def test_init():
  state = reweighting.init(7)
  for array in (state.phi, state.column):
    assert array.shape == (7,)
    assert array.dtype == jnp.float32
  assert np.all(np.asarray(state.phi) == 0.0)


def test_the_input_state_is_not_changed():
  phi, ce, kd = a_state(0.3)
  state = warmed(phi)
  held = np.array(state.phi)
  update(state, ce, kd, attenuation=0.5)
  np.testing.assert_array_equal(state.phi, held)


# ------------------------------------------------------------------------------------------ guards


def _without_columns(grads, columns):
  return {n: np.where(columns, np.float32(0), g) for n, g in grads.items()}


@pytest.mark.parametrize("task_ratio", TASK_RATIOS)
@pytest.mark.parametrize("still", [[3], [5], [3, 5], [0, 3, 1]])
def test_a_class_without_any_gradient_so_far(still, task_ratio):
  """Phi = 0: alpha is 1 there, and the minimum is over the others; the mean counts it as zero."""
  still = np.isin(np.arange(CLASSES), still)
  phi, ce, kd = a_state(0.5, 6)
  phi, ce = np.where(still, 0, phi), _without_columns(ce, still)
  theirs = check(phi, ce, kd, attenuation=0.5, task_ratio=task_ratio)
  assert np.all(theirs.alpha[still] == 1.0)
  assert theirs.alpha[SEEN & ~still].min() < 1.0
  means = theirs.phi[OLD].sum() / OLD.sum(), theirs.phi[NEW].sum() / NEW.sum()
  assert theirs.r_old == pytest.approx(min(1.0, means[1] / means[0]))


@pytest.mark.parametrize("task_ratio", TASK_RATIOS)
@pytest.mark.parametrize("still", [OLD, NEW, SEEN], ids=["old", "new", "both"])
def test_a_group_without_any_gradient_so_far(still, task_ratio):
  phi, ce, kd = a_state(0.7, 7)
  ce = _without_columns(ce, still)
  theirs = check(np.where(still, 0, phi), ce, kd, attenuation=0.5, task_ratio=task_ratio)
  assert (theirs.r_old, theirs.r_new) == (1.0, 0.5)


def test_attenuation_above_one_is_capped_where_a_mean_is_zero():
  phi, ce, kd = a_state(0.7, 7)
  theirs = check(np.where(OLD, 0, phi), _without_columns(ce, OLD), kd, attenuation=3.0)
  assert theirs.r_new == 1.0


def test_no_new_class():
  """Not a task of the protocol; it must still be finite."""
  phi, ce, kd = a_state(0.7, 8)
  theirs = expected(phi, ce, kd, old=SEEN, new=NONE, attenuation=0.5)
  state = warmed(phi, old=SEEN, new=NONE)
  result = update(state, ce, kd, old=SEEN, new=NONE, attenuation=0.5)
  assert_same(result, theirs, SEEN, NONE, ratios_too=False)


def _norm(grads, mask):
  return np.linalg.norm(grads["kernel"][:, mask].astype(np.float64))


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize("relative, kept", [(0.5, False), (2.0, True)])
def test_distillation_gradient_that_is_only_rounding_noise(relative, kept, eps):
  """beta = 0 where D <= eps * G, with D over old and G over seen columns."""
  phi, ce, kd = a_state(0.3, 9)
  for grad in ce.values():  # what stands in unseen columns must not count in G ...
    grad[..., ~SEEN] = 1e4
  for grad in kd.values():
    grad *= np.float32(relative * eps * _norm(ce, SEEN) / _norm(kd, OLD))
    grad[..., ~OLD] = 1e4  # ... nor outside the old ones in D
  theirs = check(phi, ce, kd, attenuation=0.5, eps=eps)
  assert (theirs.beta > 0.0) == kept


def test_distillation_gradient_below_all_measure():
  """beta = 0 where D < 1e-30, however small G is."""
  phi, ce, kd = a_state(0.3, 10)
  ce = {n: (g * np.float32(1e-33)).astype(np.float32) for n, g in ce.items()}
  kd = {n: (g * np.float32(1e-32)).astype(np.float32) for n, g in kd.items()}
  assert 0.0 < _norm(kd, OLD) < 1e-30
  assert check(phi, ce, kd, attenuation=0.5).beta == 0.0


@pytest.mark.parametrize("which", ["ce", "kd", "both"])
def test_zero_gradients(which):
  phi, ce, kd = a_state(0.3, 11)
  if which != "kd":
    ce = _without_columns(ce, SEEN)
  if which != "ce":
    kd = _without_columns(kd, SEEN)
  assert check(phi, ce, kd, attenuation=0.5).beta == 0.0
  check(np.zeros(CLASSES), ce, kd, attenuation=0.5)


@pytest.mark.parametrize("task_ratio", TASK_RATIOS)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_gradients_whose_squares_float32_cannot_hold(scale, task_ratio):
  phi, ce, kd = a_state(0.3, 12)
  ce = {n: (g * np.float32(scale)).astype(np.float32) for n, g in ce.items()}
  kd = {n: (g * np.float32(scale)).astype(np.float32) for n, g in kd.items()}
  phi = (phi * np.float32(scale)).astype(np.float32)
  theirs = check(phi, ce, kd, attenuation=0.5, task_ratio=task_ratio)
  assert theirs.beta > 0.0
  assert np.all(theirs.phi[SEEN] > 0.0)


@pytest.mark.parametrize("tiny", [OLD, NEW, np.arange(CLASSES) == 3], ids=["old", "new", "one"])
def test_tiny_columns_beside_ordinary_ones(tiny):
  """A scale common to all columns would lose the tiny ones."""
  _, ce, kd = a_state(1.0, 13)
  ce = {n: np.where(tiny, g * np.float32(1e-25), g).astype(np.float32) for n, g in ce.items()}
  theirs = check(np.zeros(CLASSES), ce, kd, attenuation=0.5)
  assert np.all(theirs.phi[tiny & SEEN] > 0.0)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e6])
def test_distillation_entries_outside_old_are_ignored(garbage):
  phi, ce, kd = a_state(0.3, 14)
  clean = check(phi, ce, kd, attenuation=0.5)
  for grad in kd.values():
    grad[..., ~OLD] = garbage
  dirty = check(phi, ce, kd, attenuation=0.5)
  assert dirty.beta == clean.beta


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e6])
def test_unseen_columns_are_ignored(garbage):
  phi, ce, kd = a_state(0.3, 15)
  clean = expected(phi, ce, kd, attenuation=0.5)
  for grad in (*ce.values(), *kd.values()):
    grad[..., ~SEEN] = garbage
  dirty = check(phi, ce, kd, attenuation=0.5)
  np.testing.assert_array_equal(dirty.kernel, clean.kernel)


def test_no_distillation():
  phi, ce, _ = a_state(0.3, 16)
  theirs = check(phi, ce, None, attenuation=0.5)
  assert theirs.beta == 0.0
  assert theirs.r_old < 1.0


@pytest.mark.parametrize("distilled", [True, False])
def test_bias_is_optional(distilled):
  phi, ce, kd = a_state(0.3, 17)
  del ce["bias"], kd["bias"]
  check(phi, ce, kd if distilled else None, attenuation=0.5)


def test_norms_leave_the_bias_out():
  phi, ce, kd = a_state(0.3, 18)
  result = update(warmed(phi), ce, kd, attenuation=0.5)
  shifted = [{"kernel": g["kernel"], "bias": 1000.0 + g["bias"]} for g in (ce, kd)]
  other = update(warmed(phi), *shifted, attenuation=0.5)
  for ours, theirs in zip(jax.tree.leaves(result[1:]), jax.tree.leaves(other[1:])):
    np.testing.assert_array_equal(ours, theirs)


# -------------------------------------------------------------------------------------- properties

# Multiples of 1/16, with many zeros among them.
_numbers = st.one_of(st.just(0.0), st.integers(-64, 64).map(lambda n: n / 16))
_kernels = hnp.arrays(np.float32, (FEATURES, CLASSES), elements=_numbers)
_biases = hnp.arrays(np.float32, CLASSES, elements=_numbers)
_grads = st.builds(lambda kernel, bias: {"kernel": kernel, "bias": bias}, _kernels, _biases)
_phis = hnp.arrays(np.float32, CLASSES, elements=_numbers.map(abs))


@st.composite
def _steps(draw):
  """Keyword arguments of `check` for any step, degenerate ones included."""
  groups = np.array(
    draw(st.lists(st.sampled_from("oonnu"), min_size=CLASSES, max_size=CLASSES))
  )
  old, new = groups == "o", groups == "n"
  hypothesis.assume(new.any())
  return {
    "phi": np.where(old | new, draw(_phis), 0.0).astype(np.float32),
    "ce": draw(_grads),
    "kd": draw(st.none() | _grads),
    "old": old,
    "new": new,
    "attenuation": float(np.float32(draw(st.integers(24, 64)) / 64)),
    "task_ratio": draw(st.sampled_from(TASK_RATIOS)),
  }


def _permuted(grads, order):
  return None if grads is None else {n: grad[..., order] for n, grad in grads.items()}


@SETTINGS
@hypothesis.given(_steps())
def test_any_step_agrees_with_the_oracle(step):
  check(**step)


@SETTINGS
@hypothesis.given(_steps())
def test_ratios_are_above_zero_and_at_most_one(step):
  phi = step.pop("phi")
  state = warmed(phi, old=step["old"], new=step["new"])
  _, state, ratios = update(state, step.pop("ce"), step.pop("kd"), **step)
  seen = step["old"] | step["new"]
  for values in (ratios.alpha, ratios.column):
    inside, outside = np.asarray(values)[seen], np.asarray(values)[~seen]
    assert np.all((inside > 0.0) & (inside <= 1.0))
    assert np.all(outside == 0.0)
  for ratio in (ratios.r_old, ratios.r_new):
    assert 0.0 < float(ratio) <= 1.0
  assert float(ratios.beta) >= 0.0


@SETTINGS
@hypothesis.given(_steps(), st.permutations(range(CLASSES)).map(np.array))
def test_permuting_the_classes_permutes_the_result(step, order):
  phi, ce, kd = step.pop("phi"), step.pop("ce"), step.pop("kd")
  old, new = step.pop("old"), step.pop("new")
  grads, state, ratios = update(warmed(phi, old=old, new=new), ce, kd, old=old, new=new, **step)
  masks = {"old": old[order], "new": new[order]}
  moved = update(
    warmed(phi[order], **masks), _permuted(ce, order), _permuted(kd, order), **masks, **step
  )
  for name, grad in grads.items():
    _close(moved[0][name], np.asarray(grad)[..., order], 1e-5)
  np.testing.assert_array_equal(moved[1].phi, np.asarray(state.phi)[order])
  np.testing.assert_allclose(moved[1].column, np.asarray(state.column)[order], rtol=1e-6)
  for name in ("r_old", "r_new", "beta"):
    pair = getattr(moved[2], name), getattr(ratios, name)
    np.testing.assert_allclose(*pair, rtol=1e-5)


@pytest.mark.parametrize("task_ratio", TASK_RATIOS)
def test_traced_masks_give_what_static_ones_give(task_ratio):
  phi, ce, kd = a_state(0.8, 19)
  traced = update(warmed(phi), ce, kd, attenuation=0.5, task_ratio=task_ratio)
  static = reweighting.update(
    warmed(phi),
    _device(ce),
    _device(kd),
    old=OLD,
    new=NEW,
    attenuation=0.5,
    task_ratio=task_ratio,
  )
  assert jax.tree.structure(traced) == jax.tree.structure(static)
  for ours, theirs in zip(jax.tree.leaves(traced), jax.tree.leaves(static)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_state_keeps_its_types_and_can_be_carried_by_a_scan():
  steps = 4
  rng = np.random.default_rng(20)
  batches = [(_random_grads(rng), _random_grads(rng)) for _ in range(steps)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

  def body(state, grads):
    result, state, _ = reweighting.update(
      state, *grads, old=jnp.asarray(OLD), new=jnp.asarray(NEW), attenuation=0.5
    )
    return state, result

  state, grads = jax.jit(partial(jax.lax.scan, body))(reweighting.init(CLASSES), stacked)
  phi = np.zeros(CLASSES)
  for step, (ce, kd) in enumerate(batches):
    theirs = expected(phi, ce, kd, attenuation=0.5)
    phi = theirs.phi
    _close(grads["kernel"][step], theirs.kernel)
  np.testing.assert_allclose(state.phi, phi, rtol=1e-5)
  np.testing.assert_allclose(state.column, theirs.column, rtol=1e-5)


def test_the_defaults_are_the_release_and_one_millionth():
  phi, ce, kd = a_state(0.3, 21)
  for grad in kd.values():
    grad *= np.float32(0.9e-6 * _norm(ce, SEEN) / _norm(kd, OLD))
  _, _, ratios = reweighting.update(
    warmed(phi), _device(ce), _device(kd), old=OLD, new=NEW, attenuation=0.5
  )
  theirs = expected(phi, ce, kd, attenuation=0.5)
  assert float(ratios.beta) == theirs.beta == 0.0
  assert float(ratios.r_new) == pytest.approx(theirs.r_new, rel=1e-5)


def test_an_unknown_task_ratio_is_refused():
  phi, ce, kd = a_state(0.3, 22)
  with pytest.raises(ValueError, match="sideways"):
    reweighting.update(
      warmed(phi),
      _device(ce),
      _device(kd),
      old=OLD,
      new=NEW,
      attenuation=0.5,
      task_ratio="sideways",
    )


# ---------------------------------------------------------------------------------------- switches


def _rule_state(state):
  """The same state in the form of the transformation's; of the ratios only `column` is known."""
  zero = jnp.zeros(())
  return reweighting.RuleState(
    state.phi, reweighting.Ratios(jnp.zeros_like(state.phi), state.column, zero, zero, zero)
  )


@pytest.mark.parametrize("later_task", [True, False])
@pytest.mark.parametrize("distilled", [True, False])
@pytest.mark.parametrize("rule", ["dgr", "class", "none"])
def test_the_reweighting_switch_agrees_with_the_oracle(rule, distilled, later_task):
  # As many old images as new ones: an attenuation of 0.5.
  options = {"reweighting": rule, "distillation": "dakd" if distilled else "none"}
  method = methods.make("gr", {**options, "attenuation_gamma": 2 * math.log(2)}, memory=20)
  (stage,) = method.stages
  old, new = (OLD, NEW) if later_task else (NONE, SEEN)
  counts = jnp.asarray(np.where(SEEN, 7.0, 0.0), jnp.float32)
  phi, ce, kd = a_state(0.3, 30)
  kd = kd if distilled and later_task else None
  for grad in ce.values():
    grad[..., ~SEEN] = np.nan
  gradients = {"cross_entropy": _device(ce)} | ({} if kd is None else {"distillation": _device(kd)})
  assert set(gradients) <= set(stage.losses)
  grads, state = stage.rule.update(
    _device(ce), _rule_state(warmed(phi, old=old, new=new)), gradients=gradients,
    old=jnp.asarray(old), new=jnp.asarray(new), counts=counts,
  )
  theirs = expected(phi, ce, kd, old=old, new=new, attenuation=0.5, reweighting=rule)
  plain = reweighting.ReweightingState(state.phi, state.ratios.column)
  assert_same((grads, plain, state.ratios), theirs, old, new)


# ------------------------------------------------------------------------------------- attenuation


@pytest.mark.parametrize(
  "n_old, n_new, gamma", [(27, 16, 1.0), (0, 9, 1.0), (9000, 850, 1.0), (10, 10, 3.0), (5, 5, 0.0)]
)
def test_attenuation(n_old, n_new, gamma):
  result = reweighting.attenuation(n_old, n_new, gamma=gamma)
  assert float(result) == pytest.approx(oracle.attenuation(n_old, n_new, gamma), rel=1e-6)


def test_attenuation_of_the_recording():
  recorded = trajectory.load()
  for task in recorded.tasks[1:]:
    n_old = int(recorded.counts_original[task.old].sum())
    n_new = int(recorded.counts_original[task.new].sum())
    result = float(reweighting.attenuation(n_old, n_new))
    assert result == pytest.approx(task.attenuation, rel=1e-6)


# ----------------------------------------------------- a linear classifier in training, whole steps


@partial(jax.jit, static_argnames=("distillation", "task_ratio"))
def _linear_step(parameters, opt_state, state, task, batch, *, distillation, task_ratio):
  """One step from the package's pieces: losses, reweighting, then optax on seen columns."""
  features, labels, teacher_logits = batch
  logits = features @ parameters["kernel"] + parameters["bias"][None, :]
  ce_value, ce_pull = jax.value_and_grad(losses.prior_regularized_cross_entropy)(
    logits, labels, task["class_counts"]
  )
  if distillation == "dakd":
    kd_value, kd_pull = jax.value_and_grad(losses.distribution_aware_distillation)(
      logits, teacher_logits, task["lost"], task["old"]
    )
  else:
    kd_value, kd_pull = jax.value_and_grad(losses.distillation)(
      logits, teacher_logits, task["old"]
    )
  scale = task["distillation_weight"] * 4.0

  def gradients(pull):
    return {"kernel": features.T @ pull, "bias": pull.sum(axis=0)}

  grads, state, _ = reweighting.update(
    state,
    gradients(ce_pull),
    gradients(scale * kd_pull),
    old=task["old"],
    new=task["new"],
    attenuation=task["attenuation"],
    task_ratio=task_ratio,
  )
  seen = task["old"] | task["new"]
  grads = jax.tree.map(lambda g, p: g + task["weight_decay"] * p, grads, parameters)
  opt_state = jax.tree.map(lambda m, g: task["momentum"] * m + g, opt_state, grads)
  parameters = jax.tree.map(
    lambda p, m: jnp.where(
      jnp.broadcast_to(seen, p.shape), p - task["learning_rate"] * m, p
    ),
    parameters,
    opt_state,
  )
  return parameters, opt_state, state, (ce_value, scale * kd_value)


def _linear_task(setting):
  """The traced part of an oracle.LinearTask."""
  names = ("class_counts", "lost", "old", "new", "attenuation", "distillation_weight")
  names += ("learning_rate", "weight_decay", "momentum")
  return {name: jnp.asarray(getattr(setting, name)) for name in names}


@pytest.mark.parametrize("distillation", ["dakd", "kd"])
@pytest.mark.parametrize("task_ratio", TASK_RATIOS)
def test_training_a_linear_classifier_agrees_with_the_oracle(task_ratio, distillation):
  rng = np.random.default_rng(23)
  setting = oracle.LinearTask(
    class_counts=np.where(OLD, 4, np.where(NEW, [0, 90, 0, 0, 7, 25, 0, 0], 0)),
    old=OLD,
    new=NEW,
    lost=np.where(OLD, [3, 0, 0, 120, 0, 0, 0, 0], 0),
    attenuation=0.6,
    distillation_weight=0.8,
    weight_decay=0.01,
    distillation=distillation,
    task_ratio=task_ratio,
  )
  kernel = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
  bias = rng.normal(size=CLASSES).astype(np.float32)
  teacher = kernel + 0.3 * rng.normal(size=kernel.shape).astype(np.float32)
  theirs = oracle.start(kernel, bias)
  ours = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
  opt_state, state = jax.tree.map(jnp.zeros_like, ours), reweighting.init(CLASSES)
  for step in range(8):
    features = rng.normal(size=(6, FEATURES)).astype(np.float32)
    members = NEW if step == 2 else OLD if step == 4 else SEEN
    labels = rng.choice(np.flatnonzero(members), 6)
    teacher_logits = (features @ teacher).astype(np.float32)
    theirs = oracle.linear_step(theirs, setting, features, labels, teacher_logits)
    ours, opt_state, state, values = _linear_step(
      ours,
      opt_state,
      state,
      _linear_task(setting),
      (jnp.asarray(features), jnp.asarray(labels), jnp.asarray(teacher_logits)),
      distillation=distillation,
      task_ratio=task_ratio,
    )
    np.testing.assert_allclose(ours["kernel"], theirs.kernel, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours["bias"], theirs.bias, rtol=0, atol=1e-5)
    np.testing.assert_allclose(state.phi, theirs.phi, rtol=1e-5)
    np.testing.assert_allclose(state.column, theirs.column, rtol=1e-5)
    assert float(values[0]) == pytest.approx(theirs.cross_entropy, rel=1e-5)
    assert float(values[1]) == pytest.approx(theirs.distillation, rel=1e-5)
  np.testing.assert_array_equal(np.asarray(ours["kernel"])[:, ~SEEN], kernel[:, ~SEEN])


def test_the_recorded_classifier_is_reproduced():
  """All three recorded tasks, features from the recorded backbone."""
  settings = trajectory.load()
  for _, step, task, features, teacher_logits in _recorded_steps():
    if step == 0:
      ours = jax.tree.map(jnp.asarray, task.initial["classifier"])
      opt_state = jax.tree.map(jnp.zeros_like, ours)
      state = reweighting.init(len(task.old))
      traced = _linear_task(
        oracle.LinearTask(
          **{
            name: getattr(task, name)
            for name in ("class_counts", "old", "new", "lost", "attenuation")
          },
          distillation_weight=task.distillation_weight,
          learning_rate=settings.learning_rate,
          weight_decay=settings.weight_decay,
          momentum=settings.momentum,
        )
      )
    features = jnp.asarray(features, jnp.float32)
    if teacher_logits is None:
      teacher_logits = np.zeros((len(features), len(task.old)))
    batch = features, jnp.asarray(task.labels[step]), jnp.asarray(teacher_logits, jnp.float32)
    ours, opt_state, state, values = _linear_step(
      ours, opt_state, state, traced, batch, distillation="dakd", task_ratio="release"
    )
    after = task.after(step)["classifier"]
    np.testing.assert_allclose(ours["kernel"], after["kernel"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours["bias"], after["bias"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(state.phi, task.phi[step], rtol=0, atol=1e-5)
    np.testing.assert_allclose(state.column, task.column[step], rtol=0, atol=1e-5)
    assert float(values[0]) == pytest.approx(task.cross_entropy[step], abs=1e-5)
    assert float(values[1]) == pytest.approx(task.distillation[step], abs=1e-5)


# --------------------------------------------------------------------- as an optax transformation


def _network(rng):
  """Nested plain dicts with the classifier two levels down."""
  return {
    "params": {
      "backbone": {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 1, 2)), jnp.float32)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
      },
      "head": jax.tree.map(jnp.asarray, _random_grads(rng)),
    }
  }


def _like(tree, rng):
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), tree)


PATH = ("params", "head")


def _first_task(phi, head):
  """The oracle's first-task rule with every column seen."""
  return expected(phi, head, None, old=NONE, new=~NONE)


@pytest.mark.parametrize("jitted", [True, False])
def test_balance_classifier_is_the_first_task_rule(jitted):
  rng = np.random.default_rng(24)
  params = _network(rng)
  transformation = reweighting.balance_classifier(PATH)
  state, phi = transformation.init(params), np.zeros(CLASSES)
  step = jax.jit(transformation.update) if jitted else transformation.update
  for _ in range(4):
    grads = _like(params, rng)
    updates, state = step(grads, state)
    theirs = _first_task(phi, grads["params"]["head"])
    phi = theirs.phi
    _close(updates["params"]["head"]["kernel"], theirs.kernel)
    _close(updates["params"]["head"]["bias"], theirs.bias)
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    for ours, given in zip(
      jax.tree.leaves(updates["params"]["backbone"]),
      jax.tree.leaves(grads["params"]["backbone"]),
    ):
      np.testing.assert_array_equal(ours, given)


def test_balance_classifier_does_not_change_its_input():
  rng = np.random.default_rng(25)
  params, grads = _network(rng), _like(_network(rng), rng)
  held = jax.tree.map(np.array, grads)
  transformation = reweighting.balance_classifier(PATH)
  transformation.update(grads, transformation.init(params))
  jax.tree.map(np.testing.assert_array_equal, grads, held)


def test_balance_classifier_in_a_chain():
  """Before weight decay and momentum, under jit."""
  rng = np.random.default_rng(26)
  params = _network(rng)
  chain = optax.chain(
    reweighting.balance_classifier(PATH),
    optax.add_decayed_weights(0.01),
    optax.sgd(0.1, momentum=0.9),
  )
  plain = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))

  @partial(jax.jit, static_argnums=0)
  def step(transformation, params, state, grads):
    updates, state = transformation.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  ours, state = params, chain.init(params)
  other, other_state, phi = params, plain.init(params), np.zeros(CLASSES)
  for _ in range(4):
    grads = _like(params, rng)
    ours, state = step(chain, ours, state, grads)
    theirs = _first_task(phi, grads["params"]["head"])
    phi = theirs.phi
    head = {"kernel": jnp.asarray(theirs.kernel), "bias": jnp.asarray(theirs.bias)}
    grads = {"params": grads["params"] | {"head": jax.tree.map(jnp.float32, head)}}
    other, other_state = step(plain, other, other_state, grads)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, other)


def test_balance_classifier_without_a_bias_and_at_the_root():
  rng = np.random.default_rng(27)
  grads = {"kernel": jnp.asarray(rng.normal(size=(FEATURES, 4)), jnp.float32)}
  transformation = reweighting.balance_classifier(())
  updates, _ = transformation.update(grads, transformation.init(grads))
  theirs = expected(np.zeros(4), grads, None, old=np.zeros(4, bool), new=np.ones(4, bool))
  _close(updates["kernel"], theirs.kernel)
  assert set(updates) == {"kernel"}


def test_balance_classifier_leaves_a_column_without_gradient_alone():
  rng = np.random.default_rng(28)
  params = _network(rng)
  grads = _like(params, rng)
  head = {n: g.at[..., 2].set(0.0) for n, g in grads["params"]["head"].items()}
  head["bias"] = head["bias"].at[2].set(5.0)
  grads = {"params": grads["params"] | {"head": head}}
  transformation = reweighting.balance_classifier(PATH)
  updates, _ = transformation.update(grads, transformation.init(params))
  theirs = _first_task(np.zeros(CLASSES), head)
  assert theirs.alpha[2] == 1.0
  _close(updates["params"]["head"]["kernel"], theirs.kernel)
  _close(updates["params"]["head"]["bias"], theirs.bias)


@pytest.mark.parametrize(
  "path", [("params", "classifier"), ("head",), ("params", "backbone", "norm"), ("params",)]
)
def test_balance_classifier_names_the_candidates_for_a_missing_path(path):
  params = _network(np.random.default_rng(29))
  with pytest.raises(ValueError, match="head") as caught:
    reweighting.balance_classifier(path).init(params)
  assert path[-1] in str(caught.value)


@pytest.mark.parametrize("task_ratio", TASK_RATIOS)
@pytest.mark.parametrize("later_task", [True, False])
def test_gradient_reweighting_in_a_chain_equals_update(later_task, task_ratio):
  """In anyone's chain, under jit, with the classifier at a path: old and new classes, and a first task."""
  rng = np.random.default_rng(31)
  params = _network(rng)
  old, new = (OLD, NEW) if later_task else (NONE, SEEN)
  counts = np.where(SEEN, rng.integers(1, 100, CLASSES), 0).astype(np.float32)
  # An old class keeps its count in no case: the rule wants the original ones.
  attenuation = oracle.attenuation(counts[old].sum(), counts[new].sum(), 1.5)
  after = optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9)
  chain = optax.chain(
    reweighting.gradient_reweighting(PATH, task_ratio=task_ratio, gamma=1.5), *after
  )
  plain = optax.chain(*after)

  @jax.jit
  def step(params, state, grads, gradients, old, new, counts):
    updates, state = chain.update(
      grads, state, params, gradients=gradients, old=old, new=new, counts=counts
    )
    return optax.apply_updates(params, updates), state

  @jax.jit
  def plain_step(params, state, grads):
    updates, state = plain.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  ours, state = params, chain.init(params)
  other, other_state = params, plain.init(params)
  reference, phi = reweighting.init(CLASSES), np.zeros(CLASSES)
  masks = jnp.asarray(old), jnp.asarray(new), jnp.asarray(counts)
  for _ in range(4):
    grads = _like(params, rng)
    ce, kd = _random_grads(rng), _random_grads(rng, 0.3) if later_task else None
    gradients = {"cross_entropy": _device(ce)} | ({} if kd is None else {"distillation": _device(kd)})
    # What stands at the path is replaced, whatever it is.
    grads["params"]["head"] = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads["params"]["head"])
    ours, state = step(ours, state, grads, gradients, *masks)
    head, reference, ratios = update(
      reference, ce, kd, old=old, new=new, attenuation=attenuation, task_ratio=task_ratio
    )
    theirs = expected(phi, ce, kd, old=old, new=new, attenuation=attenuation, task_ratio=task_ratio)
    phi = theirs.phi
    rule = state[0]
    np.testing.assert_allclose(rule.phi, reference.phi, rtol=1e-6)
    np.testing.assert_allclose(rule.phi, theirs.phi, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), rule.ratios, ratios)
    assert float(rule.ratios.beta) == pytest.approx(theirs.beta, rel=1e-5)
    assert (float(rule.ratios.beta) > 0) == later_task
    grads = {"params": grads["params"] | {"head": head}}
    other, other_state = plain_step(other, other_state, grads)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, other)
  assert ours["params"]["head"]["kernel"].shape == (FEATURES, CLASSES)


def test_a_fresh_state_of_the_rule_can_be_donated():
  """No two of its arrays share a buffer."""
  rule = reweighting.gradient_reweighting(PATH)
  state = rule.init(_network(np.random.default_rng(32)))
  assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [jnp.float32] * 6
  assert len({leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}) == 6
  jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(state)


def test_gradient_reweighting_does_not_change_its_input():
  rng = np.random.default_rng(33)
  params, ce = _network(rng), _device(_random_grads(rng))
  grads = _like(params, rng)
  held = jax.tree.map(np.array, (grads, ce))
  rule = reweighting.gradient_reweighting(PATH)
  updates, _ = rule.update(
    grads, rule.init(params), params, gradients={"cross_entropy": ce}, old=jnp.asarray(NONE),
    new=jnp.asarray(SEEN), counts=jnp.ones(CLASSES),
  )
  jax.tree.map(np.testing.assert_array_equal, (grads, ce), held)
  jax.tree.map(
    np.testing.assert_array_equal, updates["params"]["backbone"], grads["params"]["backbone"]
  )


def test_gradient_reweighting_refuses_what_it_does_not_know():
  params = _network(np.random.default_rng(34))
  with pytest.raises(ValueError, match="kind is 'full'; it can be 'dgr', 'class', 'none'"):
    reweighting.gradient_reweighting(kind="full")
  with pytest.raises(ValueError, match="sideways"):
    reweighting.gradient_reweighting(task_ratio="sideways")
  for path in ((), "head", ("params", "backbone")):
    with pytest.raises(ValueError, match="no classifier .* candidates: .*'head'"):
      reweighting.gradient_reweighting(path).init(params)
