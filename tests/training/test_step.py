"""The real train step through the real pmap: the recorded trajectory, devices, donation, compilation."""

import functools
import types

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
  context_of,
  distance,
  follow_trajectory,
  initial_state,
  method,
  resnet_run,
  trajectory_program,
)

from gr_jax import losses, methods, models, optimizer, reweighting, sampling, scenario, seeding
from gr_jax.data import order
from gr_jax.data.arrays import Data, Pool
from gr_jax.devices import parallel
from gr_jax.methods.base import Context, Loss, Outputs, Stage
from gr_jax.models import heads
from gr_jax.scenario import plan
from gr_jax.training import program, step
from gr_jax.training.state import TrainState


@pytest.mark.parametrize("num_devices", [1, 2, 4])
@pytest.mark.parametrize("number", range(len(TRAJECTORY.tasks)))
def test_recorded_trajectory(number, num_devices):
  follow_trajectory(number, jax.devices()[:num_devices], 1e-5)


@pytest.mark.parametrize("number", range(len(TRAJECTORY.tasks)))
def test_original_counts_give_the_recorded_attenuation_and_weight(number):
  """The step computes both itself; the trajectory would not show a small error of either."""
  task, context = TRAJECTORY.tasks[number], context_of(TRAJECTORY.tasks[number], number)
  n_old, n_new = context.original[context.old].sum(), context.original[context.new].sum()
  assert float(reweighting.attenuation(n_old, n_new)) == pytest.approx(task.attenuation, rel=1e-6)
  assert float(losses.distillation_weight(n_old, n_new)) == pytest.approx(task.distillation_weight, rel=1e-6)


@functools.cache
def one_device(name, steps):
  return jax.device_get(resnet_run(jax.devices()[:1], steps=steps, name=name))


