"""Losses against the recordings, the oracle and their own properties."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import trajectory
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gr_jax import losses, separated
from gr_jax.devices import parallel

BATCH, CLASSES = 4, 6
# One shape for all generated cases: which classes take part is data, so nothing compiles twice.
SETTINGS = hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
EVERY = np.ones(CLASSES, bool)
GARBAGE = [-np.inf, np.inf, np.nan, 1e30]

_ce = jax.jit(jax.value_and_grad(losses.prior_regularized_cross_entropy))
_dakd = jax.jit(jax.value_and_grad(losses.distribution_aware_distillation))
_plain = jax.jit(jax.value_and_grad(losses.distillation))


def _numbers(result):
  value, gradient = result
  assert jnp.shape(value) == ()
  return float(value), np.asarray(gradient)


def cross_entropy(logits, labels, counts):
  """(value, gradient) of the package, jitted, float32 in."""
  arrays = jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.asarray(counts)
  return _numbers(_ce(*arrays))


def dakd(student, teacher, lost, old):
  """(value, gradient) of the package, jitted with a traced `old`, float32 in."""
  pair = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
  return _numbers(_dakd(*pair, jnp.asarray(lost), jnp.asarray(old)))


def distillation(student, teacher, old):
  """(value, gradient) of the package, jitted with a traced `old`, float32 in."""
  pair = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
  return _numbers(_plain(*pair, jnp.asarray(old)))


def assert_same(ours, theirs, rtol=2e-6, atol=2e-6):
  """Value and gradient of two (value, gradient) pairs agree."""
  np.testing.assert_allclose(ours[0], theirs[0], rtol=rtol, atol=atol)
  np.testing.assert_allclose(ours[1], theirs[1], rtol=rtol, atol=atol)


# Multiples of 1/16 are the same number in float32 and float64, and print shortly when a test fails.
_entries = st.integers(-96, 96).map(lambda n: n / 16)
_logits = hnp.arrays(np.float32, (BATCH, CLASSES), elements=_entries)
_permutations = st.permutations(range(CLASSES)).map(np.array)


@st.composite
def _labelled(draw):
  """(logits, labels, class counts) with at least one seen class; labels are of seen classes."""
  counts = draw(st.lists(st.integers(0, 500), min_size=CLASSES, max_size=CLASSES).filter(any))
  seen = [j for j, count in enumerate(counts) if count]
  labels = draw(st.lists(st.sampled_from(seen), min_size=BATCH, max_size=BATCH))
  return draw(_logits), np.array(labels, np.int32), np.array(counts, np.int32)


@st.composite
def _distilled(draw):
  """(student, teacher, lost, old) with any number of old classes, none included."""
  old = np.array(draw(st.lists(st.booleans(), min_size=CLASSES, max_size=CLASSES)))
  lost = np.array(draw(st.lists(st.integers(0, 480), min_size=CLASSES, max_size=CLASSES)), np.int32)
  return draw(_logits), draw(_logits), lost * old, old


def _case(seed, scale=3.0):
  """(student, teacher, labels) of a fixed random case."""
  rng = np.random.default_rng(seed)
  student, teacher = scale * rng.normal(size=(2, BATCH, CLASSES))
  return student.astype(np.float32), teacher.astype(np.float32), rng


# --------------------------------------------------------------------------- the oracle by itself


def test_oracle_gradients_are_the_slopes_of_its_values():
  student, teacher, _ = _case(0)
  labels, counts = [0, 5, 1, 3], [7, 1, 0, 30, 0, 2]
  slope = oracle.central_difference(
    lambda z: oracle.cross_entropy(z, labels, counts)[0], student
  )
  assert_same((0.0, oracle.cross_entropy(student, labels, counts)[1]), (0.0, slope), 0, 1e-9)

  old, lost = [True, True, False, True, False, True], [3, 0, 9, 110, 0, 40]
  slope = oracle.central_difference(lambda z: oracle.dakd(z, teacher, lost, old)[0], student)
  assert_same((0.0, oracle.dakd(student, teacher, lost, old)[1]), (0.0, slope), 0, 1e-9)

  slope = oracle.central_difference(
    lambda z: oracle.distillation(z, teacher, old, 3.0)[0], student
  )
  assert_same((0.0, oracle.distillation(student, teacher, old, 3.0)[1]), (0.0, slope), 0, 1e-9)


@pytest.mark.parametrize("case", trajectory.load_dakd(), ids=["3", "20", "50"])
def test_oracle_agrees_with_the_recorded_distillation(case):
  old = np.ones(len(case["lost"]), bool)
  value, gradient = oracle.dakd(case["student"], case["teacher"], case["lost"], old)
  assert value == pytest.approx(float(case["loss"]), abs=5e-7)
  np.testing.assert_allclose(gradient, case["gradient"], rtol=0, atol=1e-8)
  assert oracle.imbalance(case["lost"], old) == pytest.approx(float(case["imbalance"]), abs=1e-12)


# ------------------------------------------------------------------------------------- recordings


@pytest.mark.parametrize("case", trajectory.load_dakd(), ids=["3", "20", "50"])
def test_dakd_agrees_with_the_recorded_distillation(case):
  old = np.ones(len(case["lost"]), bool)
  value, gradient = dakd(case["student"], case["teacher"], case["lost"], old)
  assert value == pytest.approx(float(case["loss"]), abs=1e-6)
  np.testing.assert_allclose(gradient, case["gradient"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", trajectory.load_dakd(), ids=["3", "20", "50"])
def test_dakd_agrees_with_the_recording_in_a_wider_classifier(case):
  """The same classes scattered among as many that are not old and hold anything."""
  classes = len(case["lost"])
  old = np.zeros(2 * classes, bool)
  old[1::2] = True
  wide = {name: np.full((len(case["student"]), 2 * classes), np.nan) for name in ("s", "t")}
  wide["s"][:, old], wide["t"][:, old] = case["student"], case["teacher"]
  lost = np.full(2 * classes, 1000)
  lost[old] = case["lost"]
  value, gradient = dakd(wide["s"], wide["t"], lost, old)
  assert value == pytest.approx(float(case["loss"]), abs=1e-6)
  np.testing.assert_allclose(gradient[:, old], case["gradient"], rtol=0, atol=1e-6)
  assert np.all(gradient[:, ~old] == 0.0)


# -------------------------------------------------------------------- cross-entropy with the prior


@SETTINGS
@hypothesis.given(_labelled())
def test_cross_entropy_agrees_with_the_oracle(case):
  assert_same(cross_entropy(*case), oracle.cross_entropy(*case))


def test_cross_entropy_by_hand():
  """Two classes with logits log 3 and 0 and counts 1 and 3: equal odds."""
  value, gradient = cross_entropy([[np.log(3.0), 0.0]], [0], [1, 3])
  assert value == pytest.approx(np.log(2.0), abs=1e-6)
  np.testing.assert_allclose(gradient, [[-0.5, 0.5]], atol=1e-6)


def test_cross_entropy_gradient_agrees_with_finite_differences():
  logits, _, _ = _case(1)
  labels, counts = np.array([0, 5, 3, 3]), np.array([7, 1, 0, 30, 0, 2])
  slope = oracle.central_difference(
    lambda z: oracle.cross_entropy(z, labels, counts)[0], logits
  )
  np.testing.assert_allclose(cross_entropy(logits, labels, counts)[1], slope, atol=1e-6)
  direction = np.where(counts > 0, np.random.default_rng(2).normal(size=logits.shape), 0.0)
  ahead = cross_entropy(logits + 0.01 * direction, labels, counts)[0]
  behind = cross_entropy(logits - 0.01 * direction, labels, counts)[0]
  assert (ahead - behind) / 0.02 == pytest.approx(np.sum(slope * direction), abs=1e-3)


@SETTINGS
@hypothesis.given(_labelled(), st.integers(1, 500))
def test_uniform_counts_give_the_plain_cross_entropy(case, count):
  logits, labels, counts = case
  seen = counts > 0
  value, gradient = cross_entropy(logits, labels, count * seen)
  z = logits.astype(np.float64)[:, seen]
  logp = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
  places = np.cumsum(seen) - 1
  hits = np.eye(seen.sum())[places[labels]]
  assert value == pytest.approx(-np.sum(hits * logp) / BATCH, rel=2e-6, abs=2e-6)
  np.testing.assert_allclose(gradient[:, seen], (np.exp(logp) - hits) / BATCH, atol=2e-6)


@SETTINGS
@hypothesis.given(_labelled(), st.integers(2, 50))
def test_only_the_proportions_of_the_counts_matter(case, factor):
  logits, labels, counts = case
  assert_same(cross_entropy(logits, labels, counts), cross_entropy(logits, labels, factor * counts))


@SETTINGS
@hypothesis.given(_labelled(), _permutations)
def test_cross_entropy_does_not_depend_on_the_order_of_the_classes(case, order):
  logits, labels, counts = case
  value, gradient = cross_entropy(logits, labels, counts)
  places = np.argsort(order)
  moved = cross_entropy(logits[:, order], places[labels], counts[order])
  assert_same(moved, (value, gradient[:, order]))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_cross_entropy_ignores_whatever_unseen_columns_hold(garbage):
  logits, _, _ = _case(3)
  labels, counts = np.array([0, 5, 3, 3]), np.array([7, 0, 0, 30, 0, 2])
  clean = cross_entropy(logits, labels, counts)
  logits[:, counts == 0] = garbage
  for result in (
    cross_entropy(logits, labels, counts),
    _numbers(
      jax.value_and_grad(losses.prior_regularized_cross_entropy)(
        jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(counts)
      )
    ),
  ):
    assert np.isfinite(result[0])
    assert np.all(result[1][:, counts == 0] == 0.0)
    assert_same(result, clean)


def test_one_seen_class_costs_nothing():
  logits, _, _ = _case(4)
  value, gradient = cross_entropy(logits, np.full(BATCH, 2), [0, 0, 9, 0, 0, 0])
  assert value == 0.0
  assert np.all(gradient == 0.0)


def test_cross_entropy_of_huge_logits_is_finite():
  logits = np.zeros((BATCH, CLASSES), np.float32)
  logits[:, 0], logits[:, 1] = 3e4, -3e4
  labels, counts = np.array([0, 1, 2, 5]), np.array([1, 100, 3, 4, 5, 6])
  assert_same(cross_entropy(logits, labels, counts), oracle.cross_entropy(logits, labels, counts))


# ----------------------------------------------------------------------------------- distillation


@SETTINGS
@hypothesis.given(_distilled())
def test_dakd_agrees_with_the_oracle(case):
  assert_same(dakd(*case), oracle.dakd(*case))


@SETTINGS
@hypothesis.given(_distilled())
def test_distillation_agrees_with_the_oracle(case):
  student, teacher, _, old = case
  assert_same(distillation(student, teacher, old), oracle.distillation(student, teacher, old))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_distillation_at_other_temperatures(temperature):
  student, teacher, rng = _case(5)
  old, lost = EVERY.copy(), rng.integers(0, 100, CLASSES)
  old[2] = False
  pair = jnp.asarray(student), jnp.asarray(teacher)
  ours = jax.value_and_grad(losses.distribution_aware_distillation)(
    *pair, jnp.asarray(lost), jnp.asarray(old), temperature=temperature
  )
  assert_same(_numbers(ours), oracle.dakd(student, teacher, lost, old, temperature), 5e-6, 5e-6)
  ours = jax.value_and_grad(losses.distillation)(
    *pair, jnp.asarray(old), temperature=temperature
  )
  theirs = oracle.distillation(student, teacher, old, temperature)
  assert_same(_numbers(ours), theirs, 5e-6, 5e-6)


def test_dakd_gradient_agrees_with_finite_differences():
  student, teacher, _ = _case(6)
  old, lost = np.array([1, 1, 0, 1, 0, 1], bool), np.array([3, 0, 0, 110, 0, 40])
  slope = oracle.central_difference(lambda z: oracle.dakd(z, teacher, lost, old)[0], student)
  np.testing.assert_allclose(dakd(student, teacher, lost, old)[1], slope, atol=1e-6)
  direction = np.random.default_rng(7).normal(size=student.shape)
  ahead = dakd(student + 0.01 * direction, teacher, lost, old)[0]
  behind = dakd(student - 0.01 * direction, teacher, lost, old)[0]
  assert (ahead - behind) / 0.02 == pytest.approx(np.sum(slope * direction), abs=1e-3)


@SETTINGS
@hypothesis.given(_distilled(), st.integers(1, 480))
def test_evenly_lost_images_give_plain_distillation(case, amount):
  student, teacher, _, old = case
  assert_same(dakd(student, teacher, amount * old, old), distillation(student, teacher, old))


@SETTINGS
@hypothesis.given(_distilled())
def test_nothing_lost_gives_plain_distillation(case):
  student, teacher, lost, old = case
  nothing = np.zeros_like(lost)
  ours = dakd(student, teacher, nothing, old)
  assert np.isfinite(ours[0]) and np.all(np.isfinite(ours[1]))
  assert_same(ours, distillation(student, teacher, old))


@pytest.mark.parametrize("amount", [0, 1, 480])
def test_one_old_class_has_nothing_to_distil(amount):
  student, teacher, _ = _case(8)
  old = np.arange(CLASSES) == 3
  value, gradient = dakd(student, teacher, amount * old, old)
  # Not a bare ==: a softmax over one class may leave a rounding error behind.
  assert value == pytest.approx(0.0, abs=1e-6)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
  assert np.all(gradient[:, ~old] == 0.0)


@pytest.mark.parametrize("amount", [0, 7])
def test_no_old_class_costs_nothing(amount):
  student, teacher, _ = _case(9)
  student[0, 0], teacher[1, 1] = np.nan, -np.inf
  lost = np.full(CLASSES, amount)
  for value, gradient in (
    dakd(student, teacher, lost, ~EVERY),
    distillation(student, teacher, ~EVERY),
  ):
    assert value == 0.0
    assert np.all(gradient == 0.0)


@SETTINGS
@hypothesis.given(_distilled(), _permutations)
def test_dakd_does_not_depend_on_the_order_of_the_classes(case, order):
  student, teacher, lost, old = case
  value, gradient = dakd(*case)
  moved = dakd(student[:, order], teacher[:, order], lost[order], old[order])
  assert_same(moved, (value, gradient[:, order]))


@SETTINGS
@hypothesis.given(_distilled(), st.integers(1, 5000))
def test_lost_images_of_classes_that_are_not_old_do_not_count(case, amount):
  student, teacher, lost, old = case
  assert_same(dakd(student, teacher, np.where(old, lost, amount), old), dakd(*case), 0, 0)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("where", ["student", "teacher", "both"])
def test_distillation_ignores_whatever_other_columns_hold(where, garbage):
  student, teacher, _ = _case(10)
  old, lost = np.array([1, 0, 0, 1, 0, 1], bool), np.array([3, 0, 0, 110, 0, 40])
  clean = dakd(student, teacher, lost, old), distillation(student, teacher, old)
  if where != "teacher":
    student[:, ~old] = garbage
  if where != "student":
    teacher[:, ~old] = garbage
  results = dakd(student, teacher, lost, old), distillation(student, teacher, old)
  for result, expected in zip(results, clean):
    assert np.isfinite(result[0])
    assert np.all(result[1][:, ~old] == 0.0)
    assert_same(result, expected)


def test_a_traced_old_gives_what_a_static_one_gives():
  student, teacher, _ = _case(11)
  old, lost = np.array([1, 1, 0, 1, 0, 0], bool), np.array([5, 60, 0, 0, 0, 0])

  def static(z):
    return losses.distribution_aware_distillation(z, teacher, jnp.asarray(lost), old)

  expected = _numbers(jax.value_and_grad(static)(jnp.asarray(student)))
  assert_same(dakd(student, teacher, lost, old), expected, 1e-6, 1e-6)
  assert_same(_numbers(jax.jit(jax.value_and_grad(static))(student)), expected, 1e-6, 1e-6)


def test_agreeing_models_have_no_distillation_gradient():
  student, _, _ = _case(12)
  lost = np.array([5, 60, 0, 7, 1, 0])
  _, gradient = dakd(student, student, lost, EVERY)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


def test_distillation_of_huge_logits_is_finite():
  student = np.zeros((BATCH, CLASSES), np.float32)
  student[:, 0], student[:, 1] = 3e4, -3e4
  lost = np.array([5, 60, 0, 7, 1, 0])
  assert_same(
    dakd(student, -student, lost, EVERY), oracle.dakd(student, -student, lost, EVERY), 1e-5
  )


# -------------------------------------------------------------------------------------- data types


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats_are_good_enough(dtype):
  """Accurate to the resolution of the type, with counts whose sum exceeds float16's range."""
  student, teacher, _ = _case(13)
  z, q = jnp.asarray(student, dtype), jnp.asarray(teacher, dtype)
  labels, counts = np.array([0, 5, 3, 3]), np.array([40000, 1, 0, 30000, 0, 2000])
  seen = counts > 0
  exact_z, exact_q = np.asarray(z, np.float64), np.asarray(q, np.float64)
  z = jnp.where(seen[None, :], z, -jnp.inf).astype(dtype)

  def check(result, expected):
    assert result[1].dtype == dtype
    assert float(result[0]) == pytest.approx(expected[0], rel=0.01, abs=0.01)
    np.testing.assert_allclose(
      np.asarray(result[1], np.float64), expected[1], rtol=0.02, atol=0.01 / BATCH
    )

  check(_ce(z, labels, counts), oracle.cross_entropy(exact_z, labels, counts))
  old, lost = seen, np.where(seen, [40000, 0, 0, 30000, 0, 2000], 0)
  check(_dakd(z, q, lost, old), oracle.dakd(exact_z, exact_q, lost, old))
  check(_plain(z, q, old), oracle.distillation(exact_z, exact_q, old))


