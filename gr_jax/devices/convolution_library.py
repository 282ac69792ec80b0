"""Which library computes convolutions on a CPU: oneDNN where jaxlib has it, else XLA's own kernels.

From jaxlib 0.12 on (Python 3.12 or newer) oneDNN is compiled in, and flags of XLA switch it on. They count until the
first use of a device. Measured on two AVX-512 cores: docs/speed.md.
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

ONEDNN, XLA = "oneDNN", "XLA"

_FLAG = "xla_cpu_experimental_onednn_custom_call"
# YNNPACK would take convolutions before oneDNN sees them; it keeps the sums, at which it is better than XLA.
_FLAGS = {_FLAG: "true", "xla_cpu_experimental_ynn_fusion_type": "-individual_convolution"}
# Earlier ones accept the flags without effect, or with another one.
_SINCE = (0, 12)


def enable() -> None:
  """Switches oneDNN on for this process; comes before the first use of a device, afterwards it does nothing.

  What XLA_FLAGS says of a flag already stays and wins.
  """
  if _too_old() or _started() or _unknown():
    return
  missing = {name: value for name, value in _FLAGS.items() if name not in os.environ.get("XLA_FLAGS", "")}
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_text(missing)}".strip()


@functools.cache
def in_use() -> str:
  """ONEDNN or XLA: what a small convolution is compiled to on the CPU. Starts JAX."""
  image = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 16, 16), jnp.float32)
  convolve = functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME",
                               dimension_numbers=("NHWC", "HWIO", "NHWC"))
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    compiled = jax.jit(convolve).lower(image, kernel).compile()
  return ONEDNN if "__onednn$convolution" in compiled.as_text() else XLA


def describe() -> str:
  """A line for the log: which library is in use, and, where it is not oneDNN, why. Starts JAX."""
  if in_use() == ONEDNN:
    return "convolutions: oneDNN; jaxlib cannot keep its programs, so every start compiles them"
  if _too_old():
    why = "oneDNN, which is faster, comes with jaxlib 0.12 and Python 3.12"
  elif unknown := _unknown():
    why = f"jaxlib {jaxlib.__version__} does not know the flag {unknown[0]}"
  elif _FLAG in os.environ.get("XLA_FLAGS", ""):
    why = f"oneDNN is off or has no form for this processor; XLA_FLAGS is '{os.environ['XLA_FLAGS']}'"
  else:
    why = (f"JAX had started before oneDNN, which is faster, could be switched on; start it later, or set "
           f"XLA_FLAGS='{_text(_FLAGS)}'")
  return f"convolutions: XLA ({why})"


def _too_old() -> bool:
  return tuple(map(int, jaxlib.__version__.split(".")[:2])) < _SINCE


def _text(flags: dict[str, str]) -> str:
  return " ".join(f"--{name}={value}" for name, value in flags.items())


def _started() -> bool:
  # JAX has no public name for it.
  return xla_bridge.backends_are_initialized()


@functools.cache
def _unknown() -> list[str]:
  """Our flags that jaxlib's code does not name: one of them in XLA_FLAGS would end the process."""
  missing = list(_FLAGS)
  for path in sorted(pathlib.Path(jaxlib.__file__).parent.glob("libjax_common*")):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      missing = [flag for flag in missing if content.find(flag.encode()) < 0]
  return missing
