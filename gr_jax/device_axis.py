"""The axis of devices that share a batch."""

from __future__ import annotations

import jax

# Its name in every function that runs on several devices.
AXIS = "devices"


def mean(value: jax.Array) -> jax.Array:
  """The mean over the devices in a function that has the axis; elsewhere the value itself."""
  try:
    return jax.lax.pmean(value, AXIS)
  except NameError:
    return value
