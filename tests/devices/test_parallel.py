"""Both forms of a program over several devices: a pmap, and the jitted shard_map that several processes use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_runs import TRAJECTORY, follow_trajectory

from gr_jax.devices import parallel


@pytest.mark.parametrize("num_devices", [1, 4])
def test_the_recorded_trajectory_with_the_form_for_several_processes(monkeypatch, num_devices):
  monkeypatch.setattr(parallel, "spread", lambda *args, **kwargs: functools.partial(parallel.shard(*args, **kwargs)))
  for number in range(len(TRAJECTORY.tasks)):
    follow_trajectory(number, jax.devices()[:num_devices], 1e-5)


def test_both_forms_average_local_gradients_alike():
  """With check_vma a shard_map sums the gradient of what is replicated by itself: four times the right value."""
  devices = jax.devices()[:4]

  def function(weight):
    share = jax.lax.axis_index(parallel.AXIS).astype(jnp.float32)
    return jax.lax.pmean(jax.grad(lambda w: w * share)(weight), parallel.AXIS)

  weight = parallel.replicate(np.float32(3), devices)
  for form in (parallel.spread, parallel.shard):
    averaged = form(function, devices, 1)(weight)
    assert float(averaged) == 1.5 and averaged.sharding.is_fully_replicated and len(averaged.sharding.device_set) == 4


@pytest.mark.parametrize("form", [parallel.spread, parallel.shard])
def test_donated_arguments_are_gone(form):
  devices = jax.devices()[:2]
  given, kept = parallel.replicate((np.arange(4.0), np.arange(4.0)), devices)
  form(lambda a, b: a + b, devices, 2, donate=(0,))(given, kept)
  assert given.is_deleted() and not kept.is_deleted()


@pytest.mark.parametrize("form", [parallel.spread, parallel.shard])
def test_each_device_sees_its_own_row_of_what_is_parted(form):
  devices = jax.devices()
  rows = np.arange(12.0, dtype=np.float32).reshape(4, 3)
  parted = parallel.split({"a": rows}, devices)
  # Nowhere more than a row.
  assert [shard.data.shape for shard in parted["a"].addressable_shards] == [(1, 3)] * 4

  def function(whole, row):
    place = jax.lax.axis_index(parallel.AXIS)
    return jax.lax.psum(jnp.where(place == 2, whole * row["a"], 0.0), parallel.AXIS)

  total = form(function, devices, 2, parted=(1,))(parallel.replicate(np.float32(10), devices), parted)
  np.testing.assert_array_equal(total, 10 * rows[2])


def test_shares_of_a_batch():
  mine = parallel.shares(jax.devices(), 8)
  np.testing.assert_array_equal(mine, [[0, 1], [2, 3], [4, 5], [6, 7]])
  rows = np.arange(100, 116).reshape(2, 8)
  # Step after step, each device the places that are its own.
  np.testing.assert_array_equal(parallel.by_device(rows, mine[1:3]), [[102, 103, 110, 111], [104, 105, 112, 113]])
