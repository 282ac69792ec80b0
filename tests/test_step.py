"""The real train step through the real pmap: the recorded trajectory, devices, donation, compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import tiny
import trajectory

from gr_jax import methods, models, parallel, plan, reweighting, scenario, seeding, step
from gr_jax.data import augment
from gr_jax.models import classifier
from gr_jax.state import Outputs, TaskFacts, TrainState

TRAJECTORY = trajectory.load()
RATE = 1e-4


def method(**changes):
  return methods.gradient_reweighting(**{
      "reweighting_rule": "dgr", "prior": True, "distillation": "dakd", "task_ratio": "release",
      "temperature": 2.0, **changes})


def in_order(pool, key):
  """Stands in for the shuffled order: batch i is rows i*batch .. of the pool."""
  del key
  return pool.rows


@functools.cache
def trajectory_epoch(num_devices):
  devices = jax.devices()[:num_devices]
  tx = step.make_optimizer(momentum=TRAJECTORY.momentum, weight_decay=TRAJECTORY.weight_decay)
  train_step = step.make_train_step(
      model=tiny.TinyBackbone(8), method=method(), tx=tx, axis_name=parallel.AXIS)
  return tx, devices, step.make_epoch(train_step, batch_size=16, devices=devices, order=in_order)


def facts_of(task, number):
  return TaskFacts(
      task=np.int32(number), old=task.old, new=task.new, class_counts=task.class_counts.astype(np.float32),
      lost=task.lost.astype(np.float32), attenuation=np.float32(task.attenuation),
      distillation_weight=np.float32(task.distillation_weight))


@pytest.mark.parametrize("num_devices", [1, 2, 4])
@pytest.mark.parametrize("number", range(len(TRAJECTORY.tasks)))
def test_recorded_trajectory(number, num_devices):
  tx, devices, run = trajectory_epoch(num_devices)
  everywhere = functools.partial(parallel.replicate, devices=devices)
  task = TRAJECTORY.tasks[number]
  steps, batch = task.labels.shape
  params = jax.tree.map(jnp.asarray, task.initial)
  state = everywhere(TrainState(
      step=jnp.int32(0), params=params, batch_stats={}, opt_state=tx.init(params),
      method=method().init(len(task.class_counts))))
  teacher = everywhere({"params": TRAJECTORY.teacher(number), "batch_stats": {}}) if number else None
  rows = np.arange(steps * batch, dtype=np.int32)
  data = everywhere(step.Data(task.x.reshape(steps * batch, -1), np.ones((steps * batch, 2), np.int32),
                              task.labels.reshape(-1).astype(np.int32)))
  pool = everywhere(step.Pool(rows, np.int32(len(rows))))
  facts, root = everywhere(facts_of(task, number)), everywhere(jax.random.key(0))
  seen = task.old | task.new
  for i in range(steps):
    state, metrics = run(state, teacher, facts, data, pool, root, *everywhere(
        (np.int32(0), np.int32(i), np.int32(i + 1), np.float32(TRAJECTORY.learning_rate))))
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5, err_msg=f"step {i}")
    close(metrics.cross_entropy, task.cross_entropy[i])
    close(metrics.distillation, task.distillation[i] if number else 0.0)
    close(state.method.phi, task.phi[i])
    close(state.method.column, task.column[i])
    recorded = task.after(i)
    for name in ("kernel", "bias"):
      close(state.params["backbone"][name], recorded["backbone"][name])
      close(state.params["classifier"][name][..., seen], recorded["classifier"][name][..., seen])
    # Columns of unseen classes stay what they were, to the bit.
    np.testing.assert_array_equal(state.params["classifier"]["kernel"][:, ~seen],
                                  task.initial["classifier"]["kernel"][:, ~seen])
  assert int(state.step) == steps


def resnet_run(num_devices, *, compiled_by=None, steps=5):
  """Five steps of a task with a teacher; ResNet-32 with batch norm and CIFAR's augmentation."""
  devices = jax.devices()[:num_devices]
  axis = parallel.AXIS if compiled_by is None else None
  model = models.make_backbone("resnet32", platform="cpu", axis_name=axis)
  view = {"image_size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}
  tx = step.make_optimizer(momentum=0.9, weight_decay=5e-4)
  train_step = step.make_train_step(
      model=model, method=method(), tx=tx, axis_name=axis,
      augment=augment.make_augment("pad_resized_crop_flip", **view))
  rng = np.random.default_rng(0)
  count, classes, batch = 40, 6, 16
  data = step.Data(rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8), np.full((count, 2), 16, np.int32),
                   rng.integers(0, 4, count).astype(np.int32))
  counts = np.asarray([30, 20, 10, 5, 4, 4])
  facts = plan.task_facts(counts, scenario.Task(2, 4), 1, per_class=4, weight_scale=0.7, gamma=1.0)
  variables = model.init(jax.random.key(1), jnp.zeros((1, 16, 16, 3)), train=False)

  def initial(seed):
    head = classifier.draw_columns(jax.random.key(seed), classifier.init(64, classes), facts.old | facts.new)
    return {"backbone": variables["params"], "classifier": head}

  params = initial(2)
  teacher = {"params": initial(3), "batch_stats": variables["batch_stats"]}
  state = TrainState(step=jnp.int32(7), params=params, batch_stats=variables["batch_stats"],
                     opt_state=tx.init(params), method=method().init(classes))
  root, pool = jax.random.key(0), step.Pool(np.arange(count, dtype=np.int32), np.int32(count))
  if compiled_by is None:
    everywhere = functools.partial(parallel.replicate, devices=devices)
    run = step.make_epoch(train_step, batch_size=batch, devices=devices)
    return run(*everywhere((jax.tree.map(jnp.copy, state), teacher, facts, data, pool, root, np.int32(0),
                            np.int32(0), np.int32(steps), np.float32(RATE))))
  one_step = compiled_by(train_step)
  rows = step.epoch_order(pool, seeding.derive(root, 1, 0, seeding.ORDER))
  sums = None
  for i in range(steps):
    chosen = rows[(i * batch + np.arange(batch)) % count]
    key = seeding.derive(root, 1, state.step, seeding.AUGMENT)
    state, metrics = one_step(state, teacher, facts, jax.tree.map(jnp.asarray, data), chosen, key,
                              jnp.float32(RATE))
    sums = metrics if sums is None else jax.tree.map(jnp.add, sums, metrics)
  return state, sums


