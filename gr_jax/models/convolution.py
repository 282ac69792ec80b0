"""A 2-D convolution whose gradients run fast in XLA on the CPU, also inside loops.

XLA's CPU backend uses its fast kernel only for convolutions in canonical order: operands [batch, height, width,
channels] and [height, width, in, out], no zeros between the pixels. Autodiff's gradients are transposed and
zero-interleaved. Outside loops XLA corrects part of that; inside `fori_loop` and `scan` it falls back to a naive loop,
40 to 190 times slower for the kernel's gradient. Here both gradients are in canonical order. On GPU and TPU autodiff's
gradients are used: see `for_platform`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gr_jax.devices import convolution_library

_NHWC = ("NHWC", "HWIO", "NHWC")
_NDHWC = ("NDHWC", "DHWIO", "NDHWC")

# Elements of the output gradient in one piece of the batch: 1 MiB of float32. The kernel's gradient reads a piece many
# times; pieces larger than a core's L2 cache (2 MiB on the measured CPU) run at a third of the speed. Measured with
# tests/benchmarks/kernel_gradient.py.
_PIECE = 2**18

_Pair = tuple[int, int]
_Padding = tuple[_Pair, _Pair]


def for_platform(platform: str, *, wide_gradients: bool = False) -> Callable[..., jax.Array]:
  """What to pass as `flax.linen.Conv(conv_general_dilated=...)` on "cpu", "gpu" or "tpu".

  `wide_gradients`: see `canonical_convolution`; GPUs and TPUs add products of bfloat16 in float32 anyway.
  """
  if platform != "cpu":
    return lax.conv_general_dilated
  return functools.partial(canonical_convolution, wide_gradients=True) if wide_gradients else canonical_convolution


def canonical_convolution(
    inputs: jax.Array, kernel: jax.Array, window_strides: Sequence[int], padding: Sequence[_Pair],
    *, lhs_dilation: Sequence[int] | None = None, rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None, feature_group_count: int = 1,
    precision: Any = None, wide_gradients: bool = False) -> jax.Array:
  """`jax.lax.conv_general_dilated` for our models, with gradients that are fast on the CPU.

  The value is that of lax; both gradients equal autodiff's up to rounding. The kernel's gradient is summed in float32
  or wider for any dtype. Reverse mode only: `jax.jvp` raises a TypeError.

  Args:
    inputs: [batch, height, width, in] floating.
    kernel: [kernel_height, kernel_width, in, out] of the same dtype.
    window_strides: (vertical, horizontal).
    padding: ((above, below), (left, right)) zeros; not "SAME" or "VALID".
    lhs_dilation, rhs_dilation: (1, 1) or None.
    dimension_numbers: of NHWC inputs and output and an HWIO kernel, as flax passes them.
    feature_group_count: 1.
    precision: as in lax, and used by the gradients too.
    wide_gradients: whether the kernel's gradient is computed in float32 from operands of a narrower dtype, and rounded
      once, at the end; else also each piece of the batch may be rounded.

  Returns:
    [batch, out_height, out_width, out] of the inputs' dtype.

  Raises:
    ValueError: any other rank, order of dimensions, padding, dilation or number of groups.
  """
  if (inputs.ndim, kernel.ndim) != (4, 4):
    raise ValueError(f"inputs {inputs.shape} and kernel {kernel.shape} must be [batch, height, "
                     f"width, in] and [kernel_height, kernel_width, in, out]")
  asked, ours = (lax.conv_dimension_numbers(inputs.shape, kernel.shape, numbers)
                 for numbers in (dimension_numbers, _NHWC))
  if asked != ours:
    raise ValueError(f"dimension_numbers {dimension_numbers} must be those of {_NHWC}")
  if len(padding) != 2:  # "SAME" and "VALID" too
    raise ValueError(f"padding {padding!r} must be given as ((above, below), (left, right))")
  for name, dilation in (("lhs_dilation", lhs_dilation), ("rhs_dilation", rhs_dilation)):
    if dilation is not None and tuple(dilation) != (1, 1):
      raise ValueError(f"{name} {tuple(dilation)} must be (1, 1)")
  if feature_group_count != 1:
    raise ValueError(f"feature_group_count {feature_group_count} must be 1")
  (above, below), (left, right) = padding
  vertical, horizontal = window_strides
  return _convolve(inputs, kernel, (vertical, horizontal), ((above, below), (left, right)),
                   precision, wide_gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve(inputs: jax.Array, kernel: jax.Array, strides: _Pair, padding: _Padding,
              precision: Any, wide_gradients: bool) -> jax.Array:
  del wide_gradients
  return lax.conv_general_dilated(inputs, kernel, strides, padding, dimension_numbers=_NHWC,
                                  precision=precision)


def _forward(inputs, kernel, strides, padding, precision, wide_gradients):
  return _convolve(inputs, kernel, strides, padding, precision, wide_gradients), (inputs, kernel)


def _backward(strides, padding, precision, wide_gradients, residuals, grad):
  inputs, kernel = residuals
  by_inputs = _inputs_gradient(inputs.shape, kernel, grad, strides, padding, precision)
  if wide_gradients:
    inputs, grad = (a.astype(np.promote_types(a.dtype, np.float32)) for a in (inputs, grad))
  return by_inputs, _kernel_gradient(inputs, kernel, grad, strides, padding, precision)


_convolve.defvjp(_forward, _backward)


def _inputs_gradient(shape: tuple[int, ...], kernel: jax.Array, grad: jax.Array, strides: _Pair,
                     padding: _Padding, precision: Any) -> jax.Array:
  """Gradient [batch, height, width, in] = `shape`, from grad [batch, out_height, out_width, out].

  Along one axis, pixel q*s + r of the padded input (s: stride, 0 <= r < s) gets
  sum_m grad[q - m] kernel[m*s + r]: for each r, a stride-1 convolution with every s-th row of the flipped kernel. All
  r are computed as channels of one convolution and interleaved afterwards. For 3x3 kernels this is 15 to 27 times
  faster than inserting zeros into grad.
  """
  *window, channels, features = kernel.shape
  taps = [-(-k // s) for k, s in zip(window, strides)]
  rest = [(0, m * s - k) for m, s, k in zip(taps, strides, window)]
  kernel = jnp.pad(kernel, [*rest, (0, 0), (0, 0)])
  kernel = kernel.reshape(taps[0], strides[0], taps[1], strides[1], channels, features)
  kernel = kernel[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4).reshape(*taps, features, -1)
  # Without the barrier XLA folds the transposition into the convolution, which is then not in canonical order.
  kernel = lax.optimization_barrier(kernel)
  first = [low // s for (low, _), s in zip(padding, strides)]
  last = [(low + size - 1) // s for (low, _), s, size in zip(padding, strides, shape[1:3])]
  pads = [(m - 1 - a, b - (out - 1)) for m, a, b, out in zip(taps, first, last, grad.shape[1:3])]
  result = lax.conv_general_dilated(grad, kernel, (1, 1), pads, dimension_numbers=_NHWC,
                                    precision=precision)
  batch, rows, columns, _ = result.shape
  result = result.reshape(batch, rows, columns, *strides, channels).transpose(0, 1, 3, 2, 4, 5)
  result = result.reshape(batch, rows * strides[0], columns * strides[1], channels)
  top, left = (low % s for (low, _), s in zip(padding, strides))
  return result[:, top:top + shape[1], left:left + shape[2]]


def _kernel_gradient(inputs: jax.Array, kernel: jax.Array, grad: jax.Array, strides: _Pair,
                     padding: _Padding, precision: Any) -> jax.Array:
  """Gradient [kernel_height, kernel_width, in, out], from grad [batch, out_height, out_width, out].

  A convolution with the batch as channels and grad as the kernel, for one piece of the batch at a time; for a 1x1
  kernel, a matrix product.
  """
  window, total_dtype = kernel.shape[:2], np.promote_types(grad.dtype, np.float32)
  if window == (1, 1) and padding == ((0, 0), (0, 0)):
    total = jnp.einsum("bhwi,bhwo->io", inputs[:, ::strides[0], ::strides[1]], grad,
                       precision=precision, preferred_element_type=total_dtype)
    return total.reshape(kernel.shape).astype(kernel.dtype)

  # The low padding is unchanged; the high one is chosen so that the result has the size of the kernel.
  pads = [(low, (out - 1) * s + k - size - low) for (low, _), out, s, k, size
          in zip(padding, grad.shape[1:3], strides, window, inputs.shape[1:3])]
  form = _rows_of_channels if convolution_library.in_use() == convolution_library.ONEDNN else _images_of_channels
  piece_gradient = functools.partial(form, strides=strides, pads=pads, precision=precision, dtype=total_dtype)

  batch = len(inputs)
  size = max(1, min(batch, _PIECE // math.prod(grad.shape[1:])))
  count = batch // size
  cut = count * size
  pieces = tuple(a[:cut].reshape(count, size, *a.shape[1:]) for a in (inputs, grad))
  # A loop, because one copy of the convolution per piece would double the compilation time; unroll=2 made a ResNet-32
  # step up to a tenth faster.
  _, totals = lax.scan(lambda _, piece: (None, piece_gradient(*piece)), None, pieces, unroll=2)
  total = jnp.sum(totals, axis=0)
  if cut < batch:
    total += piece_gradient(inputs[cut:], grad[cut:])
  return total.astype(kernel.dtype)


def _images_of_channels(x: jax.Array, grad: jax.Array, *, strides: _Pair, pads: list[_Pair], precision: Any,
                        dtype: Any) -> jax.Array:
  """A piece's part of the kernel's gradient, with each input channel as one image; for XLA's own convolution."""
  # [in, height, width, batch] and [out_height, out_width, batch, out]: canonical order, and again a barrier to keep it.
  images, kernel = lax.optimization_barrier(
      (x.astype(dtype).transpose(3, 1, 2, 0), grad.astype(dtype).transpose(1, 2, 0, 3)))
  return lax.conv_general_dilated(images, kernel, (1, 1), pads, rhs_dilation=strides, dimension_numbers=_NHWC,
                                  precision=precision).transpose(1, 2, 0, 3)


def _rows_of_channels(x: jax.Array, grad: jax.Array, *, strides: _Pair, pads: list[_Pair], precision: Any,
                      dtype: Any) -> jax.Array:
  """The same as one 3-D convolution of [1, height, width, in, batch], for oneDNN.

  oneDNN computes blocks of one row of the result. A row of input channels fills a block; the three columns of a 3x3
  kernel's gradient would leave it almost empty. In bfloat16 a piece's sum is rounded once, at the end.
  """
  image, kernel = lax.optimization_barrier((x.transpose(1, 2, 3, 0)[None], grad.transpose(1, 2, 0, 3)[:, :, None]))
  return lax.conv_general_dilated(image, kernel, (1, 1, 1), [*pads, (0, 0)], rhs_dilation=(*strides, 1),
                                  dimension_numbers=_NDHWC, precision=precision)[0].astype(dtype)
