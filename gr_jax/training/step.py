"""The train step, and the program that runs many of them on the device (METHOD.md sections 4 to 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gr_jax import seeding
from gr_jax.data.arrays import Data, Pool
from gr_jax.devices import parallel
from gr_jax.methods import Method
from gr_jax.methods.base import Outputs, TaskFacts
from gr_jax.models import heads as classifier
from gr_jax.training.state import TrainState


class StepMetrics(NamedTuple):
  """Of one step, or summed over `steps` of them; float32 scalars, but alpha [classes]."""
  steps: jax.Array
  cross_entropy: jax.Array
  distillation: jax.Array
  alpha: jax.Array
  r_old: jax.Array
  r_new: jax.Array
  beta: jax.Array


def make_optimizer(*, momentum: float, weight_decay: float) -> optax.GradientTransformation:
  """SGD's direction: weight decay added to the gradient, then momentum; the step applies the learning rate."""
  return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(decay=momentum))


def make_train_step(
    *, model: nn.Module, method: Method, tx: optax.GradientTransformation,
    augment: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
    axis_name: str | None = None) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Binds what is fixed for a run; returns the pure step.

  Args:
    model: Linen backbone, called (images, train=bool) -> (features [batch, features], maps); batch norm in it
      must carry `axis_name`.
    method: what the losses are and what happens to the classifier's gradient.
    tx: gradient -> direction of descent; sees zeros in place of unseen columns.
    augment: (keys [batch], images [batch, ...], sizes [batch, 2]) -> model inputs; None: the images as they
      are, of any dtype, as float32.
    axis_name: the pmap axis; None outside pmap.

  Returns:
    step(state, teacher, facts, data, batch, key, learning_rate) -> (next state, metrics), where `teacher` is
    {"params", "batch_stats"} of the previous task, best `models.fold_teacher` of it, or None, `batch` [local batch] int32 are this device's
    rows of `data`, and `key` is that of the step. Every result is equal on all devices.
  """
  def inputs(data: Data, batch: jax.Array, key: jax.Array) -> jax.Array:
    images = data.images[batch]
    if augment is None:
      return images.astype(jnp.float32)
    # A key for each place in the global batch: how many devices share it changes nothing.
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch.size
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(batch.size))
    return augment(keys, images, data.sizes[batch])

  def outputs(head: dict, features: jax.Array, maps: tuple) -> Outputs:
    return Outputs(classifier.logits(head, features), features, maps if method.uses_maps else ())

  def run_teacher(teacher: Any, x: jax.Array, seen: jax.Array) -> Outputs:
    variables = {"params": teacher["params"]["backbone"], "batch_stats": teacher["batch_stats"]}
    head = classifier.mask(teacher["params"]["classifier"], seen)
    return jax.lax.stop_gradient(outputs(head, *model.apply(variables, x, train=False)))

  def step(state: TrainState, teacher: Any, facts: TaskFacts, data: Data, batch: jax.Array, key: jax.Array,
           learning_rate: jax.Array) -> tuple[TrainState, StepMetrics]:
    seen = facts.old | facts.new
    x, labels = inputs(data, batch, key), data.labels[batch]
    head = classifier.mask(state.params["classifier"], seen)

    def backbone(params):
      variables = {"params": params, "batch_stats": state.batch_stats}
      found, updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
      features, maps = found
      return (features, maps if method.uses_maps else ()), updated.get("batch_stats", {})

    (features, maps), backward, batch_stats = jax.vjp(
        backbone, state.params["backbone"], has_aux=True)
    student = outputs(head, features, maps)

    # Both losses meet at the outputs, so one pass backward through the backbone serves both.
    ce, pull = jax.value_and_grad(method.cross_entropy)(student, labels, facts)
    ce_grads, kd_grads, kd = classifier.gradient(features, pull.logits), None, jnp.zeros(())
    if teacher is not None:
      kd, kd_pull = jax.value_and_grad(method.distillation)(student, run_teacher(teacher, x, seen), facts)
      kd_grads = classifier.gradient(features, kd_pull.logits)
      pull = jax.tree.map(jnp.add, pull, kd_pull)
    on_features = pull.features + classifier.backward(head, pull.logits)
    backbone_grads, = backward((on_features, pull.maps))

    # Averaged once, before any norm is taken: the norm of a mean is not the mean of the norms.
    mean = (backbone_grads, ce_grads, kd_grads, ce, kd)
    if axis_name is not None:
      mean = jax.lax.pmean(mean, axis_name)
    backbone_grads, ce_grads, kd_grads, ce, kd = mean

    head_grads, method_state, ratios = method.classifier_gradient(state.method, ce_grads, kd_grads, facts)
    taking_part = {"backbone": state.params["backbone"], "classifier": head}
    direction, opt_state = tx.update({"backbone": backbone_grads, "classifier": head_grads},
                                     state.opt_state, taking_part)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
    metrics = StepMetrics(jnp.ones(()), ce, kd, ratios.alpha, ratios.r_old, ratios.r_new,
                          ratios.beta)
    return TrainState(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state,
                      method=method_state), metrics

  return step


def epoch_order(pool: Pool, key: jax.Array) -> jax.Array:
  """The pool's rows, shuffled; [capacity] int32, of which the first `size` count.

  No shape depends on how many rows there are, so no task compiles anything anew.
  """
  present = jnp.arange(pool.rows.size) < pool.size
  draws = jnp.where(present, jax.random.uniform(key, pool.rows.shape), 2.0)
  return pool.rows[jnp.argsort(draws)]


def make_run(
    step: Callable[..., tuple[TrainState, StepMetrics]], *, batch_size: int, num_devices: int,
    order: Callable[[Pool, jax.Array], jax.Array] | None = epoch_order
    ) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """The function that runs steps `first`..`stop`-1 of one epoch on one of `num_devices` devices.

  Args:
    step: of `make_train_step` with axis_name = parallel.AXIS.
    batch_size: global; a multiple of the number of devices.
    num_devices: that share the batch.
    order: (pool, key of the epoch) -> the pool's rows in the order in which the epoch takes them; None: the data are
      this device's own share of these steps, one batch after another, and the pool is not looked at.

  Returns:
    run(state, teacher, facts, data, pool, root, epoch, first, stop, learning_rate) -> (state, summed
    metrics). A batch beyond the pool's size goes on with the first images of the same epoch's order, so every
    image is used at least once an epoch (METHOD.md section 6). A step whose loss is not finite is the last one:
    its metrics are counted, its state is not taken, so the state shows what the step before it has spoilt.
  """
  local = batch_size // num_devices

  def run(state, teacher, facts, data, pool, root, epoch, first, stop, learning_rate):
    share = jnp.arange(local)
    if order is not None:
      rows = order(pool, seeding.derive(root, facts.task, epoch, seeding.ORDER))
      places = jax.lax.axis_index(parallel.AXIS) * local + share

    def body(carry):
      i, _, state, sums = carry
      batch = i * local + share if order is None else rows[(i * batch_size + places) % pool.size]
      key = seeding.derive(root, facts.task, state.step, seeding.AUGMENT)
      after, metrics = step(state, teacher, facts, data, batch, key, learning_rate)
      finite = jnp.isfinite(metrics.cross_entropy + metrics.distillation)
      state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
      return i + 1, finite, state, jax.tree.map(jnp.add, sums, metrics)

    scalar = jnp.zeros(())
    nothing = StepMetrics(scalar, scalar, scalar, jnp.zeros(facts.new.shape), scalar, scalar, scalar)
    _, _, state, sums = jax.lax.while_loop(
        lambda carry: (carry[0] < stop) & carry[1], body, (first, jnp.array(True), state, nothing))
    return state, sums

  return run


def make_epoch(
    step: Callable[..., tuple[TrainState, StepMetrics]], *, batch_size: int, devices: Sequence[jax.Device],
    order: Callable[[Pool, jax.Array], jax.Array] | None = epoch_order
    ) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """`make_run` as one pmapped program over `devices`; the state is donated, data without an order are split."""
  run = make_run(step, batch_size=batch_size, num_devices=len(devices), order=order)
  return parallel.spread(run, devices, num_args=10, donate=(0,), parted=(3,) if order is None else ())
