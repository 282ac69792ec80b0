"""Batches of new images and exemplars: how many of each, every image, every device."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import lws

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


def class_after_class(pool, counts, seed):
  """The rows of an epoch of the class-aware sampler."""
  context = types.SimpleNamespace(counts=jnp.asarray(counts, jnp.float32))
  arrays = sampling.CLASS_BALANCED.prepare(pool, jax.random.key(seed), context)
  return np.asarray(sampling.CLASS_BALANCED.pick(arrays, jnp.arange(int(pool.size))))


@pytest.mark.parametrize("counts, seed", [([30, 5, 2, 9, 0, 0], 0), ([0, 7, 1, 40, 0, 0], 1), ([3, 0, 0, 0, 0, 0], 2)])
def test_class_after_class(counts, seed):
  """Against NumPy's list of rows from the same cycles; classes without images are left out."""
  counts, size = np.asarray(counts), sum(counts)
  rows = np.random.default_rng(seed).permutation(1000)[:size].astype(np.int32)
  of_class = dict(enumerate(np.split(rows, np.cumsum(counts)[:-1])))
  pool = Pool(np.pad(rows, (0, 64 - size)), np.int32(size))
  drawn = class_after_class(pool, counts, seed)
  owner = {row: c for c, class_rows in of_class.items() for row in class_rows.tolist()}
  classes = [owner[row] for row in drawn[::4].tolist()]
  present = np.flatnonzero(counts)
  rounds = [classes[i:i + len(present)] for i in range(0, len(classes), len(present))]
  # Each round has each class that has images once, but the last one, which the epoch's length cuts off.
  assert all(sorted(part) == present.tolist() for part in rounds[:-1]) and len(set(rounds[-1])) == len(rounds[-1])
  cycles = {}
  for c in present:
    taken = [row for row in drawn.tolist() if owner[row] == c]
    assert len(set(taken[:counts[c]])) == min(len(taken), counts[c])
    cycles[int(c)] = [taken[:counts[c]]] * (len(taken) // counts[c] + 4)
  np.testing.assert_array_equal(drawn, lws.class_aware_rows(rounds, cycles, size))
  assert size < 4 or not np.array_equal(drawn, class_after_class(pool, counts, seed + 9))


def test_class_after_class_draws_all_classes_equally_often():
  counts, shown = np.asarray([200, 3, 20]), np.zeros(3)
  pool = Pool(np.arange(256, dtype=np.int32), np.int32(223))
  for seed in range(5):
    drawn = class_after_class(pool, counts, seed)
    shown += np.bincount(np.searchsorted(np.cumsum(counts), drawn, side="right"), minlength=3)
  np.testing.assert_allclose(shown / shown.sum(), 1 / 3, atol=0.02)
