"""Data parallelism: one pmap axis over all devices, replicated and unstacked state, batches split by position.

Pictures transferred per call are split before, so that each device receives only its share.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax.device_axis import AXIS


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Copies the tree's arrays to every device, unstacked, as `spread` takes them without a further copy.

  With several processes, each must pass the same values.
  """
  replicated = jax.NamedSharding(_mesh(devices), jax.P())
  if replicated.is_fully_addressable:
    return jax.device_put(tree, replicated)
  return jax.tree.map(lambda leaf: _replicate_among_processes(leaf, replicated), tree)


def _replicate_among_processes(leaf: Any, replicated: jax.NamedSharding) -> jax.Array:
  """Avoids device_put, which compares values across processes: 1.8 ms a scalar on two CPU processes, not 0.02 ms."""
  if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    bits = _replicate_among_processes(jax.random.key_data(leaf), replicated)
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
  host = np.asarray(leaf)
  host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
  return jax.make_array_from_callback(host.shape, replicated, lambda index: host[index])


def split(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Arrays [this process's devices, ...] -> [devices, ...], one row on each device, for `parted` arguments."""
  sharing = jax.NamedSharding(_mesh(devices), jax.P(AXIS))
  if sharing.is_fully_addressable:
    return jax.device_put(tree, sharing)
  return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(
      sharing, leaf, (len(devices), *leaf.shape[1:])), tree)


def shares(devices: Sequence[jax.Device], batch_size: int) -> np.ndarray:
  """Batch positions of this process's devices, [its devices, batch_size / devices] int."""
  local = batch_size // len(devices)
  here = [place for place, device in enumerate(devices) if device.process_index == jax.process_index()]
  return np.asarray(here)[:, None] * local + np.arange(local)


def by_device(rows: np.ndarray, mine: np.ndarray) -> np.ndarray:
  """The part of `rows` [steps, batch] for each device, given its `shares` [devices, share]: [devices, steps * share].
  """
  return rows[:, mine].swapaxes(0, 1).reshape(len(mine), -1)


def _mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
  return jax.sharding.Mesh(np.asarray(devices), (AXIS,))


def spread(function: Callable, devices: Sequence[jax.Device], num_args: int, donate: Sequence[int] = (),
           parted: Sequence[int] = ()) -> functools.partial:
  """pmaps a function with replicated arguments and results, except for the arguments in `parted`.

  With several processes, pmap would convert its arguments and results to process-local arrays at every call, so
  `shard` is used instead.

  Each device chooses its share of the work by its index on the axis; results must be averaged, summed or otherwise
  made equal over `AXIS`.

  Args:
    function: takes `num_args` pytrees; the axis is named `AXIS`.
    devices: to run on.
    num_args: number of its arguments.
    donate: positions of donated arguments; the caller's arrays are deleted.
    parted: positions of arguments that come from `split`; the function gets its device's row.
  """
  sharing = jax.NamedSharding(_mesh(devices), jax.P(AXIS))
  if not sharing.is_fully_addressable:
    return functools.partial(shard(function, devices, num_args, donate, parted))
  mapped = jax.pmap(lambda place, *args: function(*args), axis_name=AXIS, devices=devices,
                    in_axes=(0, *(0 if i in parted else None for i in range(num_args))), out_axes=None,
                    donate_argnums=tuple(position + 1 for position in donate))
  # pmap needs at least one mapped argument.
  places = jax.device_put(np.arange(len(devices), dtype=np.int32), sharing)
  return functools.partial(mapped, places)


def shard(function: Callable, devices: Sequence[jax.Device], num_args: int, donate: Sequence[int] = (),
          parted: Sequence[int] = ()) -> Callable:
  """`spread` as a jitted shard_map, with the same arguments and results.

  check_vma is off, so that gradients are per device, as in a pmap, and not summed automatically.
  """
  def on_device(*args: Any) -> Any:
    return function(*(jax.tree.map(lambda leaf: leaf[0], arg) if i in parted else arg for i, arg in enumerate(args)))

  specs = tuple(jax.P(AXIS) if i in parted else jax.P() for i in range(num_args))
  return jax.jit(jax.shard_map(on_device, mesh=_mesh(devices), in_specs=specs, out_specs=jax.P(), check_vma=False),
                 donate_argnums=tuple(donate))
