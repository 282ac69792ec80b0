"""One, two and four devices make the same batches: rows, the random key of each image, views and mixed views.

Of an epoch's order as one device draws it; that a program draws the same on several, the runs on several devices show
(test_step.py, tests/methods/test_runs.py).
"""

import functools
import inspect
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax import sampling, scenario
from gr_jax.data import feed, order
from gr_jax.data.arrays import Data, Pool
from gr_jax.devices import parallel
from gr_jax.methods.base import Stage
from gr_jax.scenario import plan
from gr_jax.training import program
from gr_jax.training import step as training_step
from gr_jax.training.state import TrainState

# Three old classes, of which four images each are left, and two new ones.
CONTEXT = plan.make_context(np.asarray([30, 21, 12, 26, 9]), scenario.Task(3, 5), 1, per_class=4)
SIZE, CAPACITY, ROOT = int(CONTEXT.counts.sum()), 64, jax.random.key(3)
# A batch that four devices can share, in groups of four new images and an exemplar too.
EPOCHS, STEPS, BATCH = 2, 2, 40
SAMPLERS = {name: value for name, value in vars(sampling).items() if isinstance(value, sampling.Sampler)}
SAMPLERS["new_and_memory"] = sampling.new_and_memory(4)


def pictures():
  """Data whose images are their rows, and the pool of the stage: some of the rows, sorted by class."""
  chosen = np.random.default_rng(0).permutation(100)[:SIZE].astype(np.int32)
  labels = np.zeros(100, np.int32)
  labels[chosen] = np.repeat(np.arange(5), CONTEXT.counts.astype(int))
  return Data(np.arange(100, dtype=np.float32)[:, None], np.ones((100, 2), np.int32), labels), Pool(
      np.pad(chosen, (0, CAPACITY - SIZE)), np.int32(SIZE))


@pytest.fixture(scope="module")
def epochs():
  """Name of a sampler -> what it prepares for the epochs: no device has a part in it, and it takes long to compile."""
  prepare = jax.jit(order.epoch_of, static_argnums=(0, 4))
  return {name: jax.tree.map(lambda *leaves: np.stack(leaves), *(
      prepare(sampler, pictures()[1], ROOT, CONTEXT, 0, epoch) for epoch in range(EPOCHS)))
          for name, sampler in SAMPLERS.items()}


# Draws for all samplers at once, so that there is one program for each number of devices.
TOGETHER = sampling.EVERY_IMAGE._replace(
    pick=lambda epoch, places: {name: sampler.pick(epoch[name], places) for name, sampler in SAMPLERS.items()})


def record(state, teacher, context, data, batch):
  """In place of a train step: the state's params are what each step gets, gathered from all devices."""
  keys, views = training_step._inputs(
      data, batch._replace(rows=batch.rows["EVERY_IMAGE"]),
      lambda keys, images, sizes: (jax.random.key_data(keys), images), parallel.AXIS)
  mixed, targets = training_step._mixed(
      views, data.labels[batch.rows["EVERY_IMAGE"]], batch.key, 1.0, 5, parallel.AXIS)
  seen = {**batch.rows, "keys": keys, "views": views, "mixed": mixed, "targets": targets}
  seen = jax.lax.all_gather(seen, parallel.AXIS, tiled=True)
  params = {name: state.params[name].at[state.step].set(values) for name, values in seen.items()}
  return state.replace(step=state.step + 1, params=params), training_step.StepMetrics(jnp.ones(()), {}, {})


def nothing_recorded():
  shapes = {**dict.fromkeys(SAMPLERS, ((), np.int32)), "keys": ((2,), np.uint32), "views": ((1,), np.float32),
            "mixed": ((1,), np.float32), "targets": ((5,), np.float32)}
  params = {name: np.zeros((EPOCHS * STEPS, BATCH, *shape), dtype) for name, (shape, dtype) in shapes.items()}
  return TrainState(step=np.int32(0), params=params, batch_stats={}, opt_state=(), rule=())


