"""Counting and extracting: a fake model with known answers, blocks, masks, any number of devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import calibration as reference

from gr_jax import calibration, methods, seeding
from gr_jax.data.arrays import Data, Pool
from gr_jax.devices import parallel
from gr_jax.methods.base import Context
from gr_jax.models import heads
from gr_jax.training import passes


class Fake(nn.Module):
  """Features are the pixels; with the identity as classifier the largest pixel is the answer."""
  num_features: int = 5

  @nn.compact
  def __call__(self, x, *, train):
    del train
    return x, ()


def plain(images, sizes):
  del sizes
  return images.astype(jnp.float32)


def data_of(images, labels):
  return Data(np.asarray(images, np.float32), np.ones((len(images), 2), np.int32), np.asarray(labels, np.int32))


NETWORK = {"params": {"backbone": {}, "classifier": {"kernel": np.eye(5, dtype=np.float32),
                                                     "bias": np.zeros(5, np.float32)}},
           "batch_stats": {}, "carry": {}}
TASK_OF_CLASS = np.asarray([0, 0, 1, 1, 2], np.int32)


def context_of(seen):
  """Evaluation looks at the classes seen and at their tasks alone."""
  seen, zeros = np.asarray(seen), np.zeros(5, np.float32)
  return Context(np.int32(0), np.zeros(5, bool), seen, zeros, zeros, zeros, TASK_OF_CLASS)


def fake(**scores):
  """A linear head, and scores: name -> function of (outputs, carry); None: the logits."""
  return methods.Method("fake", (), heads.linear(), scores or {"logits": methods.base.logits})


def setting_of(stop, *, inverse=((1.0,) * 5,), cells=((True,) * 5,), groups=((True,) * 5,)):
  return passes.Setting(np.int32(stop), np.asarray(inverse, np.float32), np.asarray(cells), np.asarray(groups))


def padded(values, devices, block):
  """With zeros to whole rounds of blocks, as features are."""
  values = np.asarray(values)
  missing = -len(values) % (block * devices)
  return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))


def evaluated(images, labels, seen, setting, *, devices=1, block=4, method=None, carry=None):
  """What evaluation finds; the features are the pixels, and the identity is the classifier."""
  devices = jax.devices()[:devices]
  run = passes.make_evaluate(method=method or fake(), num_classes=5, block=block, devices=devices)
  features, labels = (padded(values, len(devices), block) for values in (
      np.asarray(images, np.float32), np.asarray(labels, np.int32)))
  return jax.tree.map(np.asarray, run(*parallel.replicate(
      ({**NETWORK, "carry": carry or {}}, features, labels, context_of(seen), setting), devices)))


def count(images, labels, seen, stop, **changes):
  counts, = evaluated(images, labels, seen, setting_of(stop), **changes).counts
  return counts


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_a_model_that_always_answers_class_2(devices):
  labels = np.repeat(np.arange(5), 7)
  always = np.tile(np.eye(5)[2], (35, 1))
  correct, aware, looked_at = count(always, labels, np.ones(5, bool), 35, devices=devices)
  assert correct.tolist() == [0, 0, 7, 0, 0]
  # Inside its own task: ties of zeros go to the first class of tasks 0 and 2; class 2 wins in task 1.
  assert aware.tolist() == [7, 0, 7, 0, 7]
  assert looked_at.tolist() == [7] * 5


@pytest.mark.parametrize("stop", [1, 4, 5, 17, 35])
@pytest.mark.parametrize("block", [1, 4, 50])
def test_every_row_counts_once_and_padding_never(stop, block):
  rng = np.random.default_rng(0)
  images, labels = rng.normal(size=(35, 5)), rng.integers(0, 5, 35)
  counts = [count(images, labels, np.ones(5, bool), stop, devices=n, block=block) for n in (1, 4)]
  np.testing.assert_array_equal(counts[0], counts[1])
  hits = images.argmax(1) == labels
  np.testing.assert_array_equal(counts[0][0], np.bincount(labels[:stop], hits[:stop], minlength=5))
  np.testing.assert_array_equal(counts[0][2], np.bincount(labels[:stop], minlength=5))


def test_unseen_classes_never_answer():
  images = np.tile([[0, 1, 2, 3, 9.0]], (4, 1))
  correct, aware, _ = count(images, [3] * 4, [True] * 4 + [False], 4)
  assert correct.tolist() == [0, 0, 0, 4, 0] and aware.tolist() == [0, 0, 0, 4, 0]


def test_one_program_for_all_tasks():
  devices = jax.devices()[:2]
  traced = []

  def score(outputs, carry, context):
    traced.append(outputs.logits.shape)
    return outputs.logits

  run = passes.make_evaluate(method=fake(logits=score), num_classes=5, block=4, devices=devices)
  features, labels = np.zeros((40, 5), np.float32), padded(np.repeat(np.arange(5, dtype=np.int32), 7), 2, 4)
  for seen in (2, 4, 5):
    run(*parallel.replicate((NETWORK, features, labels, context_of(np.arange(5) < seen), setting_of(7 * seen)),
                            devices))
  assert len(traced) == 1


@pytest.mark.parametrize("devices", [1, 3])
def test_every_score_counts_by_itself_and_sees_the_carry(devices):
  rng = np.random.default_rng(3)
  images, labels = rng.normal(size=(35, 5)), rng.integers(0, 5, 35)
  weights = rng.normal(size=5).astype(np.float32)
  method = fake(logits=methods.base.logits,
                weighted=lambda outputs, carry, context: outputs.features * carry["weights"][None, :])
  by_score = evaluated(images, labels, np.ones(5, bool), setting_of(35), devices=devices, method=method,
                       carry={"weights": weights}).counts
  assert by_score.shape == (2, 3, 5)
  for counts, scores in zip(by_score, (images, images.astype(np.float32) * weights)):
    np.testing.assert_array_equal(counts[0], np.bincount(labels, scores.argmax(1) == labels, minlength=5))
    within_task = np.where(TASK_OF_CLASS[labels][:, None] == TASK_OF_CLASS, scores, -np.inf)
    np.testing.assert_array_equal(counts[1], np.bincount(labels, within_task.argmax(1) == labels, minlength=5))
    np.testing.assert_array_equal(counts[2], np.bincount(labels, minlength=5))


@pytest.mark.parametrize("devices, block", [(1, 50), (3, 4)])
def test_confidences_and_class_means_against_references(devices, block):
  """Four classes of three tasks are seen; the fifth has an image behind the last row that counts."""
  rng = np.random.default_rng(5)
  images, labels = rng.normal(size=(31, 5)).astype(np.float32), np.append(np.arange(30) % 4, 4)
  seen = np.arange(5) < 4
  inverse = np.asarray([[1, 1, 1, 1, 1], [0.5, 0.5, 2, 2, 1]], np.float32)
  cells = np.asarray([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
  groups = np.asarray([seen, [0, 1, 1, 0, 0]], bool)
  judged = evaluated(images, labels, seen, setting_of(30, inverse=inverse, cells=cells, groups=groups), devices=devices,
                     block=block)
  images, labels = images[:30].astype(np.float64), labels[:30]
  for number, scores in enumerate((images * factors)[:, :4] for factors in inverse):
    probabilities = reference.softmax(scores)
    np.testing.assert_array_equal(judged.predicted[number, :30], probabilities.argmax(axis=1))
    np.testing.assert_allclose(judged.confidence[number, :30], probabilities.max(axis=1), rtol=1e-5)
    assert judged.nll[number, :30].mean() == pytest.approx(reference.nll(scores, labels), rel=1e-5)
    assert judged.brier[number, :30].mean() == pytest.approx(reference.brier(scores, labels), rel=1e-5)
    assert calibration.classwise_error(judged.class_bins[number, :4]) == pytest.approx(
        reference.classwise_error(probabilities, labels), rel=1e-5)
    assert not any(getattr(judged, name)[number, 30:].any() for name in ("predicted", "confidence", "nll", "brier"))
  means = np.stack([images[labels == c].mean(axis=0) for c in range(4)])
  np.testing.assert_allclose(judged.means[:4], means, rtol=1e-5, atol=1e-6)
  away = images - means[labels]
  for cell, within in zip(cells, judged.within):
    np.testing.assert_allclose(within, away[cell[labels]].T @ away[cell[labels]], rtol=1e-4, atol=1e-5)
  nearest = np.square(images[:, None] - means).sum(axis=-1)
  for group, disagreeing in zip(groups, judged.disagreeing):
    among = np.flatnonzero(group)
    differ = among[images[:, among].argmax(axis=1)] != among[nearest[:, among].argmin(axis=1)]
    assert disagreeing == differ[group[labels]].sum() > 0


def test_scores_of_some_rows():
  devices = jax.devices()[:2]
  features = np.random.default_rng(6).normal(size=(16, 5)).astype(np.float32)
  run = passes.make_score(method=fake(), capacity=3, devices=devices)
  scores = np.asarray(run(*parallel.replicate(
      (NETWORK, features, context_of(np.ones(5, bool)), np.int32(4)), devices)))
  np.testing.assert_array_equal(scores, features[4:7])


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4, 9, 20])
def test_features_by_row(devices, size):
  devices = jax.devices()[:devices]
  rng = np.random.default_rng(1)
  images = rng.normal(size=(30, 5))
  rows = np.zeros(20, np.int32)
  rows[:size] = rng.permutation(30)[:size]
  run = passes.make_extract(model=Fake(), prepare=plain, capacity=20, block=4, devices=devices)
  features = np.asarray(run(*parallel.replicate(
      (NETWORK["params"], {}, data_of(images, np.zeros(30)), Pool(rows, np.int32(size))), devices)))
  assert len(features) >= 20
  np.testing.assert_array_equal(features[:size], images[rows[:size]].astype(np.float32))
  assert not features[size:].any()


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4, 13])
def test_a_measure_counts_each_row_of_the_pool_once(devices, size):
  """Rows in any order, blocks that are not full, more devices than blocks."""
  rng, devices = np.random.default_rng(size), jax.devices()[:devices]
  images, rows = rng.normal(size=(20, 5)), rng.permutation(20)[:size]

  def measure(outputs, labels, valid, context):
    hot = (labels[:, None] == jnp.arange(5)[None, :]) & valid[:, None]
    return {"images": jnp.sum(hot, axis=0), "logits": jnp.sum(jnp.where(valid[:, None], outputs.logits, 0.0), axis=0),
            "task": jnp.where(valid, context.task, 0).sum()}

  run = passes.make_measure(model=Fake(), method=fake(), measure=measure, prepare=plain, block=4, devices=devices)
  labels = np.arange(20) % 5
  pool = Pool(np.r_[rows, np.zeros(20 - size)].astype(np.int32), np.int32(size))
  context = context_of([True] * 5)._replace(task=np.int32(3))
  measured = run(*parallel.replicate((NETWORK, data_of(images, labels), pool, context), devices))
  np.testing.assert_array_equal(measured["images"], np.bincount(labels[rows], minlength=5))
  np.testing.assert_allclose(measured["logits"], images[rows].sum(axis=0), rtol=1e-5, atol=1e-6)
  assert int(measured["task"]) == 3 * size


@pytest.mark.parametrize("devices", [1, 3])
def test_a_measure_of_augmented_images_draws_once_for_each(devices):
  """The same in one call and in two, on any number of devices; new draws in another task and another stage."""
  devices = jax.devices()[:devices]
  images, labels, context = np.zeros((20, 5)), np.arange(20) % 5, context_of([True] * 5)
  root = jax.random.key(7)

  def augment(keys, images, sizes):
    del sizes
    return images + jax.vmap(lambda key: jax.random.uniform(key, (5,)))(keys)

  def measure(outputs, labels, valid, context):
    return jnp.sum(jnp.where(valid[:, None], outputs.logits, 0.0), axis=0)

  def total(calls, stage=1, context=context):
    run = passes.make_measure(model=Fake(), method=fake(), measure=measure, prepare=plain, block=4, devices=devices,
                              augment=augment, stage=stage)
    sums, first = [], 0
    for rows in calls:
      pool = Pool(np.r_[rows, np.zeros(20 - len(rows))].astype(np.int32), np.int32(len(rows)))
      sums.append(run(*parallel.replicate(
          (NETWORK, data_of(images, labels), pool, context, root, np.int32(first)), devices)))
      first += len(rows)
    return np.sum(sums, axis=0)

  rows = np.random.default_rng(3).permutation(20)[:13]
  key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(seeding.of_stage(root, 1), seeding.MEASURE), 0), 0)
  drawn = np.sum([jax.random.uniform(jax.random.fold_in(key, place), (5,)) for place in range(13)], axis=0)
  np.testing.assert_allclose(total([rows]), drawn, rtol=1e-5)
  np.testing.assert_allclose(total([rows[:8], rows[8:]]), drawn, rtol=1e-5)
  for other in (total([rows], stage=2), total([rows], context=context._replace(task=np.int32(1)))):
    assert not np.allclose(other, drawn, rtol=1e-3)
