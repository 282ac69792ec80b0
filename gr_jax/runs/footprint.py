"""What a run keeps from one task to the next: pictures and parameters, so that methods are compared at equal memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gr_jax.methods.base import NEAREST_MEAN
from gr_jax.training import networks
from gr_jax.training.experiment import Experiment

_MEGABYTE = 10**6
_FLOAT32_BYTES = 4

# Of a model's parameters, those that every method has: one backbone and one head.
_COMMON = ("backbone", "classifier")


def footprint(experiment: Experiment, tasks_done: int, exemplars: Sequence[Sequence[int]]) -> dict[str, Any]:
  """What is kept after a task.

  Args:
    experiment: of the run.
    tasks_done: finished tasks.
    exemplars: rows kept of each seen class, without the method's held-out images.

  Returns:
    exemplars: images kept, held-out images of the method included; a method that trains on all images of all seen
      classes keeps them all.
    image_megabytes: of these images as stored: uint8, side x side x channels.
    parameters: of one backbone and one head.
    extra_parameters: all others that the method keeps for later tasks, such as class means, or the further backbones
      that its first score needs after these tasks.
    extra_megabytes: of these, at 4 bytes each.
    teacher_parameters: of the copies of earlier models during a task. They are given up after each task and not counted
      in `megabytes`.
    megabytes: image_megabytes + extra_megabytes. A megabyte is 10^6 bytes.
  """
  params, method = experiment.abstract_state().params, experiment.method
  common = sum(_size(params[name]) for name in _COMMON)
  carry = jax.eval_shape(experiment.init_carry)
  if method.exemplar_means and next(iter(method.scores)) != NEAREST_MEAN:
    # They are recorded beside the method's own score, which does without them.
    carry = {name: leaf for name, leaf in carry.items() if name not in ("exemplar_means", "has_mean")}
  frozen = {name: carry.pop(name) for name in ("frozen", "heads") if name in carry}
  further = networks.extra_bytes(method, params["backbone"], tasks_done) // _FLOAT32_BYTES
  extra = _size(params) - common + _size(carry) + further
  # Frozen backbones that no prediction needs are those of teachers.
  copies = 0 if method.backbones(len(experiment.plans)) > 1 else _size(frozen)
  images = _images(experiment, tasks_done, exemplars)
  image_bytes = images * experiment.kept_side**2 * len(experiment.source.mean)
  has_teacher = method.uses_teacher and len(experiment.plans) > 1
  return {"exemplars": images, "image_megabytes": image_bytes / _MEGABYTE, "parameters": common,
          "extra_parameters": extra, "extra_megabytes": extra * _FLOAT32_BYTES / _MEGABYTE,
          "teacher_parameters": (_size(params) if has_teacher else 0) + copies,
          "megabytes": (image_bytes + extra * _FLOAT32_BYTES) / _MEGABYTE}


def _images(experiment: Experiment, tasks_done: int, exemplars: Sequence[Sequence[int]]) -> int:
  seen = experiment.scenario.counts[:experiment.plans[tasks_done - 1].task.stop]
  if any(stage.rows == "all" for stage in experiment.method.stages):
    return int(seen.sum())
  return sum(map(len, exemplars)) + int(np.minimum(seen, experiment.method.held_out).sum())


def _size(tree: Any) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