@functools.cache
def one_device(steps):
  return jax.device_get(resnet_run(1, steps=steps))


def distance(tree, other):
  """||a - b|| / ||a|| over all leaves together."""
  pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(other)))
  return np.sqrt(sum(np.sum(np.square(a - b)) for a, b in pairs) / sum(np.sum(np.square(a)) for a, _ in pairs))


# Losses, statistics and ratios of one step agree to rounding. Gradients deep down move by up to 1e-2 where one
# rounding flips a ReLU (a relative change of 1e-6 in the weights does the same at this size; statistics that are not
# synchronised move them by 0.5), and over several steps that reaches the rest: the rate is small, the bounds wider.
@pytest.mark.parametrize("steps, tolerance", [(1, 1e-4), (5, 2e-2)])
@pytest.mark.parametrize("other", ["two devices", "four devices", "jit"])
def test_devices_agree_on_resnet32(other, steps, tolerance):
  run = {"two devices": functools.partial(resnet_run, 2), "four devices": functools.partial(resnet_run, 4),
         "jit": functools.partial(resnet_run, 1, compiled_by=jax.jit)}[other]
  (state, metrics), (other_state, other_metrics) = one_device(steps), jax.device_get(run(steps=steps))
  assert float(metrics.steps) == steps
  for name in ("cross_entropy", "distillation", "alpha", "r_old", "r_new", "beta"):
    np.testing.assert_allclose(
        getattr(metrics, name), getattr(other_metrics, name), rtol=tolerance, err_msg=name)
  np.testing.assert_allclose(state.method.phi, other_state.method.phi, rtol=tolerance)
  assert distance(state.opt_state, other_state.opt_state) < 5e-2
  assert distance(state.batch_stats, other_state.batch_stats) < tolerance
  assert distance(state.params, other_state.params) < 1e-5


def test_state_is_donated_and_teacher_is_not():
  tx, devices, run = trajectory_epoch(2)
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
