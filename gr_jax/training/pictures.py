"""Loads the pictures of an experiment, decoded or from the cache, in learning order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, overload

import numpy as np

from gr_jax.data import cache, resident, stream
from gr_jax.data.arrays import Data
from gr_jax.data.cache import View
from gr_jax.data.sources import tfds_source
from gr_jax.errors import UserError
from gr_jax.training.experiment import Experiment

Progress = Callable[..., Any]


@overload
def load(experiment: Experiment, split: Literal["test", "holdout", "calibration"], progress: Progress,
         say: Callable[[str], None] = ...) -> Data:
  ...


@overload
def load(experiment: Experiment, split: str, progress: Progress,
         say: Callable[[str], None] = ...) -> Data | stream.Originals:
  ...


def load(experiment: Experiment, split: str, progress: Progress,
         say: Callable[[str], None] = lambda line: None) -> Data | stream.Originals:
  """A split, sorted by class in learning order; NumPy arrays (see data.resident), decoded or from the cache.

  Streamed training pictures stay in their files; only their sizes come from the cache.

  Args:
    experiment: the experiment.
    split: "train", "test", "holdout" for the held-out training images, or "calibration" for these in the form of the
      test pictures (no row if there are none).
    progress: wraps the iteration over pictures.
    say: receives log lines.
  """
  source, drawn, size = experiment.source, experiment.scenario, experiment.config.image_size
  if split == "holdout" and not any(drawn.holdout):
    raise UserError(f"the run held out no images (validation_fraction is "
                    f"{experiment.config.validation_fraction}); evaluate the test split")
  decode = _decoder(experiment, progress, say)
  if split == "test":
    return resident.load_test(source, drawn, size, progress, decode)
  if split == "calibration":
    return resident.load_held_out(source, drawn, size, progress, decode)
  if split == "train" and experiment.path[0] == "stream":
    rows, labels = resident.flat_rows(drawn.train)
    if decode is None:
      raise UserError("cache_dir is 'off', but pictures='stream' caches the pictures' sizes; set --config.cache_dir")
    return stream.Originals(source.train, np.asarray(rows), decode(source.train, rows, View("size", 0)).sizes, labels)
  return resident.load_train(source, drawn, size, stored_size=experiment.config.stored_size,
                             holdout=split == "holdout", progress=progress, decode=decode)


def _decoder(experiment: Experiment, progress: Progress, say: Callable[[str], None]) -> resident.Decode | None:
  """cache.load for this data set; None if pictures are decoded at every start."""
  config, source = experiment.config, experiment.source
  if config.cache_dir == "off":
    return None
  places = cache.folders(config.cache_dir, tfds_source.data_folder(config.data_dir))
  return functools.partial(cache.load, name=source.name, channels=len(source.mean), places=places,
                           progress=progress, say=say, timeout=config.worker_timeout)