# Compiled for each number of devices: ResNet-8 takes ten seconds, ResNet-32 half a minute.
@pytest.mark.parametrize("name", ["resnet8", pytest.param("resnet32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("steps, tolerance", [(1, 1e-4), (5, 2e-2)])
@pytest.mark.parametrize("other", [pytest.param("two devices", marks=pytest.mark.slow), "four devices", "jit"])
def test_devices_agree_on_a_resnet(other, steps, tolerance, name):
  run = {"two devices": functools.partial(resnet_run, jax.devices()[:2]),
         "four devices": functools.partial(resnet_run, jax.devices()),
         "jit": functools.partial(resnet_run, jax.devices()[:1], compiled_by=jax.jit)}[other]
  one_device_run = one_device(name, steps)
  assert float(one_device_run[1].steps) == steps
  assert_same_step(one_device_run, jax.device_get(run(steps=steps, name=name)), tolerance)


def test_state_is_donated_and_teacher_is_not():
  devices = tuple(jax.devices()[:2])
  tx, stage, run = trajectory_program(devices)
  replicate = functools.partial(parallel.replicate, devices=devices)
  task = TRAJECTORY.tasks[1]
  params = jax.tree.map(jnp.asarray, task.initial)
  state = replicate(initial_state(params, tx, stage))
  teacher = replicate({"params": TRAJECTORY.teacher(1), "batch_stats": {}})
  data = replicate(Data(task.x[0], np.ones((16, 2), np.int32), task.labels[0].astype(np.int32)))
  window = replicate(program.Window(Pool(np.arange(16, dtype=np.int32), np.int32(16)), jax.random.key(0),
                                    np.int32(0), np.int32(0), np.int32(1)))
  after, _ = run(state, teacher, replicate(context_of(task, 1)), data, window)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(teacher))
  # Unstacked: the result has the very shape of the input.
  assert after.params["classifier"]["kernel"].shape == params["classifier"]["kernel"].shape


@pytest.mark.parametrize("size", [1, 5, 16, 17, 40])
def test_every_image_is_used_at_least_once_an_epoch(size):
  pool = Pool(jnp.asarray(np.r_[np.arange(100, 100 + size), np.zeros(48 - size)], jnp.int32), jnp.int32(size))
  rows = np.asarray(sampling.shuffled(pool.rows, jnp.arange(48) < size, jax.random.key(3)))
  assert sorted(rows[:size]) == list(range(100, 100 + size))
  batch, steps = 16, -(-size // 16)
  used = np.concatenate([rows[(i * batch + np.arange(batch)) % size] for i in range(steps)])
  assert set(used) == set(range(100, 100 + size))
  # What fills the last batch are the first images of the same order.
  np.testing.assert_array_equal(used[size:], np.resize(rows[:size], len(used) - size))


def test_epochs_are_shuffled_differently_and_reproducibly():
  pool = Pool(jnp.arange(30, dtype=jnp.int32), jnp.int32(30))
  places = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 2, 0), (0, 0, 0, 0)]
  orders = [np.asarray(order.epoch_of(sampling.EVERY_IMAGE, pool, jax.random.key(s), types.SimpleNamespace(task=t),
                                      stage, e)[0]) for s, t, stage, e in places]
  np.testing.assert_array_equal(orders[0], orders[-1])
  assert len({rows.tobytes() for rows in orders}) == len(set(places)) == 6
  # The first stage's keys are what they were before there were stages: they are part of what a seed means.
  np.testing.assert_array_equal(
      orders[1], sampling.shuffled(pool.rows, jnp.ones(30, bool),
                                   seeding.derive(jax.random.key(0), 0, 1, seeding.ORDER)))


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
  # Options that give the attenuation 0.6 and the weight 0.9 with these original counts.
  original = (counts + lost).astype(np.float32)
  n_old, n_new = original[old].sum(), original[new].sum()
  chosen = method(reweighting=rule, distillation=distillation, task_ratio=task_ratio, prior=prior,
                  attenuation_gamma=float(-np.log(0.6) * (n_old + n_new) / n_old),
                  distillation_weight=float(0.9 / np.sqrt(n_old / n_new)))
  stage, = chosen.stages
  tx = optimizer.sgd((0.1,), momentum=0.9, weight_decay=1e-2)
  train_step = step.make_train_step(model=tiny.TinyBackbone(d), method=chosen, stage=stage, tx=tx)
  context = Context(np.int32(1), old, new, counts.astype(np.float32), original, lost.astype(np.float32),
                    np.where(old, 0, np.where(new, 1, 2)).astype(np.int32))
  state = initial_state({"backbone": identity, "classifier": head}, tx, stage)
  teacher = ({"params": {"backbone": identity, "classifier": before}, "batch_stats": {}}
             if chosen.uses_teacher else None)
  data = Data(jnp.asarray(x), jnp.ones((batch, 2), jnp.int32), jnp.asarray(labels))
  after, metrics = jax.jit(train_step)(state, teacher, context, data,
                                       step.Batch(jnp.arange(batch), jax.random.key(0), jnp.int32(0)))
  features = np.maximum(x.astype(np.float64) + 10, 0)
  expected = oracle.linear_step(
      oracle.start(head["kernel"], head["bias"]),
      oracle.LinearTask(counts, old, new, lost, 0.6, 0.9, distillation=distillation, reweighting=rule,
                        task_ratio=task_ratio, prior=prior, learning_rate=0.1, weight_decay=1e-2),
      features, labels, oracle.linear_logits(features, before["kernel"], before["bias"]))
  np.testing.assert_allclose(metrics.losses["cross_entropy"], expected.cross_entropy, rtol=2e-5)
  np.testing.assert_allclose(metrics.losses.get("distillation", 0.0), expected.distillation, rtol=2e-5, atol=1e-6)
  assert ("distillation" in metrics.losses) == (distillation != "none")
  np.testing.assert_allclose(metrics.loss, expected.cross_entropy + expected.distillation, rtol=2e-5)
  np.testing.assert_allclose(after.rule.phi, expected.phi, rtol=2e-4, atol=1e-6)
  np.testing.assert_allclose(after.rule.ratios.column, expected.column, rtol=2e-4, atol=1e-6)
  np.testing.assert_allclose(metrics.reports["beta"], expected.beta, rtol=2e-4)
  np.testing.assert_allclose(after.params["classifier"]["kernel"], expected.kernel, rtol=2e-4, atol=2e-4)
  np.testing.assert_allclose(after.params["classifier"]["bias"], expected.bias, rtol=2e-4, atol=2e-4)
  np.testing.assert_array_equal(after.params["classifier"]["kernel"][:, 5:], head["kernel"][:, 5:])


def test_a_method_may_pull_on_features_and_stage_maps():
  """The step's one backward pass against autodiff through the whole network."""
  model = models.make_backbone("resnet8", platform="cpu", maps=True)
  rng = np.random.default_rng(2)
  images = jnp.asarray(rng.normal(size=(6, 8, 8, 3)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 4, 6), jnp.int32)
  variables = model.init(jax.random.key(0), images, train=False)
  context = plan.make_context(np.asarray([9, 8, 7, 6]), scenario.Task(2, 4), 1, per_class=4)
  head = heads.draw_columns(jax.random.key(1), heads.init(64, 4), np.ones(4, bool))
  before = {"params": {"backbone": jax.tree.map(lambda leaf: 1.1 * leaf, variables["params"]), "classifier": head},
            "batch_stats": variables["batch_stats"]}

  def cross_entropy(student, teacher, labels, context):
    del teacher, context
    log_probabilities = jax.nn.log_softmax(student.logits)
    return -jnp.mean(log_probabilities[jnp.arange(6), labels]) + 0.1 * jnp.mean(jnp.square(student.features))

  def distillation(student, teacher, labels, context):
    del labels, context
    return sum(jnp.mean(jnp.square(s - t)) for s, t in zip(student.maps, teacher.maps, strict=True))

  stage = Stage("pull", {"cross_entropy": Loss(cross_entropy), "distillation": Loss(distillation, teacher=True)})
  pulling = methods.Method("pulling", (stage,), heads.linear(), {"logits": methods.base.logits}, uses_maps=True)
  tx = optax.with_extra_args_support(optax.scale(-1.0))
  params = {"backbone": variables["params"], "classifier": head}
  state = TrainState(jnp.int32(0), params, variables["batch_stats"], tx.init(params), ())
  train_step = step.make_train_step(model=model, method=pulling, stage=stage, tx=tx)
  data = Data(images, jnp.ones((6, 2), jnp.int32), labels)
  after, metrics = jax.jit(train_step)(state, before, context, data,
                                       step.Batch(jnp.arange(6), jax.random.key(0), jnp.int32(0)))
  assert float(metrics.losses["distillation"]) > 1e-3

  def whole(params):
    def run(params, stats, **options):
      applied = model.apply({"params": params["backbone"], "batch_stats": stats}, images, **options)
      (features, maps), _ = applied if options.get("mutable") else (applied, None)
      logits = features @ params["classifier"]["kernel"] + params["classifier"]["bias"][None, :]
      return Outputs(logits, logits, features, maps)
    student = run(params, variables["batch_stats"], train=True, mutable=["batch_stats"])
    teacher = run(before["params"], before["batch_stats"], train=False)
    return (cross_entropy(student, None, labels, context)
            + distillation(student, teacher, labels, context))

  expected = jax.jit(jax.grad(whole))(params)
  gradient = jax.tree.map(jnp.subtract, params, after.params)
  assert distance(expected, gradient) < 1e-5
