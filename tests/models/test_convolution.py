"""The convolution with gradients for the CPU, against autodiff of lax and loops over scalars."""

import functools

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from gr_jax.devices import convolution_library
from gr_jax.models import convolution

NHWC = ("NHWC", "HWIO", "NHWC")
ONES, NONE = (1, 1), ((0, 0), (0, 0))

# batch, height, width, in, out, kernel, stride, padding: every kind of layer in our models. The
# pieces of the batch hold 2**18 / (out_height * out_width * out) images: 16 in the first two cases,
# so one cuts the batch evenly and the other leaves a rest.
LAYERS = {
    "3x3, two pieces": (32, 32, 32, 4, 16, 3, 1, 1),
    "3x3, pieces and a rest": (19, 32, 32, 4, 16, 3, 1, 1),
    "3x3, one piece": (6, 8, 8, 5, 7, 3, 1, 1),
    "3x3 stride 2, even": (4, 8, 8, 5, 7, 3, 2, 1),
    "3x3 stride 2, odd": (4, 7, 7, 5, 7, 3, 2, 1),
    "3x3 stride 2, even and odd": (4, 8, 5, 5, 7, 3, 2, 1),
    "1x1 stride 2, even": (4, 8, 8, 5, 7, 1, 2, 0),
    "1x1 stride 2, odd": (4, 7, 7, 5, 7, 1, 2, 0),
    "1x1": (4, 6, 6, 5, 7, 1, 1, 0),
    "7x7 stride 2, even": (2, 16, 16, 3, 8, 7, 2, 3),
    "7x7 stride 2, odd": (2, 15, 15, 3, 8, 7, 2, 3),
    "one channel": (32, 8, 8, 1, 16, 3, 1, 1),
}
FEW = ["3x3, pieces and a rest", "3x3 stride 2, odd", "1x1 stride 2, even"]


@pytest.fixture(params=[convolution_library.ONEDNN, convolution_library.XLA])
def library(request, monkeypatch):
  """Both forms of the kernel's gradient, whatever jaxlib has: they are right on any library, fast on their own."""
  monkeypatch.setattr(convolution_library, "in_use", lambda: request.param)
  # The library is no argument of the jitted function: a test must not find another's program in its cache.
  _value_and_gradients.clear_cache()
  return request.param


def _case(batch, height, width, channels, features, kernel, stride, padding, dtype=jnp.float32):
  """Random inputs, kernel and output gradient, and the static arguments."""
  random = np.random.default_rng(0)
  statics = (stride,) * 2, ((padding,) * 2,) * 2
  shapes = (batch, height, width, channels), (kernel, kernel, channels, features)
  return *_random(random, *shapes, *statics, dtype), *statics


def _random(random, input_shape, kernel_shape, strides, padding, dtype=jnp.float32):
  inputs, kernel = (jnp.asarray(random.normal(size=s), dtype) for s in (input_shape, kernel_shape))
  convolve = functools.partial(_lax, strides=strides, padding=padding)
  shape = jax.eval_shape(convolve, inputs, kernel).shape
  return inputs, kernel, jnp.asarray(random.normal(size=shape), dtype)


def _lax(inputs, kernel, strides, padding):
  return lax.conv_general_dilated(inputs, kernel, strides, padding, dimension_numbers=NHWC)


def _ours(inputs, kernel, strides, padding):
  return convolution.canonical_convolution(inputs, kernel, strides, padding, dimension_numbers=NHWC)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _value_and_gradients(convolve, inputs, kernel, grad, strides, padding):
  value, pullback = jax.vjp(lambda x, k: convolve(x, k, strides, padding), inputs, kernel)
  return value, *pullback(grad)


def _assert_close(actual, expected, tolerance):
  """Equal up to `tolerance` times the largest expected magnitude, in shape and in dtype."""
  assert actual.shape == expected.shape and actual.dtype == expected.dtype
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  scale = np.max(np.abs(expected), initial=1e-30)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def _assert_as_autodiff(inputs, kernel, grad, strides, padding, tolerance):
  ours, autodiff = (_value_and_gradients(convolve, inputs, kernel, grad, strides, padding)
                    for convolve in (_ours, _lax))
  for actual, expected in zip(ours, autodiff, strict=True):
    _assert_close(actual, expected, tolerance)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layer", LAYERS)
def test_value_and_gradients_are_those_of_lax(layer):
  _assert_as_autodiff(*_case(*LAYERS[layer]), tolerance=1e-5)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layer", FEW)
