"""The real train step on chosen devices: the recorded trajectory, and a ResNet-32; for tests and on_device.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny
import trajectory

from gr_jax import methods, models, scenario, seeding
from gr_jax.data import augment
from gr_jax.devices import parallel
from gr_jax.methods.base import TaskFacts
from gr_jax.models import heads as classifier
from gr_jax.scenario import plan
from gr_jax.training import step
from gr_jax.training.state import TrainState

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
def trajectory_epoch(devices):
  tx = step.make_optimizer(momentum=TRAJECTORY.momentum, weight_decay=TRAJECTORY.weight_decay)
  train_step = step.make_train_step(
      model=tiny.TinyBackbone(8), method=method(), tx=tx, axis_name=parallel.AXIS)
  return tx, step.make_epoch(train_step, batch_size=16, devices=devices, order=in_order)


def facts_of(task, number):
  return TaskFacts(
      task=np.int32(number), old=task.old, new=task.new, class_counts=task.class_counts.astype(np.float32),
      lost=task.lost.astype(np.float32), attenuation=np.float32(task.attenuation),
      distillation_weight=np.float32(task.distillation_weight))


def follow_trajectory(number, devices, tolerance):
  """Runs a recorded task (from 0) and asserts every loss, ratio and parameter of every step; the largest error."""
  tx, run = trajectory_epoch(tuple(devices))
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
  seen, largest = task.old | task.new, 0.0
  for i in range(steps):
    state, metrics = run(state, teacher, facts, data, pool, root, *everywhere(
        (np.int32(0), np.int32(i), np.int32(i + 1), np.float32(TRAJECTORY.learning_rate))))

    def close(found, recorded, i=i):
      nonlocal largest
      np.testing.assert_allclose(found, recorded, rtol=0, atol=tolerance, err_msg=f"step {i}")
      largest = max(largest, float(np.max(np.abs(np.asarray(found) - recorded))))

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
  return largest


def resnet_run(devices, *, compiled_by=None, steps=5, precision="float32"):
  """Steps of a task with a teacher; ResNet-32 with batch norm and CIFAR's augmentation; (state, summed metrics)."""
  axis = parallel.AXIS if compiled_by is None else None
  model = models.make_backbone("resnet32", platform=devices[0].platform, precision=precision, axis_name=axis)
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


def distance(tree, other):
  """||a - b|| / ||a|| over all leaves together."""
  pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(other)))
  return np.sqrt(sum(np.sum(np.square(a - b)) for a, b in pairs) / sum(np.sum(np.square(a)) for a, _ in pairs))


def assert_same_step(run, other, tolerance):
  """Asserts that two of `resnet_run`'s results agree; (largest relative difference of the metrics, of the statistics).

  Losses, statistics and ratios of one step agree to rounding. Gradients deep down move by up to 1e-2 where one
  rounding flips a ReLU (a relative change of 1e-6 in the weights does the same at this size; statistics that are not
  synchronised move them by 0.5), and over several steps that reaches the rest: the rate is small, the bounds wider.
  """
  (state, metrics), (other_state, other_metrics) = run, other
  found = {name: (getattr(metrics, name), getattr(other_metrics, name))
           for name in ("cross_entropy", "distillation", "alpha", "r_old", "r_new", "beta")}
  found["phi"] = state.method.phi, other_state.method.phi
  for name, (one, two) in found.items():
    np.testing.assert_allclose(one, two, rtol=tolerance, err_msg=name)
  statistics = distance(state.batch_stats, other_state.batch_stats)
  assert distance(state.opt_state, other_state.opt_state) < 5e-2
  assert statistics < tolerance
  assert distance(state.params, other_state.params) < 1e-5
  metrics_apart = max(float(np.max(np.abs(one - two) / np.maximum(np.abs(one), 1e-12))) for one, two in found.values())
  return metrics_apart, float(statistics)
