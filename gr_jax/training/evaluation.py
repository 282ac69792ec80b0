"""Evaluation of a network after a task: accuracy counts, calibration and neural collapse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from gr_jax import calibration, metrics, neural_collapse
from gr_jax.data import augment, feed
from gr_jax.data.arrays import Data
from gr_jax.devices import parallel
from gr_jax.methods.base import Context
from gr_jax.scenario.plan import StagePlan
from gr_jax.training import passes
from gr_jax.training.experiment import Experiment
from gr_jax.training.programs import pictures_together, pool

# In the order of passes.Setting.inverse.
VARIANTS = ("uncalibrated", "one_temperature", "two_temperatures")
# Sets of seen classes.
GROUPS = ("all", "old", "new", "many", "medium", "few")


class Evaluation(NamedTuple):
  """The evaluation after a task.

  Attributes:
    counts: int [scores, 3, classes]; for each score of the method, images classified correctly among all seen classes,
      among the classes of the image's task, and images.
    figures: {"calibration": ..., "neural_collapse": ...} as in results.json; numbers and None only.
    arrays: confusion [seen, seen] int32, rows by label, columns by prediction; reliability [variants, groups, bins, 3]
      float64 and class_bins [variants, seen, bins, 3] float32: images, sum of confidences, correct images; names of
      variants and groups.
  """
  counts: np.ndarray
  figures: dict[str, Any]
  arrays: dict[str, np.ndarray]


def make_evaluator(experiment: Experiment, pictures: Data, *, holdout: Data | None = None,
                   split: str | None = None) -> Callable[[dict, int], Evaluation]:
  """Puts pictures on the devices; returns evaluate(network, tasks done).

  `network` is {"params", "batch_stats", "carry"}.

  Args:
    experiment: of the run.
    pictures: to evaluate, in learning order.
    holdout: held-out images in the form of `pictures`, to fit temperatures on; None or empty: not calibrated. Not used
      where held-out images are evaluated: a fit is not judged by its own images.
    split: the one given to pictures.load (test pictures are already cropped); None: on which the run is evaluated.
  """
  drawn, plans, split = experiment.scenario, experiment.plans, split or experiment.config.evaluate_on
  held = 0 if holdout is None or split == "holdout" else len(holdout.labels)
  encode = _encoder(experiment, [pictures, *([holdout] if holdout is not None and held else [])], split)
  stacked = experiment.scored_stack * experiment.model.num_features
  evaluate = passes.make_evaluate(method=experiment.method, num_classes=drawn.num_classes, stacked=stacked,
                                  block=experiment.config.evaluation_block, devices=experiment.devices)
  score = passes.make_score(method=experiment.method, capacity=held, devices=experiment.devices,
                            stacked=stacked) if held else None

  def run(network: dict, tasks_done: int) -> Evaluation:
    plan: StagePlan = plans[tasks_done - 1].stages[0]
    replicate = lambda tree: parallel.replicate(tree, experiment.devices)
    context = replicate(plan.context)
    # Pictures are in learning order, so those of the seen classes come first.
    stop = int(np.searchsorted(pictures.labels, plan.task.stop))
    stops = [stop, *([int(np.searchsorted(holdout.labels, plan.task.stop))] if holdout is not None and held else [])]
    features = encode(network, context, stops)
    fitted, inverse = None, np.ones((len(VARIANTS), drawn.num_classes), np.float32)
    if score is not None and holdout is not None and stops[1]:
      scores = np.asarray(score(network, features, context, replicate(np.int32(stop))))
      fitted = _fit(scores[:stops[1], :plan.task.stop], np.asarray(holdout.labels[:stops[1]]), plan)
      inverse[1, :], inverse[2] = 1 / fitted["one"], _two_inverse(fitted, plan)
    groups = class_groups(plan, drawn.counts)
    cells = _cells(groups)
    labels = np.zeros(features.shape[0], np.int32)
    labels[:stop] = pictures.labels[:stop]
    setting = passes.Setting(np.int32(stop), inverse, np.stack([cells[name] for name in cells]),
                             np.stack([groups[name] for name in GROUPS]))
    measured = {name: np.asarray(values) for name, values in evaluate(
        network, features, *replicate((labels,)), context, replicate(setting))._asdict().items()}
    labels = labels[:stop]
    expected = np.bincount(labels, minlength=drawn.num_classes)
    if not np.array_equal(measured["counts"][0, 2], expected):
      raise AssertionError(f"evaluated {measured['counts'][0, 2].sum()} images, expected {expected.sum()}")
    variants = VARIANTS if fitted else VARIANTS[:1]
    figures = {"calibration": {"temperatures": fitted, **dict.fromkeys(VARIANTS), **{
        name: _calibration(measured, number, labels, groups) for number, name in enumerate(variants)}},
               "neural_collapse": _collapse(measured, network["params"]["classifier"]["kernel"], groups, cells)}
    return Evaluation(measured["counts"], figures, _arrays(measured, labels, groups, variants, plan.task.stop))

  return run


def class_groups(plan: StagePlan, counts: np.ndarray) -> dict[str, np.ndarray]:
  """[classes] bool of each of GROUPS; counts [classes] int, n_j."""
  old, new = np.asarray(plan.context.old), np.asarray(plan.context.new)
  shots = metrics.shot_groups(counts)
  return {"all": old | new, "old": old, "new": new, **{name: shots[name] & (old | new) for name in shots}}


def _cells(groups: dict[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
  """Disjoint sets of classes of which every group consists."""
  return {(age, shot): groups[age] & groups[shot] for age in ("old", "new") for shot in ("many", "medium", "few")}


def _encoder(experiment: Experiment, parts: list[Data], split: str
             ) -> Callable[[dict, Context, list[int]], jax.Array]:
  """encode(network, context, stops) -> features of rows 0..stop-1 of each part, one after another; then anything."""
  config, devices, source = experiment.config, experiment.devices, experiment.source
  resides, together = experiment.path[0] == "resident", pictures_together(experiment)
  sizes = [len(part.labels) for part in parts]
  method, stacked = experiment.method, experiment.scored_stack
  extract = passes.make_extract(
      model=experiment.model, capacity=sum(sizes) if resides else together, block=config.evaluation_block,
      growth=method.growth, blocks=method.blocks(len(experiment.plans)), stacked=stacked,
      devices=devices, prepare=augment.make_plain(image_size=config.image_size, mean=source.mean, std=source.std,
                                                  cropped=split == "test" or source.uniform))
  data = parallel.replicate(Data(*map(np.concatenate, zip(*parts))), devices) if resides else None
  place = jax.jit(lambda whole, part, first: jax.lax.dynamic_update_slice(whole, part, (first, 0)), donate_argnums=0,
                  out_shardings=experiment.root.sharding)

  def encode(network: dict, context: Context, stops: list[int]) -> jax.Array:
    params, batch_stats, carry = network["params"], network["batch_stats"], network["carry"]
    if resides:
      starts = np.cumsum([0, *sizes])
      rows = np.concatenate([np.arange(start, start + stop) for start, stop in zip(starts, stops)])
      return extract(params, batch_stats, data, parallel.replicate(pool(rows, sum(sizes)), devices), context, carry)
    # The rows behind those of the last call are overwritten by the next part, or unused.
    rows, width = (-(-sum(sizes) // together) + 1) * together, (
        experiment.num_features + stacked * experiment.model.num_features)
    features, done = parallel.replicate(np.zeros((rows, width), np.float32), devices), 0
    for part, stop in zip(parts, stops):
      for first in range(0, stop, together):
        block = feed.rows_of(part, slice(first, min(first + together, stop)))
        count = len(block.labels)
        here, among = parallel.replicate((feed.padded(block, together), pool(np.arange(count), together)), devices)
        codes = extract(params, batch_stats, here, among, context, carry)
        features = place(features, codes, parallel.replicate(np.int32(done), devices))
        done += count
    return features

  return encode


def _fit(scores: np.ndarray, labels: np.ndarray, plan: StagePlan) -> dict[str, Any]:
  """One temperature, and one each for old and new columns; from scores [images, seen] of held-out images."""
  scores = np.asarray(scores, np.float64)
  one, = calibration.fit_temperatures(scores, labels, np.zeros(plan.task.stop, int))
  is_new = (np.arange(plan.task.stop) >= plan.task.first).astype(int)
  old, new = calibration.fit_temperatures(scores, labels, is_new) if plan.task.first else (None, one)
  return {"images": len(labels), "classes": len(np.unique(labels)), "one": float(one),
          "old": None if old is None else float(old), "new": float(new)}


def _two_inverse(fitted: dict[str, Any], plan: StagePlan) -> np.ndarray:
  """[classes] 1 / T with a temperature each for old and new columns."""
  return np.where(plan.context.old, 1 / (fitted["old"] or 1.0), 1 / fitted["new"])


def _calibration(measured: dict[str, np.ndarray], variant: int, labels: np.ndarray, groups: dict[str, np.ndarray]
                 ) -> dict[str, Any]:
  """The figures of one variant for each group of images, by label; None for an empty group."""
  judged = {name: measured[name][variant, :len(labels)] for name in ("confidence", "nll", "brier")}
  correct, figures = measured["predicted"][variant, :len(labels)] == labels, {}
  for name in GROUPS:
    chosen = groups[name][labels]
    figures[name] = calibration.figures(
        {key: values[chosen] for key, values in judged.items()}, correct[chosen],
        measured["class_bins"][variant, groups[name]]) if chosen.any() else None
  return figures


def _collapse(measured: dict[str, np.ndarray], kernel: jax.Array, groups: dict[str, np.ndarray],
              cells: dict[tuple[str, str], np.ndarray]) -> dict[str, Any]:
  """Neural collapse in each group of classes."""
  within, figures = dict(zip(cells, measured["within"].astype(np.float64))), {}
  # Of several proxies for a class, their mean.
  columns = np.asarray(kernel)
  columns = columns if columns.ndim == 2 else columns.mean(axis=tuple(range(1, columns.ndim - 1)))
  for number, name in enumerate(GROUPS):
    parts = [within[cell] for cell in cells if name == "all" or name in cell]
    # A class without an image, which held-out images may have, has no mean.
    classes = groups[name] & (measured["counts"][0, 2] > 0)
    figures[name] = neural_collapse.figures(
        measured["means"][classes], np.sum(parts, axis=0), columns[:, classes],
        images=int(measured["counts"][0, 2][groups[name]].sum()), disagreeing=int(measured["disagreeing"][number]))
  return figures


def _arrays(measured: dict[str, np.ndarray], labels: np.ndarray, groups: dict[str, np.ndarray],
            variants: tuple[str, ...], seen: int) -> dict[str, np.ndarray]:
  """Evaluation.arrays."""
  confusion = np.zeros((seen, seen), np.int32)
  np.add.at(confusion, (labels, measured["predicted"][0, :len(labels)]), 1)
  reliability = []
  for variant in range(len(variants)):
    correct = measured["predicted"][variant, :len(labels)] == labels
    reliability.append([calibration.reliability_bins(
        measured["confidence"][variant, :len(labels)][groups[name][labels]], correct[groups[name][labels]])
        for name in GROUPS])
  return {"confusion": confusion, "reliability": np.asarray(reliability),
          "class_bins": measured["class_bins"][:len(variants), :seen], "variants": np.asarray(variants),
          "groups": np.asarray(GROUPS)}
