"""Batches of new images and exemplars: how many of each, every image, every device."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax import sampling
from gr_jax.data.arrays import Pool

OLD = np.arange(5) < 3
CAPACITY = 64


def epoch(counts, *, ratio, seed=0, old=OLD):
  """(sampler, its arrays of an epoch, rows of the exemplars, rows of the new images)."""
  size = int(np.sum(counts))
  rows = 100 + np.arange(size)
  pool = Pool(jnp.asarray(np.r_[rows, np.zeros(CAPACITY - size)], jnp.int32), jnp.int32(size))
  sampler = sampling.new_and_memory(ratio)
  context = types.SimpleNamespace(old=jnp.asarray(old), counts=jnp.asarray(counts, jnp.float32))
  exemplars = int(np.sum(np.asarray(counts)[old]))
  return sampler, sampler.prepare(pool, jax.random.key(seed), context), rows[:exemplars], rows[exemplars:]


# The second has fewer new images than a batch, the third more exemplars than an epoch takes.
@pytest.mark.parametrize("counts", [(2, 1, 2, 20, 9), (2, 1, 2, 1, 2), (20, 10, 20, 4, 5)])
@pytest.mark.parametrize("ratio", [1, 4])
def test_every_device_has_as_many_new_images_and_exemplars(counts, ratio):
  sampler, arrays, exemplars, new = epoch(counts, ratio=ratio)
  size = 8
  steps, batch = sampler.steps(np.asarray(counts), OLD, size), sampler.batch(size)
  assert steps == -(-len(new) // size) and batch == size + size // ratio
  rows = np.asarray(sampler.pick(arrays, jnp.arange(steps * batch)))
  for devices in (1, 2):
    for share in rows.reshape(steps * devices, -1):
      assert np.isin(share, new).sum() == size // devices
      assert np.isin(share, exemplars).sum() == size // ratio // devices
  used = rows[np.isin(rows, new)]
  assert set(used) == set(new) and len(set(used[:len(new)])) == len(new)
  remembered = rows[np.isin(rows, exemplars)]
  # None a second time before all had their turn.
  assert len(set(remembered[:len(exemplars)])) == min(len(exemplars), len(remembered))


def test_numpy_arrays_give_the_same_rows():
  sampler, arrays, *_ = epoch((2, 1, 2, 20, 9), ratio=4)
  places = np.arange(7, 50)
  np.testing.assert_array_equal(sampler.pick(jax.tree.map(np.asarray, arrays), places),
                                sampler.pick(arrays, jnp.asarray(places)))


def test_another_epoch_has_another_order():
  first, other = (np.asarray(sampler.pick(arrays, jnp.arange(40))) for sampler, arrays, *_ in (
      epoch((2, 1, 2, 20, 9), ratio=4, seed=seed) for seed in (0, 1)))
  assert first.tolist() != other.tolist()


def test_an_empty_memory_leaves_its_places_to_new_images():
  sampler, arrays, exemplars, new = epoch((0, 0, 0, 6, 3), ratio=4)
  rows = np.asarray(sampler.pick(arrays, jnp.arange(20)))
  assert len(exemplars) == 0 and set(rows) == set(new)
