"""Batch norm, shortcut and ReLU with a derivative of their own, against flax and autodiff."""

import functools

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import test_util

from gr_jax import models
from gr_jax.devices import parallel
from gr_jax.models import norm

SHAPE = (4, 3, 5, 6)
AFTERWARDS = [pytest.param(shortcut, relu, id=f"{('no', 'with')[shortcut]} shortcut, {('no', 'with')[relu]} ReLU")
              for shortcut in (False, True) for relu in (False, True)]


@pytest.fixture
def wide():
  """float64 for one test."""
  with jax.enable_x64(True):
    yield


def draw(shape, *, shortcut, dtype=jnp.float64, seed=0, mean=0.5, deviation=2.0):
  """(x, shortcut or None, scale, bias) and the gradient of the result."""
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(mean, deviation, shape), dtype)
  wide = np.promote_types(dtype, np.float32)
  scale, bias = (jnp.asarray(rng.normal(size=shape[-1]), wide) for _ in range(2))
  return ((x, jnp.asarray(rng.normal(size=shape), dtype) if shortcut else None, scale, bias),
          jnp.asarray(rng.normal(size=shape), dtype))


@functools.partial(jax.jit, static_argnums=(0, 3))
def pull(function, arguments, grad, relu):
  """(values, statistics), and the gradients of x, shortcut, scale and bias."""
  values, backward, statistics = jax.vjp(lambda *arrays: function(*arrays, relu, None), *arguments, has_aux=True)
  return (values, statistics), backward(grad)


def flax_norm(x, shortcut, scale, bias, relu, axis_name):
  layer = nn.BatchNorm(use_running_average=False, momentum=0.0, epsilon=1e-5, dtype=x.dtype, param_dtype=scale.dtype,
                       axis_name=axis_name)
  zeros = jnp.zeros_like(scale)
  variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": zeros, "var": zeros}}
  # Flax asks for the wider of two dtypes, which strict promotion refuses.
  with jax.numpy_dtype_promotion("standard"):
    y, updated = layer.apply(variables, x, mutable=["batch_stats"])
  y = y if shortcut is None else y + shortcut
  # Without momentum the running statistics are the batch's.
  running = updated["batch_stats"]
  return nn.relu(y) if relu else y, norm.Statistics(running["mean"], running["var"])


