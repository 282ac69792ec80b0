"""Devices: one pmap axis over all of them, state replicated and unstacked, batches split by position.

Pictures that travel are split beforehand, so that each device receives its own share alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

AXIS = "devices"


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """The tree's arrays copied to every device, unstacked: what `spread` takes without moving anything.

  Where devices belong to several processes, each of them must bring the same values.
  """
  everywhere = jax.NamedSharding(_mesh(devices), jax.P())
  if everywhere.is_fully_addressable:
    return jax.device_put(tree, everywhere)
  return jax.tree.map(lambda leaf: _replicate_among_processes(leaf, everywhere), tree)


def _replicate_among_processes(leaf: Any, everywhere: jax.NamedSharding) -> jax.Array:
  """device_put compares the values between all processes each time: 1.8 ms a scalar on two CPU processes, not 0.02."""
  if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    bits = _replicate_among_processes(jax.random.key_data(leaf), everywhere)
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
  host = np.asarray(leaf)
  host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
  return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])


def split(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Arrays [this process's devices, ...], a row for each: [devices, ...], as `spread` takes what is parted."""
  sharing = jax.NamedSharding(_mesh(devices), jax.P(AXIS))
  if sharing.is_fully_addressable:
    return jax.device_put(tree, sharing)
  return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(
      sharing, leaf, (len(devices), *leaf.shape[1:])), tree)


def shares(devices: Sequence[jax.Device], batch_size: int) -> np.ndarray:
  """Places in a batch that this process's devices take, [its devices, batch_size / devices] int."""
  local = batch_size // len(devices)
  here = [place for place, device in enumerate(devices) if device.process_index == jax.process_index()]
  return np.asarray(here)[:, None] * local + np.arange(local)


def by_device(rows: np.ndarray, mine: np.ndarray) -> np.ndarray:
  """What each device takes of `rows` [steps, batch], given the `shares` [devices, share]: [devices, steps * share]."""
  return rows[:, mine].swapaxes(0, 1).reshape(len(mine), -1)


def _mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
  return jax.sharding.Mesh(np.asarray(devices), (AXIS,))


def spread(function: Callable, devices: Sequence[jax.Device], num_args: int, donate: Sequence[int] = (),
           parted: Sequence[int] = ()) -> functools.partial:
  """pmaps a function whose arguments and results are replicated, but for those that are parted.

  Over the devices of several processes a pmap would turn what it takes and gives into arrays of one process alone,
  at every call; there the same program is a `shard`.

  Each device takes its share of the work by its place on the axis; results must have been averaged, summed
  or otherwise made equal over `AXIS`.

  Args:
    function: takes `num_args` pytrees; knows the axis as `AXIS`.
    devices: over which it runs.
    num_args: how many arguments it takes.
    donate: positions of arguments whose buffers the results may use; the caller's arrays are then deleted.
    parted: positions of arguments that come from `split`; the function sees its device's row.
  """
  sharing = jax.NamedSharding(_mesh(devices), jax.P(AXIS))
  if not sharing.is_fully_addressable:
    return functools.partial(shard(function, devices, num_args, donate, parted))
  mapped = jax.pmap(lambda place, *args: function(*args), axis_name=AXIS, devices=devices,
                    in_axes=(0, *(0 if i in parted else None for i in range(num_args))), out_axes=None,
                    donate_argnums=tuple(position + 1 for position in donate))
  # pmap wants one mapped argument; nothing else differs from device to device.
  places = jax.device_put(np.arange(len(devices), dtype=np.int32), sharing)
  return functools.partial(mapped, places)


def shard(function: Callable, devices: Sequence[jax.Device], num_args: int, donate: Sequence[int] = (),
          parted: Sequence[int] = ()) -> Callable:
  """`spread` as a jitted shard_map; the same arguments, the same results.

  Without check_vma, as in a pmap: gradients are those of each device's own share, and nothing sums them unasked.
  """
  def on_device(*args: Any) -> Any:
    return function(*(jax.tree.map(lambda leaf: leaf[0], arg) if i in parted else arg for i, arg in enumerate(args)))

  specs = tuple(jax.P(AXIS) if i in parted else jax.P() for i in range(num_args))
  return jax.jit(jax.shard_map(on_device, mesh=_mesh(devices), in_specs=specs, out_specs=jax.P(), check_vma=False),
                 donate_argnums=tuple(donate))