def test_float32_stays_float32_where_float64_is_enabled():
  """Neither a result nor anything on the way is float64, which accelerators are slow at."""
  student, teacher, _ = _case(14)
  labels = np.array([0, 5, 3, 3], np.int32)
  counts, lost = np.array([7, 1, 0, 30, 0, 2], np.int32), np.array([5, 0, 0, 9, 0, 1], np.int32)
  with jax.enable_x64(True):
    for function, arguments in (
      (_ce, (student, labels, counts)),
      (_dakd, (student, teacher, lost, EVERY)),
      (_plain, (student, teacher, EVERY)),
    ):
      text = str(jax.make_jaxpr(function)(*arguments))
      # Scalars of a weak type (Python numbers) are no computation in float64.
      assert "f64[" not in text.replace("f64[]", ""), text
      value, gradient = function(*arguments)
      assert value.dtype == gradient.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_counts_may_be_integers_or_floats(dtype):
  student, teacher, _ = _case(15)
  labels, counts = np.array([0, 5, 3, 3]), np.array([7, 1, 0, 30, 0, 2], dtype)
  assert_same(
    cross_entropy(student, labels, counts), oracle.cross_entropy(student, labels, counts)
  )
  assert_same(dakd(student, teacher, counts, EVERY), oracle.dakd(student, teacher, counts, EVERY))