def assert_close(actual, expected, tolerance):
  """Equal trees up to `tolerance` times each leaf's largest magnitude, shapes and dtypes included."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.max(np.abs(theirs), initial=1.0))


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("reference", [flax_norm, norm._value], ids=["flax", "autodiff"])
@pytest.mark.parametrize("shortcut, relu", AFTERWARDS)
def test_value_statistics_and_gradients(reference, shortcut, relu):
  arguments, grad = draw(SHAPE, shortcut=shortcut)
  assert_close(pull(norm.normalise, arguments, grad, relu), pull(reference, arguments, grad, relu), 1e-12)


@pytest.mark.usefixtures("wide")
def test_gradients_against_finite_differences():
  arguments, grad = draw((2, 2, 2, 3), shortcut=True)

  def loss(x, shortcut, scale, bias):
    return jnp.sum(grad * norm.normalise(x, shortcut, scale, bias, True, None)[0])

  test_util.check_grads(loss, arguments, order=1, modes=["rev"], eps=1e-6)


@hypothesis.settings(deadline=None, max_examples=6, derandomize=True)
@hypothesis.given(data=st.data())
def test_any_small_shape(data):
  few = st.integers(1, 4)
  shape = tuple(data.draw(few) for _ in range(4))
  shortcut, relu = data.draw(st.booleans()), data.draw(st.booleans())
  mean, deviation = data.draw(st.sampled_from([0.0, 3.0])), data.draw(st.sampled_from([1e-3, 1.0, 50.0]))
  with jax.enable_x64(True):
    arguments, grad = draw(shape, shortcut=shortcut, mean=mean, deviation=deviation, seed=data.draw(few))
    assert_close(pull(norm.normalise, arguments, grad, relu), pull(flax_norm, arguments, grad, relu), 1e-9)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("form", [parallel.spread, parallel.shard])
@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_devices_agree(form, num_devices):
  """As the step does: each device has its share of the batch, and gradients of its mean loss are averaged."""
  arguments, weights = draw((8, 3, 3, 5), shortcut=True)
  x, given, *affine = arguments

  def share_of(function, axis_name):
    def loss(affine, x, given, weights):
      y, statistics = function(x, given, *affine, True, axis_name)
      return jnp.sum(weights * jnp.square(y)) / len(x), (y, statistics)

    def on_device(affine, pictures):
      (value, (y, statistics)), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(affine, *pictures)
      if axis_name is None:
        return value, y, statistics, grads
      # A device's share of the loss is as large as the number of devices; of pictures, each has its own.
      to_both = jax.tree.map(lambda grad: grad / num_devices, (grads[1], grads[2]))
      y, *to_both = jax.tree.map(functools.partial(jax.lax.all_gather, axis_name=axis_name, tiled=True), (y, *to_both))
      return (*jax.lax.pmean((value, grads[0]), axis_name), y, statistics, to_both)
    return on_device

  value, y, statistics, (to_affine, to_x, to_given) = jax.jit(share_of(flax_norm, None))(affine, (x, given, weights))
  devices = jax.devices()[:num_devices]
  pictures = parallel.split(
      jax.tree.map(lambda a: a.reshape(num_devices, -1, *a.shape[1:]), (x, given, weights)), devices)
  for function in (norm.normalise, norm._value):
    program = form(share_of(function, parallel.AXIS), devices, 2, parted=(1,))
    on_devices = program(parallel.replicate(affine, devices), pictures)
    assert_close(jax.device_get(on_devices), jax.device_get((value, to_affine, y, statistics, [to_x, to_given])), 1e-12)


def test_a_constant_channel():
  """No variance: the gradient of x has the mean taken out, and no more; that of the scale is 0."""
  (_, _, scale, bias), grad = draw((4, 3, 3, 64), shortcut=False, dtype=jnp.float32)
  values = np.linspace(0.1, 7.3, 64, dtype=np.float32)
  x = jnp.broadcast_to(jnp.asarray(values), (4, 3, 3, 64))
  total, square = jax.jit(lambda x: norm._sums(x, x, jnp.float32))(x)
  raw = np.asarray(square / 36 - (total / 36)**2)
  assert (raw < 0).any() and (raw >= 0).any()
  (y, statistics), (to_x, _, to_scale, to_bias) = pull(norm.normalise, (x, None, scale, bias), grad, False)
  assert (np.asarray(statistics.variance) >= 0).all()
  np.testing.assert_allclose(statistics.mean, values, rtol=1e-6)
  # What rounding leaves of x - mean and of the variance, against epsilon.
  np.testing.assert_allclose(y, np.broadcast_to(bias, y.shape), atol=5e-3)
  deviation = 1 / np.sqrt(np.asarray(statistics.variance) + 1e-5)
  grad, scale = np.asarray(grad), np.asarray(scale)
  expected = (grad - grad.mean((0, 1, 2))) * deviation * scale
  np.testing.assert_allclose(to_x, expected, rtol=0, atol=5e-3 * np.abs(expected).max())
  np.testing.assert_allclose(to_scale, np.zeros(64), atol=2e-2)
  np.testing.assert_allclose(to_bias, grad.sum((0, 1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [norm.normalise, norm._value], ids=["cpu", "elsewhere"])
def test_relu_passes_nothing_on_at_zero(function):
  """A channel of nothing but zeros lies on the kink, where autodiff of a maximum would pass on half."""
  x, ones = jnp.zeros((2, 2, 2, 3)), jnp.ones((2, 2, 2, 3))
  _, grads = pull(function, (x, x, jnp.ones(3), jnp.zeros(3)), ones, True)
  for grad in grads:
    np.testing.assert_array_equal(grad, np.zeros(grad.shape))


def test_far_from_zero_as_exact_as_flax():
  """Channels whose mean is a hundred times their deviation: both lose digits, ours no more."""
  arguments, grad = draw((16, 8, 8, 32), shortcut=True, dtype=jnp.float32, mean=100.0, deviation=1.0)
  with jax.enable_x64(True):
    # Of the very same float32 numbers.
    exact = pull(flax_norm, *jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (arguments, grad)), False)
  errors = []
  for function in (norm.normalise, flax_norm):
    pulled = pull(function, arguments, grad, False)
    errors.append([np.max(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs))) / np.max(np.abs(theirs))
                   for ours, theirs in zip(jax.tree.leaves(pulled), jax.tree.leaves(exact))])
  ours, theirs = np.asarray(errors)
  assert (ours < 3 * theirs + 1e-5).all(), errors


@pytest.mark.parametrize("shortcut, relu", AFTERWARDS)
def test_bfloat16_is_as_exact_as_its_rounding(shortcut, relu):
  arguments, grad = draw((8, 5, 5, 7), shortcut=shortcut, dtype=jnp.bfloat16)
  (y, statistics), grads = pull(norm.normalise, arguments, grad, relu)
  assert y.dtype == grads[0].dtype == jnp.bfloat16
  assert statistics.mean.dtype == statistics.variance.dtype == grads[2].dtype == grads[3].dtype == jnp.float32
  # The same numbers, computed on in float32.
  wide = jax.tree.map(lambda a: a.astype(jnp.float32), (arguments, grad))
  (y_wide, statistics_wide), grads_wide = pull(norm.normalise, *wide, relu)
  assert_close(statistics, statistics_wide, 1e-5)
  assert_close((grads[2], grads[3]), (grads_wide[2], grads_wide[3]), 1e-5)
  for narrow, expected in ((y, y_wide), (grads[0], grads_wide[0]), (grads[1], grads_wide[1])):
    if expected is not None:
      np.testing.assert_allclose(np.asarray(narrow, np.float32), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("function", [norm.normalise, norm._value], ids=["cpu", "elsewhere"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shortcut, relu", AFTERWARDS)
def test_what_is_not_finite_stays_visible(function, value, shortcut, relu):
  """One bad pixel: its channel is lost, in value, statistics, gradient of x and of the scale; the others are not."""
  arguments, grad = draw(SHAPE, shortcut=shortcut, dtype=jnp.float32)
  x, *rest = arguments
  (y, statistics), (to_x, _, to_scale, _) = pull(function, (x.at[1, 2, 3, 4].set(value), *rest), grad, relu)
  for by_pixel in (y, to_x):
    finite = np.isfinite(np.asarray(by_pixel)).reshape(-1, 6)
    assert not finite[:, 4].any() and finite[:, [0, 1, 2, 3, 5]].all()
  for by_channel in (statistics.variance, to_scale):
    np.testing.assert_array_equal(np.isfinite(np.asarray(by_channel)), np.arange(6) != 4)
  assert not np.isfinite(statistics.mean[4])


def test_a_gradient_that_is_not_finite_goes_through_where_the_value_is_not():
  """A shortcut's NaN reaches the loss, so the gradient comes back as NaN: the ReLU does not make it 0."""
  arguments, grad = draw(SHAPE, shortcut=True, dtype=jnp.float32)
  x, shortcut, *affine = arguments
  bad = (1, 2, 3, 4)
  _, (to_x, to_shortcut, *to_affine) = pull(
      norm.normalise, (x, shortcut.at[bad].set(jnp.nan), *affine), grad.at[bad].set(jnp.nan), True)
  assert np.isnan(to_x[..., 4]).all() and np.isnan(to_shortcut[bad])
  assert all(np.isnan(gradient[4]) for gradient in to_affine)


