"""Keys differ by seed, task, step and purpose, and by nothing else."""

import itertools

import jax

from gr_jax import seeding


def test_keys_are_distinct_and_reproducible():
  places = list(itertools.product(range(2), range(3), range(3), range(4)))
  def key(seed, task, step, purpose):
    return tuple(jax.random.key_data(seeding.derive(jax.random.key(seed), task, step, purpose)).tolist())
  keys = [key(*place) for place in places]
  assert len(set(keys)) == len(places)
  assert keys == [key(*place) for place in places]


def test_purposes_keep_their_numbers():
  # They are part of what a seed means: other numbers would change every published result.
  assert (seeding.BACKBONE, seeding.CLASSIFIER, seeding.ORDER, seeding.AUGMENT) == (0, 1, 2, 3)