def test_bfloat16_is_as_exact_as_its_rounding(layer):
  inputs, kernel, grad, *statics = _case(*LAYERS[layer], dtype=jnp.bfloat16)
  ours = _value_and_gradients(_ours, inputs, kernel, grad, *statics)
  wide = (a.astype(jnp.float32) for a in (inputs, kernel, grad))
  exact = _value_and_gradients(_lax, *wide, *statics)
  for actual, expected in zip(ours, exact, strict=True):
    assert actual.dtype == jnp.bfloat16
    # Rounded once, and under oneDNN the kernel's gradient twice: each piece, and their sum.
    _assert_close(actual.astype(jnp.float32), expected, 2**-7)


# The library stays the same for all examples of a test, as it should.
@hypothesis.settings(deadline=None, max_examples=8, derandomize=True,
                     suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("library")
@hypothesis.given(data=st.data())
def test_any_small_shape(data):
  draw, few = data.draw, st.integers(1, 4)
  batch, channels, features = draw(st.integers(1, 7)), draw(few), draw(few)
  window, strides = (draw(st.tuples(few, few)) for _ in range(2))
  pair = st.tuples(st.integers(0, 3), st.integers(0, 3))
  padding = draw(st.tuples(pair, pair))
  height, width = (draw(st.integers(max(1, k - sum(p)), 9)) for k, p in zip(window, padding))
  piece = draw(st.sampled_from([1, 200, 2**18]))
  case = _random(np.random.default_rng(1), (batch, height, width, channels),
                 (*window, channels, features), strides, padding)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(convolution, "_PIECE", piece)
    # The size of a piece is no argument of the jitted function: an example must not find another's
    # program in its cache.
    _value_and_gradients.clear_cache()
    _assert_as_autodiff(*case, strides, padding, tolerance=1e-5)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("strides, padding", [(ONES, ((1, 1), (1, 1))), ((2, 1), ((1, 0), (0, 2)))])
def test_against_loops_over_scalars(strides, padding):
  inputs, kernel, grad = _random(np.random.default_rng(2), (2, 4, 5, 2), (3, 2, 2, 3), strides,
                                 padding)
  x, k, g = (np.asarray(a, np.float64) for a in (inputs, kernel, grad))
  value, to_inputs, to_kernel = np.zeros_like(g), np.zeros_like(x), np.zeros_like(k)
  for n, row, column, o in np.ndindex(*g.shape):
    for i, j, c in np.ndindex(*k.shape[:3]):
      h, w = row * strides[0] + i - padding[0][0], column * strides[1] + j - padding[1][0]
      if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
        value[n, row, column, o] += x[n, h, w, c] * k[i, j, c, o]
        to_inputs[n, h, w, c] += g[n, row, column, o] * k[i, j, c, o]
        to_kernel[i, j, c, o] += g[n, row, column, o] * x[n, h, w, c]
  ours = _value_and_gradients(_ours, inputs, kernel, grad, strides, padding)
  for actual, expected in zip(ours, (value, to_inputs, to_kernel), strict=True):
    _assert_close(np.asarray(actual, np.float64), expected, 1e-6)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layer", FEW)
@pytest.mark.parametrize("loop", ["fori_loop", "scan"])
def test_inside_a_loop_as_outside(layer, loop):
  inputs, kernel, grad, *statics = _case(*LAYERS[layer])

  def step(kernel):
    return kernel - 1e-3 * _value_and_gradients(_ours, inputs, kernel, grad, *statics)[2]

  def looped(count, kernel):
    if loop == "fori_loop":
      return lax.fori_loop(0, count, lambda _, k: step(k), kernel)
    return lax.scan(lambda k, _: (step(k), None), kernel, length=3)[0]

  _assert_close(jax.jit(looped)(3, kernel), step(step(step(kernel))), 1e-6)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layer", FEW)
def test_float64_keeps_its_digits(layer):
  with jax.enable_x64(True):
    _assert_as_autodiff(*_case(*LAYERS[layer], dtype=jnp.float64), tolerance=1e-13)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layer", FEW)
def test_a_batch_of_one(layer):
  _assert_as_autodiff(*_case(1, *LAYERS[layer][1:]), tolerance=1e-5)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("stride", [1, 2])
def test_pictures_of_one_pixel(stride):
  """As the last stage of a deep network sees small pictures."""
  _assert_as_autodiff(*_case(3, 1, 1, 4, 5, 3, stride, 1), tolerance=1e-5)


def test_the_library_chooses_the_form(library):
  inputs, kernel, grad, *statics = _case(*LAYERS["3x3, one piece"])
  text = str(jax.make_jaxpr(lambda k: jax.vjp(lambda k: _ours(inputs, k, *statics), k)[1](grad))(kernel))
  # Five dimensions in oneDNN's form alone.
  assert ("spec=(0, 4, 1, 2, 3)" in text) == (library == convolution_library.ONEDNN), text


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layer", FEW)
def test_under_vmap(layer):
  """Several networks at a time."""
  inputs, kernel, grad, *statics = _case(*LAYERS[layer])
  kernels, grads = jnp.stack([kernel, 2 * kernel]), jnp.stack([grad, -grad])
  together = jax.vmap(lambda k, g: _value_and_gradients(_ours, inputs, k, g, *statics))(kernels, grads)
  for i in range(2):
    alone = _value_and_gradients(_ours, inputs, kernels[i], grads[i], *statics)
    for batched, expected in zip(together, alone, strict=True):
      _assert_close(batched[i], expected, 1e-5)


@pytest.mark.usefixtures("library")
def test_under_pmap():
  inputs, kernel, grad, *statics = _case(*LAYERS["3x3, pieces and a rest"])

  def gradient(inputs, kernel, grad):
    return _value_and_gradients(_ours, inputs, kernel, grad, *statics)[2]

  mapped = jax.pmap(lambda *arrays: lax.pmean(gradient(*arrays), "devices"),
                    axis_name="devices", in_axes=(0, None, 0))(inputs[None], kernel, grad[None])
  _assert_close(mapped[0], gradient(inputs, kernel, grad), 1e-6)


@pytest.mark.usefixtures("library")
def test_flax_calls_it_as_it_calls_lax():
  images = jnp.asarray(np.random.default_rng(3).normal(size=(2, 8, 8, 3)), jnp.float32)
  layers = [nn.Conv(4, (3, 3), strides=(2, 2), padding=[(1, 1), (1, 1)], conv_general_dilated=c)
            for c in (convolution.canonical_convolution, lax.conv_general_dilated)]
  variables = layers[0].init(jax.random.key(0), images)

  def loss(variables, layer):
    return jnp.sum(layer.apply(variables, images) ** 2)

  ours, plain = (jax.jit(jax.grad(functools.partial(loss, layer=layer)))(variables)
                 for layer in layers)
  jax.tree.map(functools.partial(_assert_close, tolerance=1e-5), ours, plain)


@pytest.mark.parametrize("changes, message", [
    ({"padding": "SAME"}, "'SAME'"),
    ({"lhs_dilation": (1, 2)}, r"lhs_dilation \(1, 2\)"),
    ({"rhs_dilation": (2, 1)}, r"rhs_dilation \(2, 1\)"),
    ({"feature_group_count": 3}, "feature_group_count 3"),
    ({"dimension_numbers": None}, "dimension_numbers None"),
    ({"dimension_numbers": ("NHWC", "OIHW", "NHWC")}, "OIHW"),
    ({"inputs": jnp.zeros((8, 8, 3))}, r"\(8, 8, 3\)"),
    ({"kernel": jnp.zeros((3, 3, 4))}, r"\(3, 3, 4\)"),
])
def test_what_it_cannot_do_is_refused_by_name(changes, message):
  arguments = {"inputs": jnp.zeros((2, 8, 8, 3)), "kernel": jnp.zeros((3, 3, 3, 4)),
               "window_strides": ONES, "padding": NONE, "lhs_dilation": ONES, "rhs_dilation": ONES,
               "dimension_numbers": NHWC}
  with pytest.raises(ValueError, match=message):
    convolution.canonical_convolution(**arguments | changes)


@pytest.mark.parametrize("platform, expected", [
    ("cpu", convolution.canonical_convolution),
    ("gpu", lax.conv_general_dilated),
    ("tpu", lax.conv_general_dilated),
])
def test_each_platform_gets_its_own(platform, expected):
  assert convolution.for_platform(platform) is expected


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layer", FEW)
def test_wide_gradients_round_the_kernels_gradient_once(layer):
  """That of bfloat16 operands equals float32's, rounded; all else is as without."""
  inputs, kernel, grad, strides, padding = _case(*LAYERS[layer])
  half = [a.astype(jnp.bfloat16) for a in (inputs, kernel, grad)]
  wide = lambda x, k, *statics: convolution.for_platform("cpu", wide_gradients=True)(
      x, k, *statics, dimension_numbers=NHWC)
  ours, narrow = (_value_and_gradients(f, *half, strides, padding) for f in (wide, _ours))
  exact = _value_and_gradients(_ours, *(a.astype(jnp.float32) for a in half), strides, padding)
  for value, expected in zip(ours[:2], narrow[:2]):
    np.testing.assert_array_equal(value, expected)
  assert ours[2].dtype == jnp.bfloat16
  error = np.abs(np.asarray(ours[2], np.float64) - np.asarray(exact[2], np.float64))
  # Half a unit in the last of eight binary places, and float32's own rounding.
  assert (error <= 2**-8 * np.abs(exact[2]) * 1.001 + 1e-5 * np.abs(exact[2]).max()).all()