def layers(train):
  ours = norm.BatchNorm(train=train, axis_name=None, normalise=norm.normalise)
  return ours, nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)


def test_parameters_and_statistics_have_flax_names_and_shapes():
  (x, *_), _ = draw(SHAPE, shortcut=False, dtype=jnp.float32)
  ours, theirs = (layer.init(jax.random.key(0), x) for layer in layers(True))
  assert set(ours["params"]) == {"scale", "bias"} and set(ours["batch_stats"]) == {"mean", "var"}
  assert_close(ours, theirs, 0)
  # As the networks of earlier checkpoints have them.
  shapes = jax.eval_shape(lambda: models.make_backbone("resnet8", platform="cpu").init(
      jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))
  assert set(shapes["params"]) == {"Conv_0", "BatchNorm_0", "BasicBlock_0", "BasicBlock_1", "BasicBlock_2"}
  assert set(shapes["batch_stats"]) == set(shapes["params"]) - {"Conv_0"}
  for block, count in (("BasicBlock_0", 2), ("BasicBlock_1", 3), ("BasicBlock_2", 3)):
    norms = {f"BatchNorm_{i}" for i in range(count)}
    assert set(shapes["params"][block]) == norms | {f"Conv_{i}" for i in range(count)}
    assert set(shapes["batch_stats"][block]) == norms
  # The second convolution's batch norm is the second one, the shortcut's is the third.
  assert shapes["params"]["BasicBlock_1"]["Conv_2"]["kernel"].shape == (1, 1, 16, 32)


@pytest.mark.parametrize("train", [True, False])
def test_the_layer_is_flax_layer(train):
  """Value and running statistics, from statistics and parameters as after training."""
  (x, shortcut, scale, bias), _ = draw(SHAPE, shortcut=True, dtype=jnp.float32)
  rng = np.random.default_rng(1)
  running = {"mean": jnp.asarray(rng.normal(size=6), jnp.float32),
             "var": jnp.asarray(rng.uniform(0.5, 2, 6), jnp.float32)}
  variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": running}
  ours, theirs = layers(train)
  y, updated = ours.apply(variables, x, shortcut, mutable=["batch_stats"])
  expected, expected_updated = theirs.apply(variables, x, mutable=["batch_stats"])
  assert_close((y, updated), (nn.relu(expected + shortcut), expected_updated), 1e-6)


def test_each_platform_gets_its_own():
  assert norm.for_platform("cpu") is norm.normalise
  for platform in ("gpu", "tpu"):
    assert norm.for_platform(platform) is norm._value


def test_under_vmap():
  """Several networks at a time, each with its own statistics."""
  (x, shortcut, scale, bias), grad = draw((3, *SHAPE), shortcut=True, dtype=jnp.float32)
  scales, biases = (jnp.stack([a, a + 1, a - 1]) for a in (scale, bias))
  together = jax.vmap(lambda arguments, grad: pull(norm.normalise, arguments, grad, True))(
      (x, shortcut, scales, biases), grad)
  for i in range(3):
    alone = pull(norm.normalise, (x[i], shortcut[i], scales[i], biases[i]), grad[i], True)
    assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, 1e-5)
