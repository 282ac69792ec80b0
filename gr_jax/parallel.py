"""Devices: one pmap axis over all of them, state replicated and unstacked, batches split by position."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

AXIS = "devices"


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """The tree's arrays copied to every device, unstacked: what `spread` takes without moving anything."""
  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
  return jax.device_put(tree, jax.NamedSharding(mesh, jax.P()))


def spread(function: Callable, devices: Sequence[jax.Device], num_args: int, donate: Sequence[int] = ()
           ) -> functools.partial:
  """pmaps a function whose arguments and results are all replicated.

  Each device takes its share of the work by its place on the axis; results must have been averaged, summed
  or otherwise made equal over `AXIS`.

  Args:
    function: takes `num_args` pytrees; knows the axis as `AXIS`.
    devices: over which it runs.
    num_args: how many arguments it takes.
    donate: positions of arguments whose buffers the results may use; the caller's arrays are then deleted.
  """
  mapped = jax.pmap(lambda place, *args: function(*args), axis_name=AXIS, devices=devices,
                    in_axes=(0, *[None] * num_args), out_axes=None,
                    donate_argnums=tuple(position + 1 for position in donate))
  # pmap wants one mapped argument; nothing else differs from device to device.
  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
  places = jax.device_put(np.arange(len(devices), dtype=np.int32), jax.NamedSharding(mesh, jax.P(AXIS)))
  return functools.partial(mapped, places)
