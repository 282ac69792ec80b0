"""Selects the library for convolutions on a CPU: oneDNN if jaxlib has it, else XLA's own kernels.

jaxlib 0.12 and later (Python 3.12 or newer) include oneDNN, which is enabled with XLA flags. The flags must be set
before the first use of a device. Measurements on two AVX-512 cores: docs/speed.md.
"""

from __future__ import annotations

import functools
import mmap
import os
import pathlib

import jax
import jax.numpy as jnp
import jaxlib
from jax._src import xla_bridge

from gr_jax.devices import processor

ONEDNN, XLA = "oneDNN", "XLA"

_FLAG = "xla_cpu_experimental_onednn_custom_call"
# YNNPACK would take the convolutions before oneDNN; it keeps the sums, where it is faster than XLA.
_FLAGS = {_FLAG: "true", "xla_cpu_experimental_ynn_fusion_type": "-individual_convolution"}
# First jaxlib version to use; in earlier ones the flags have no effect or another one.
_SINCE = (0, 12)


def enable() -> None:
  """Enables oneDNN for this process; does nothing after the first use of a device.

  Flags that are already in XLA_FLAGS take precedence.
  """
  if _too_old() or _started() or _unknown():
    return
  missing = {name: value for name, value in _FLAGS.items() if name not in os.environ.get("XLA_FLAGS", "")}
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_text(missing)}".strip()


@functools.cache
def in_use() -> str:
  """The library, ONEDNN or XLA, that a small convolution is compiled to on the CPU. Initialises JAX."""
  image = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 16, 16), jnp.float32)
  convolve = functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME",
                               dimension_numbers=("NHWC", "HWIO", "NHWC"))
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    compiled = jax.jit(convolve).lower(image, kernel).compile()
  return ONEDNN if "__onednn$convolution" in (compiled.as_text() or "") else XLA


@functools.cache
def fast_in_bfloat16() -> bool:
  """Whether convolutions in bfloat16 are faster than in float32: oneDNN is in use, on a processor with instructions for
  products of bfloat16. Initialises JAX."""
  # Elsewhere than on Linux it is not known, and oneDNN has not been measured.
  return bool(processor.instructions() & {"amx_bf16", "avx512_bf16"}) and in_use() == ONEDNN


def describe() -> str:
  """A log line: the library in use and, if it is not oneDNN, the reason. Initialises JAX."""
  if in_use() == ONEDNN:
    return "convolutions: oneDNN; jaxlib cannot cache programs that use it, so every start compiles them again"
  if _too_old():
    why = "oneDNN is faster; it needs jaxlib 0.12 and Python 3.12 or newer"
  elif unknown := _unknown():
    why = f"jaxlib {jaxlib.__version__} does not have the flag {unknown[0]}"
  elif _FLAG in os.environ.get("XLA_FLAGS", ""):
    why = f"oneDNN is off or does not support this processor; XLA_FLAGS is '{os.environ['XLA_FLAGS']}'"
  else:
    why = (f"JAX was initialised before oneDNN, which is faster, could be enabled; initialise JAX later, or set "
           f"XLA_FLAGS='{_text(_FLAGS)}'")
  return f"convolutions: XLA ({why})"


def _too_old() -> bool:
  return tuple(map(int, jaxlib.__version__.split(".")[:2])) < _SINCE


def _text(flags: dict[str, str]) -> str:
  return " ".join(f"--{name}={value}" for name, value in flags.items())


def _started() -> bool:
  # JAX has no public function for this.
  return xla_bridge.backends_are_initialized()


@functools.cache
def _unknown() -> list[str]:
  """Our flags that jaxlib's binary does not contain: XLA aborts the process on an unknown flag."""
  missing = list(_FLAGS)
  for path in sorted(pathlib.Path(jaxlib.__file__).parent.glob("libjax_common*")):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      missing = [flag for flag in missing if content.find(flag.encode()) < 0]
  return missing