# ------------------------------------------------------------------------------ distillation weight


@pytest.mark.parametrize(
  "n_old, n_new, scale", [(27, 16, 0.7), (1, 10000, 0.7), (10000, 1, 0.7), (6, 6, 0.3), (0, 5, 0.7)]
)
def test_distillation_weight(n_old, n_new, scale):
  expected = oracle.distillation_weight(n_old, n_new, scale)
  result = losses.distillation_weight(n_old, n_new, scale=scale)
  assert float(result) == pytest.approx(expected, rel=1e-6)


def test_distillation_weight_of_the_recording():
  recorded = trajectory.load()
  for task in recorded.tasks[1:]:
    n_old = int(recorded.counts_original[task.old].sum())
    n_new = int(recorded.counts_original[task.new].sum())
    weight = losses.distillation_weight(n_old, n_new)
    assert float(weight) == pytest.approx(task.distillation_weight, rel=1e-6)


def test_numpy_arrays_and_lists_under_jit():
  """Counts and masks that are not traced while logits are: how a notebook calls it."""
  z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
  y = jnp.asarray([0, 1, 2, 0])
  counts, old, lost = np.asarray([5, 3, 1, 0, 0]), np.arange(5) < 2, np.asarray([9, 1, 0, 0, 0])
  for kind in (np.asarray, list):
    ce = jax.jit(lambda z, y, kind=kind: losses.prior_regularized_cross_entropy(z, y, kind(counts)))(z, y)
    np.testing.assert_allclose(ce, losses.prior_regularized_cross_entropy(z, y, jnp.asarray(counts)), rtol=1e-6)
    kd = jax.jit(lambda z, kind=kind: losses.distribution_aware_distillation(z, z + 1, kind(lost), kind(old)))(z)
    assert np.isfinite(kd)


