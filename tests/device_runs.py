"""The real train step on chosen devices: the recorded trajectory, and a ResNet-32; for tests and on_device.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny
import trajectory

from gr_jax import methods, models, optimizer, sampling, scenario, seeding
from gr_jax.data import augment
from gr_jax.data.arrays import Data, Pool
from gr_jax.data.order import epoch_of
from gr_jax.devices import parallel
from gr_jax.methods.base import Context
from gr_jax.models import heads
from gr_jax.scenario import plan
from gr_jax.training import program, step
from gr_jax.training.state import TrainState

TRAJECTORY = trajectory.load()
RATE = 1e-4
# Stands in for the shuffled order: batch i is rows i*batch .. of the pool.
IN_ORDER = sampling.EVERY_IMAGE._replace(prepare=lambda pool, key, context: (pool.rows, pool.size))


def method(**options):
  """Gradient Reweighting, at its defaults but for `options`."""
  return methods.make("gr", options, memory=20)


def initial_state(params, tx, stage, *, batch_stats=None, steps=0):
  """The state before the first step of a stage, in which `steps` steps of the run are done."""
  return TrainState(
      step=jnp.int32(steps), params=params, batch_stats={} if batch_stats is None else batch_stats,
      opt_state=tx.init(step.trained_params(params, stage)), rule=stage.rule.init(params["classifier"]))


@functools.cache
def trajectory_program(devices):
  """(optimizer, stage, program) of the recording."""
  chosen = method()
  stage = chosen.stages[0]._replace(sampler=IN_ORDER)
  tx = optimizer.sgd((TRAJECTORY.learning_rate,), momentum=TRAJECTORY.momentum, weight_decay=TRAJECTORY.weight_decay)
  train_step = step.make_train_step(
      model=tiny.TinyBackbone(8), method=chosen, stage=stage, tx=tx, axis_name=parallel.AXIS)
  return tx, stage, program.make_program(
      train_step, stage=stage, number=0, batch_size=16, devices=devices)


def context_of(task, number):
  """What the step knows of a recorded task; attenuation and weight follow from the recorded original counts."""
  classes = np.arange(task.old.size)
  task_of_class = np.where(task.old, 0, np.where(task.new, number, number + 1))
  assert (np.flatnonzero(task.old | task.new) == classes[:(task.old | task.new).sum()]).all()
  return Context(
      task=np.int32(number), old=task.old, new=task.new, counts=task.class_counts.astype(np.float32),
      original=np.where(task.old | task.new, TRAJECTORY.counts_original, 0).astype(np.float32),
      lost=task.lost.astype(np.float32), task_of_class=task_of_class.astype(np.int32))


def follow_trajectory(number, devices, tolerance):
  """Runs a recorded task (from 0) and asserts every loss, ratio and parameter of every step; the largest error."""
  tx, stage, run = trajectory_program(tuple(devices))
  replicate = functools.partial(parallel.replicate, devices=devices)
  task = TRAJECTORY.tasks[number]
  steps, batch = task.labels.shape
  state = replicate(initial_state(jax.tree.map(jnp.asarray, task.initial), tx, stage))
  teacher = replicate({"params": TRAJECTORY.teacher(number), "batch_stats": {}}) if number else None
  rows = np.arange(steps * batch, dtype=np.int32)
  data = replicate(Data(task.x.reshape(steps * batch, -1), np.ones((steps * batch, 2), np.int32),
                        task.labels.reshape(-1).astype(np.int32)))
  pool = replicate(Pool(rows, np.int32(len(rows))))
  context, root = replicate(context_of(task, number)), replicate(jax.random.key(0))
  seen, largest = task.old | task.new, 0.0
  for i in range(steps):
    state, metrics = run(state, teacher, context, data, program.Window(
        pool, root, *replicate((np.int32(0), np.int32(i), np.int32(i + 1)))))

    def close(computed, recorded, i=i):
      nonlocal largest
      np.testing.assert_allclose(computed, recorded, rtol=0, atol=tolerance, err_msg=f"step {i}")
      largest = max(largest, float(np.max(np.abs(np.asarray(computed) - recorded))))

    close(metrics.losses["cross_entropy"], task.cross_entropy[i])
    close(metrics.losses["distillation"], task.distillation[i] if number else 0.0)
    close(state.rule.phi, task.phi[i])
    close(state.rule.ratios.column, task.column[i])
    recorded = task.after(i)
    for name in ("kernel", "bias"):
      close(state.params["backbone"][name], recorded["backbone"][name])
      close(state.params["classifier"][name][..., seen], recorded["classifier"][name][..., seen])
    # Columns of unseen classes stay what they were, to the bit.
    np.testing.assert_array_equal(state.params["classifier"]["kernel"][:, ~seen],
                                  task.initial["classifier"]["kernel"][:, ~seen])
  assert int(state.step) == steps
  return largest


def resnet_run(devices, *, compiled_by=None, steps=5, precision="float32", name="resnet32"):
  """Steps of a task with a teacher; a ResNet with batch norm and CIFAR's augmentation; (state, summed metrics)."""
  axis = parallel.AXIS if compiled_by is None else None
  model = models.make_backbone(name, platform=devices[0].platform, precision=precision, axis_name=axis)
  view = {"image_size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}
  chosen, tx = method(), optimizer.sgd((RATE,), momentum=0.9, weight_decay=5e-4)
  stage, = chosen.stages
  train_step = step.make_train_step(
      model=model, method=chosen, stage=stage, tx=tx, axis_name=axis,
      augment=augment.make_augment("pad_resized_crop_flip", **view))
  rng = np.random.default_rng(0)
  count, classes, batch = 40, 6, 16
  data = Data(rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8), np.full((count, 2), 16, np.int32),
              rng.integers(0, 4, count).astype(np.int32))
  context = plan.make_context(np.asarray([30, 20, 10, 5, 4, 4]), scenario.Task(2, 4), 1, per_class=4)
  variables = jax.jit(lambda: model.init(jax.random.key(1), jnp.zeros((1, 16, 16, 3)), train=False))()

  def initial(seed):
    head = heads.draw_columns(jax.random.key(seed), heads.init(64, classes), context.seen)
    return {"backbone": variables["params"], "classifier": head}

  teacher = {"params": initial(3), "batch_stats": variables["batch_stats"]}
  state = initial_state(initial(2), tx, stage, batch_stats=variables["batch_stats"], steps=7)
  root, pool = jax.random.key(0), Pool(np.arange(count, dtype=np.int32), np.int32(count))
  if compiled_by is None:
    replicate = functools.partial(parallel.replicate, devices=devices)
    run = program.make_program(train_step, stage=stage, number=0, batch_size=batch, devices=devices)
    return run(*replicate((jax.tree.map(jnp.copy, state), teacher, context, data,
                           program.Window(pool, root, np.int32(0), np.int32(0), np.int32(steps)))))
  one_step = compiled_by(train_step)
  rows, _ = epoch_of(stage.sampler, pool, root, context, 0, 0)
  sums = None
  for i in range(steps):
    chosen_rows = rows[(i * batch + np.arange(batch)) % count]
    key = seeding.derive(root, 1, state.step, seeding.AUGMENT)
    state, metrics = one_step(state, teacher, context, jax.tree.map(jnp.asarray, data),
                              step.Batch(chosen_rows, key, jnp.int32(0)))
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
  pairs = {name: (metrics.losses[name], other_metrics.losses[name]) for name in ("cross_entropy", "distillation")}
  pairs |= {name: (metrics.reports[name], other_metrics.reports[name]) for name in ("alpha", "r_old", "r_new", "beta")}
  pairs["phi"] = state.rule.phi, other_state.rule.phi
  for name, (one, two) in pairs.items():
    np.testing.assert_allclose(one, two, rtol=tolerance, err_msg=name)
  statistics = distance(state.batch_stats, other_state.batch_stats)
  assert distance(state.opt_state, other_state.opt_state) < 5e-2
  assert statistics < tolerance
  assert distance(state.params, other_state.params) < 1e-5
  metrics_apart = max(float(np.max(np.abs(one - two) / np.maximum(np.abs(one), 1e-12))) for one, two in pairs.values())
  return metrics_apart, float(statistics)
