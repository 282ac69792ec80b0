"""The compiled program of a stage: many steps in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gr_jax import seeding
from gr_jax.data import order
from gr_jax.data.arrays import Pool
from gr_jax.devices import parallel
from gr_jax.methods.base import Stage
from gr_jax.training.state import TrainState
from gr_jax.training.step import Batch, StepMetrics, metrics_like
from gr_jax.typing import AnyInteger


class Window(NamedTuple):
  """Which steps a call runs: first..stop-1 of an epoch over the rows of `pool`; `root` is jax.random.key(seed)."""
  pool: Pool
  root: jax.Array
  epoch: AnyInteger
  first: AnyInteger
  stop: AnyInteger


def make_run(
    step: Callable[..., tuple[TrainState, StepMetrics]], *, stage: Stage, number: int, batch_size: int,
    num_devices: int, travelling: bool = False) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """The function that runs a window of steps on one of `num_devices` devices.

  Args:
    step: from `make_train_step` with axis_name = parallel.AXIS.
    stage, number: the step's stage, and its index in the method (from 0).
    batch_size: images of a step, over all devices.
    num_devices: that share the batch.
    travelling: `data` holds only this device's share of these steps, batch after batch, and the pool is ignored.
      A stage with a source ignores both.

  Returns:
    run(state, teacher, context, data, window) -> (state, summed metrics). The last batch of an epoch is filled up from
    the start of the epoch's order, so every image is used at least once per epoch (docs/method.md section 6). A step
    with a non-finite loss is the last one: its metrics are summed but its state is discarded, so the state shows what
    became non-finite in the previous step.
  """
  local = batch_size // num_devices

  def run(state, teacher, context, data, window: Window):
    share = jnp.arange(local)
    if travelling or stage.source is not None:
      batch_of = lambda i: i * local + share
    else:
      epoch = order.epoch_of(stage.sampler, window.pool, window.root, context, number, window.epoch)
      places = jax.lax.axis_index(parallel.AXIS) * local + share
      batch_of = lambda i: stage.sampler.pick(epoch, i * batch_size + places)

    def body(carry):
      i, _, state, sums = carry
      key = seeding.derive(window.root, context.task, state.step, seeding.AUGMENT)
      after, metrics = step(state, teacher, context, data, Batch(batch_of(i), key, window.epoch))
      finite = jnp.isfinite(metrics.loss)
      state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
      return i + 1, finite, state, jax.tree.map(jnp.add, sums, metrics)

    _, _, state, sums = jax.lax.while_loop(
        lambda carry: (carry[0] < window.stop) & carry[1], body,
        (window.first, jnp.array(True), state, metrics_like(stage, state.rule)))
    return state, sums

  return run


def make_program(
    step: Callable[..., tuple[TrainState, StepMetrics]], *, stage: Stage, number: int, batch_size: int,
    devices: Sequence[jax.Device], travelling: bool = False
    ) -> functools.partial[tuple[TrainState, StepMetrics]]:
  """`make_run` as one pmapped program over `devices`; donates the state. If pictures travel, data must be split."""
  run = make_run(step, stage=stage, number=number, batch_size=batch_size, num_devices=len(devices),
                 travelling=travelling)
  parted = (3,) if travelling and stage.source is None else ()
  return parallel.spread(run, devices, num_args=5, donate=(0,), parted=parted)
