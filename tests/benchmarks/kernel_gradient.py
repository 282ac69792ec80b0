"""How fast the CPU computes the parts of a training step, in both forms and with several sizes of pieces.

  python tests/benchmarks/kernel_gradient.py [--batch=128] [--calls=9]

What `gr_jax/models/convolution.py` and `norm.py` choose rests on this table: GFLOP/s of the forward pass and of the
kernel's gradient of a 3x3 layer at the three widths of a ResNet-32, and milliseconds of batch norm with ReLU, forward
and backward, by autodiff and by our own derivative. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from gr_jax.devices import convolution_library

convolution_library.enable()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from gr_jax.models import convolution, norm  # noqa: E402

# (channels, side) of the stages of a ResNet-32.
_STAGES = ((16, 32), (32, 16), (64, 8))
_IMAGES = (8, 16, 32, 64, 128)


def seconds(function: Callable[..., Any], arguments: tuple, calls: int) -> float:
  """Median of `calls` timed calls, after two that are not counted."""
  program, times = jax.jit(function), []
  for number in range(calls + 2):
    started = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    if number >= 2:
      times.append(time.perf_counter() - started)
  return statistics.median(times)


def kernel_gradient(form: Callable, images: int) -> Callable:
  """The kernel's gradient in one of the two forms, over pieces of so many images."""
  def total(x, grad):
    pieces = tuple(a.reshape(-1, images, *a.shape[1:]) for a in (x, grad))
    one = lambda _, piece: (None, form(*piece, strides=(1, 1), pads=[(1, 1), (1, 1)], precision=None,
                                       dtype=jnp.float32))
    return jnp.sum(jax.lax.scan(one, None, pieces, unroll=2)[1], axis=0)
  return total


def batch_norm(normalise: norm.Normalise) -> Callable:
  """Forward and backward pass of batch norm, shortcut and ReLU."""
  def both(x, shortcut, grad):
    channels = x.shape[-1]
    y, pull = jax.vjp(lambda *a: normalise(*a, True, None)[0], x, shortcut, jnp.ones(channels), jnp.zeros(channels))
    return y, pull(grad)
  return both


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--calls", type=int, default=9)
  options = parser.parse_args()
  print(f"jax {jax.__version__}; {convolution_library.describe()}; batch {options.batch}")
  for dtype in (jnp.float32, jnp.bfloat16):
    for channels, side in _STAGES:
      keys = jax.random.split(jax.random.key(0), 3)
      x, grad, shortcut = (jax.random.normal(key, (options.batch, side, side, channels), dtype) for key in keys)
      kernel = jax.random.normal(keys[0], (3, 3, channels, channels), dtype)
      work = 2 * 9 * channels * x.size / 1e9
      forward = lambda x, kernel: convolution.canonical_convolution(
          x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
      print(f"\n{dtype.__name__}, {channels} channels, {side}x{side}: forward "
            f"{work / seconds(forward, (x, kernel), options.calls):.0f} GFLOP/s")
      for form in (convolution._images_of_channels, convolution._rows_of_channels):
        rates = [f"{work / seconds(kernel_gradient(form, images), (x, grad), options.calls):.0f}"
                 for images in _IMAGES if options.batch % images == 0]
        print(f"  kernel's gradient, {form.__name__.strip('_')}, pieces of {', '.join(map(str, _IMAGES))}: "
              f"{', '.join(rates)} GFLOP/s")
      times = [f"{1e3 * seconds(batch_norm(one), (x, shortcut, grad), options.calls):.1f}"
               for one in (norm._value, norm.normalise)]
      print(f"  batch norm, shortcut and ReLU, forward and backward: autodiff {times[0]} ms, ours {times[1]} ms")


if __name__ == "__main__":
  main()