def test_shapes_that_do_not_fit_are_refused():
  logits, labels, counts = jnp.zeros((BATCH, CLASSES)), jnp.zeros(BATCH, int), jnp.ones(CLASSES)
  short, old = jnp.ones(CLASSES - 1), jnp.ones(CLASSES, bool)
  # Broadcasting would take each of them.
  for call in (lambda: losses.prior_regularized_cross_entropy(logits, labels[:, None], counts),
               lambda: losses.prior_regularized_cross_entropy(logits, labels, counts[:1]),
               lambda: losses.prior_regularized_cross_entropy(logits[0], labels, counts),
               lambda: losses.distillation(logits, logits[:1], old),
               lambda: losses.distribution_aware_distillation(logits, logits, counts[:1], old),
               lambda: losses.distribution_aware_distillation(logits, logits, short, old[:1]),
               lambda: losses.binary_cross_entropy(logits, logits[:1], old),
               lambda: losses.less_forget(logits, logits[:1]),
               lambda: losses.margin_ranking(logits, labels[:1], old, old)):
    with pytest.raises(AssertionError):
      call()


@pytest.mark.parametrize("devices", (1, 2, 4))
def test_means_over_some_images_are_those_of_the_global_batch(devices):
  """Where the devices have different numbers of such images, one of them none."""
  labels, old = np.asarray([0, 1, 0, 1, 0, 2, 3, 2], np.int32), jnp.arange(4) < 2
  values = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  terms = {
      "ranking": lambda scores, labels: losses.margin_ranking(scores, labels, old, ~old),
      "old": lambda logits, labels: separated.group_cross_entropy(logits, labels, old),
      "soft": lambda logits, labels: losses.soft_cross_entropy(logits, jax.nn.one_hot(labels, 4), old)}

  def share(values, labels):
    mine = jax.lax.axis_index(parallel.AXIS) * (8 // devices) + jnp.arange(8 // devices)
    of_device = {name: jax.value_and_grad(term)(values[mine], labels[mine]) for name, term in terms.items()}
    return jax.lax.pmean({name: (value, jnp.zeros_like(values).at[mine].set(gradient))
                          for name, (value, gradient) in of_device.items()}, parallel.AXIS)

  averaged = parallel.spread(share, jax.devices()[:devices], 2)(values, labels)
  for name, term in terms.items():
    value, gradient = jax.value_and_grad(term)(values, labels)
    np.testing.assert_allclose(averaged[name][0], value, rtol=1e-5)
    np.testing.assert_allclose(averaged[name][1], gradient, atol=1e-6)
