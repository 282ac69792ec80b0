"""The real train step through the real pmap: the recorded trajectory, devices, donation, compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import tiny
from device_runs import (
  TRAJECTORY,
  assert_same_step,
  distance,
  facts_of,
  follow_trajectory,
  method,
  resnet_run,
  trajectory_epoch,
)

from gr_jax import methods, models, reweighting, scenario, seeding
from gr_jax.devices import parallel
from gr_jax.methods.base import Outputs, TaskFacts
from gr_jax.models import heads as classifier
from gr_jax.scenario import plan
from gr_jax.training import step
from gr_jax.training.state import TrainState


@pytest.mark.parametrize("num_devices", [1, 2, 4])
@pytest.mark.parametrize("number", range(len(TRAJECTORY.tasks)))
def test_recorded_trajectory(number, num_devices):
  follow_trajectory(number, jax.devices()[:num_devices], 1e-5)


@functools.cache
def one_device(steps):
  return jax.device_get(resnet_run(jax.devices()[:1], steps=steps))


@pytest.mark.parametrize("steps, tolerance", [(1, 1e-4), (5, 2e-2)])
@pytest.mark.parametrize("other", ["two devices", "four devices", "jit"])
def test_devices_agree_on_resnet32(other, steps, tolerance):
  run = {"two devices": functools.partial(resnet_run, jax.devices()[:2]),
         "four devices": functools.partial(resnet_run, jax.devices()),
         "jit": functools.partial(resnet_run, jax.devices()[:1], compiled_by=jax.jit)}[other]
  found = one_device(steps)
  assert float(found[1].steps) == steps
  assert_same_step(found, jax.device_get(run(steps=steps)), tolerance)


def test_state_is_donated_and_teacher_is_not():
  devices = tuple(jax.devices()[:2])
  tx, run = trajectory_epoch(devices)
  everywhere = functools.partial(parallel.replicate, devices=devices)
  task = TRAJECTORY.tasks[1]
  params = jax.tree.map(jnp.asarray, task.initial)
  state = everywhere(TrainState(jnp.int32(0), params, {}, tx.init(params), method().init(10)))
  teacher = everywhere({"params": TRAJECTORY.teacher(1), "batch_stats": {}})
  data = everywhere(step.Data(task.x[0], np.ones((16, 2), np.int32), task.labels[0].astype(np.int32)))
  pool = everywhere(step.Pool(np.arange(16, dtype=np.int32), np.int32(16)))
  after, _ = run(state, teacher, everywhere(facts_of(task, 1)), data, pool, everywhere(jax.random.key(0)),
                 *everywhere((np.int32(0), np.int32(0), np.int32(1), np.float32(0.1))))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(teacher))
  # Unstacked: the result has the very shape of the input.
  assert after.params["classifier"]["kernel"].shape == params["classifier"]["kernel"].shape


@pytest.mark.parametrize("size", [1, 5, 16, 17, 40])
def test_every_image_is_used_at_least_once_an_epoch(size):
  pool = step.Pool(jnp.asarray(np.r_[np.arange(100, 100 + size), np.zeros(48 - size)], jnp.int32),
                   jnp.int32(size))
  rows = np.asarray(step.epoch_order(pool, jax.random.key(3)))
  assert sorted(rows[:size]) == list(range(100, 100 + size))
  batch, steps = 16, -(-size // 16)
  used = np.concatenate([rows[(i * batch + np.arange(batch)) % size] for i in range(steps)])
  assert set(used) == set(range(100, 100 + size))
  # What fills the last batch are the first images of the same order.
  np.testing.assert_array_equal(used[size:], np.resize(rows[:size], len(used) - size))


def test_epochs_are_shuffled_differently_and_reproducibly():
  pool = step.Pool(jnp.arange(30, dtype=jnp.int32), jnp.int32(30))
  orders = [np.asarray(step.epoch_order(pool, seeding.derive(jax.random.key(s), t, e, seeding.ORDER)))
            for s, t, e in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]]
  np.testing.assert_array_equal(orders[0], orders[4])
  assert len({order.tobytes() for order in orders}) == 4


@pytest.mark.parametrize("rule, distillation, task_ratio, prior", [
    ("dgr", "dakd", "release", True), ("dgr", "dakd", "symmetric", True), ("dgr", "kd", "release", False),
    ("dgr", "none", "release", True), ("class", "dakd", "release", True), ("class", "none", "release", False),
    ("none", "kd", "release", False), ("none", "none", "release", True)])
def test_switches_against_the_oracle(rule, distillation, task_ratio, prior):
  """One step of a later task on a linear classifier over given features, all switches."""
  rng = np.random.default_rng(5)
  d, classes, batch = 6, 7, 12
  old, new = np.arange(classes) < 3, (np.arange(classes) >= 3) & (np.arange(classes) < 5)
  x = rng.normal(size=(batch, d)).astype(np.float32)
  labels = rng.integers(0, 5, batch).astype(np.int32)
  counts, lost = np.asarray([4, 4, 3, 50, 20, 0, 0]), np.asarray([60, 10, 0, 0, 0, 0, 0])
  head = {"kernel": rng.normal(size=(d, classes)).astype(np.float32),
          "bias": rng.normal(size=classes).astype(np.float32)}
  before = {"kernel": rng.normal(size=(d, classes)).astype(np.float32),
            "bias": rng.normal(size=classes).astype(np.float32)}
  identity = {"kernel": np.eye(d, dtype=np.float32), "bias": np.full(d, 10, np.float32)}
  chosen = method(reweighting_rule=rule, distillation=distillation, task_ratio=task_ratio, prior=prior)
  tx = step.make_optimizer(momentum=0.9, weight_decay=1e-2)
  train_step = step.make_train_step(model=tiny.TinyBackbone(d), method=chosen, tx=tx)
  facts = TaskFacts(np.int32(1), old, new, counts.astype(np.float32), lost.astype(np.float32),
                    np.float32(0.6), np.float32(0.9))
  params = {"backbone": identity, "classifier": head}
  state = TrainState(jnp.int32(0), params, {}, tx.init(params), chosen.init(classes))
  teacher = ({"params": {"backbone": identity, "classifier": before}, "batch_stats": {}}
             if chosen.uses_teacher else None)
  data = step.Data(jnp.asarray(x), jnp.ones((batch, 2), jnp.int32), jnp.asarray(labels))
  after, metrics = jax.jit(train_step)(state, teacher, facts, data, jnp.arange(batch), jax.random.key(0),
                                       jnp.float32(0.1))
  features = np.maximum(x.astype(np.float64) + 10, 0)
  expected = oracle.linear_step(
      oracle.start(head["kernel"], head["bias"]),
      oracle.LinearTask(counts, old, new, lost, 0.6, 0.9, distillation=distillation, reweighting=rule,
                        task_ratio=task_ratio, prior=prior, learning_rate=0.1, weight_decay=1e-2),
      features, labels, oracle.linear_logits(features, before["kernel"], before["bias"]))
  np.testing.assert_allclose(metrics.cross_entropy, expected.cross_entropy, rtol=2e-5)
  np.testing.assert_allclose(metrics.distillation, expected.distillation, rtol=2e-5, atol=1e-6)
  np.testing.assert_allclose(after.method.phi, expected.phi, rtol=2e-4, atol=1e-6)
  np.testing.assert_allclose(after.method.column, expected.column, rtol=2e-4, atol=1e-6)
  np.testing.assert_allclose(metrics.beta, expected.beta, rtol=2e-4)
  np.testing.assert_allclose(after.params["classifier"]["kernel"], expected.kernel, rtol=2e-4, atol=2e-4)
  np.testing.assert_allclose(after.params["classifier"]["bias"], expected.bias, rtol=2e-4, atol=2e-4)
  np.testing.assert_array_equal(after.params["classifier"]["kernel"][:, 5:], head["kernel"][:, 5:])


def test_a_method_may_pull_on_features_and_stage_maps():
  """The step's one backward pass against autodiff through the whole network."""
  model = models.make_backbone("resnet8", platform="cpu")
  rng = np.random.default_rng(2)
  images = jnp.asarray(rng.normal(size=(6, 8, 8, 3)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 4, 6), jnp.int32)
  variables = model.init(jax.random.key(0), images, train=False)
  facts = plan.task_facts(np.asarray([9, 8, 7, 6]), scenario.Task(2, 4), 1, per_class=4, weight_scale=0.7, gamma=1.0)
  head = classifier.draw_columns(jax.random.key(1), classifier.init(64, 4), np.ones(4, bool))
  before = {"params": {"backbone": jax.tree.map(lambda leaf: 1.1 * leaf, variables["params"]), "classifier": head},
            "batch_stats": variables["batch_stats"]}

  def cross_entropy(student, labels, facts):
    del facts
    log_probabilities = jax.nn.log_softmax(student.logits)
    return -jnp.mean(log_probabilities[jnp.arange(6), labels]) + 0.1 * jnp.mean(jnp.square(student.features))

  def distillation(student, teacher, facts):
    del facts
    return sum(jnp.mean(jnp.square(s - t)) for s, t in zip(student.maps, teacher.maps))

  def add(state, ce_grads, kd_grads, facts):
    del facts
    ones, one = jnp.ones(4), jnp.ones(())
    return jax.tree.map(jnp.add, ce_grads, kd_grads), state, reweighting.Ratios(ones, ones, one, one, one)

  pulling = methods.Method("pulling", True, True, reweighting.init, cross_entropy, distillation, add)
  tx = optax.identity()
  params = {"backbone": variables["params"], "classifier": head}
  state = TrainState(jnp.int32(0), params, variables["batch_stats"], tx.init(params), pulling.init(4))
  train_step = step.make_train_step(model=model, method=pulling, tx=tx)
  data = step.Data(images, jnp.ones((6, 2), jnp.int32), labels)
  after, _ = jax.jit(train_step)(state, before, facts, data, jnp.arange(6), jax.random.key(0), jnp.float32(1.0))

  def whole(params):
    def run(params, stats, **options):
      found = model.apply({"params": params["backbone"], "batch_stats": stats}, images, **options)
      (features, maps), _ = found if options.get("mutable") else (found, None)
      return Outputs(features @ params["classifier"]["kernel"] + params["classifier"]["bias"], features, maps)
    student = run(params, variables["batch_stats"], train=True, mutable=["batch_stats"])
    teacher = run(before["params"], before["batch_stats"], train=False)
    return cross_entropy(student, labels, facts) + distillation(student, teacher, facts)

  expected = jax.jit(jax.grad(whole))(params)
  found = jax.tree.map(jnp.subtract, params, after.params)
  assert distance(expected, found) < 1e-5