def recorded(count):
  """What the steps of the train program get on `count` devices, by name: [steps, batch, ...]."""
  devices, (data, pool), stage = jax.devices()[:count], pictures(), Stage("train", {}, sampler=TOGETHER)
  run = program.make_program(record, stage=stage, number=0, batch_size=BATCH, devices=devices)
  on_devices = functools.partial(parallel.replicate, devices=devices)
  state, context, data, pool, root = map(on_devices, (nothing_recorded(), CONTEXT, data, pool, ROOT))
  for epoch in range(EPOCHS):
    # Each epoch in two calls, as after a resume.
    for first in range(STEPS):
      window = program.Window(pool, root, *on_devices((np.int32(epoch), np.int32(first), np.int32(first + 1))))
      state, _ = run(state, None, context, data, window)
  return jax.tree.map(np.asarray, state.params)


def transferred(sampler, count):
  """The rows whose pictures are sent to `count` devices; [steps, batch]."""
  devices, (data, pool) = jax.devices()[:count], pictures()
  planned = plan.StagePlan(
      number=1, task=scenario.Task(3, 5), index=0, name="train", context=CONTEXT, size=SIZE, batch_size=BATCH,
      epochs=EPOCHS, steps_per_epoch=STEPS, first_step=0, stop_step=EPOCHS * STEPS)
  fed = feed.travelling(feed.gather(data, functools.partial(parallel.shares, devices)), samplers=[sampler],
                        steps=STEPS, devices=devices)
  return np.concatenate([
      np.asarray(inputs.data.images).reshape(count, STEPS, BATCH // count).swapaxes(0, 1).reshape(STEPS, BATCH)
      for _, inputs in fed(planned, pool, ROOT, plan.chunks(planned, steps_per_call=STEPS))])


def test_all_samplers_are_tried():
  made = [name for name, value in vars(sampling).items() if inspect.isfunction(value)
          and inspect.signature(value).return_annotation == "Sampler"]
  assert made == ["new_and_memory"] and set(SAMPLERS) == {"EVERY_IMAGE", "CLASS_BALANCED", *made}


def test_devices_share_the_batches_of_one(epochs, monkeypatch):
  """To the bit: rows, keys and views; of mixed views the share and the partners too, which come from all devices."""
  monkeypatch.setattr(order, "epoch_of", lambda sampler, pool, root, context, stage, epoch: jax.tree.map(
      lambda leaf: jnp.asarray(leaf)[epoch], epochs))
  one = recorded(1)
  for count in (2, 4):
    for name, values in recorded(count).items():
      np.testing.assert_array_equal(values, one[name], name)
  for name in SAMPLERS:
    assert len({tuple(rows) for rows in one[name].tolist()}) == EPOCHS * STEPS, name
  np.testing.assert_array_equal(one["views"][..., 0], one["EVERY_IMAGE"])
  # Every place has its own key in every step, and images are mixed with others.
  assert len(np.unique(one["keys"].reshape(-1, 2), axis=0)) == EPOCHS * STEPS * BATCH
  assert (one["mixed"] != one["views"]).any() and (one["targets"].max(axis=-1) < 1).any()


@pytest.mark.parametrize("name", SAMPLERS)
def test_devices_are_sent_the_batches_of_one(name, epochs, monkeypatch):
  """Where pictures travel."""
  monkeypatch.setattr(feed, "epoch_of", lambda sampler, pool, root, context, stage, epoch: jax.tree.map(
      lambda leaf: jnp.asarray(leaf)[epoch], epochs[name]))
  sampler, places = SAMPLERS[name], np.arange(STEPS * BATCH).reshape(STEPS, BATCH)
  of_epoch = [jax.tree.map(operator.itemgetter(epoch), epochs[name]) for epoch in range(EPOCHS)]
  rows = np.concatenate([sampler.pick(arrays, places) for arrays in of_epoch])
  for count in (1, 2, 4):
    np.testing.assert_array_equal(transferred(sampler, count), rows)
