"""Predictions for many picture files, one line each."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gr_jax.errors import UserError
from gr_jax.serving.model import BLOCK, Model, Predictions


class Prediction(NamedTuple):
  """The most probable classes of a file with their probabilities, largest first; or why it could not be read."""
  file: pathlib.Path
  top: list[tuple[str, float]]
  error: str | None = None


def predict(model: Model, files: Sequence[pathlib.Path], *, top: int) -> Iterator[Prediction]:
  """Classifies files, in order, in batches; a file that is no picture gets an error, and the rest is still done.

  Args:
    model: the network.
    files: to read.
    top: how many classes of each.
  """
  def read(file: pathlib.Path) -> np.ndarray | str:
    try:
      return model.view(file)
    except UserError as error:
      return str(error)

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for first in range(0, len(files), BLOCK):
      block = files[first:first + BLOCK]
      views_or_errors = list(pool.map(read, block))
      good = [view for view in views_or_errors if not isinstance(view, str)]
      rows = iter(Predictions(model.classes, model.probabilities(np.stack(good))).top(top) if good else ())
      for file, view in zip(block, views_or_errors):
        yield Prediction(file, [], view) if isinstance(view, str) else Prediction(file, next(rows))


def text_line(prediction: Prediction) -> str:
  """For people: file, then classes with their probabilities in per cent."""
  return f"{prediction.file}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in prediction.top)


def json_line(model: Model) -> Callable[[Prediction], str]:
  """For programs: one JSON object a line."""
  def line(prediction: Prediction) -> str:
    if prediction.error is not None:
      return json.dumps({"file": str(prediction.file), "error": prediction.error})
    return json.dumps({
        "file": str(prediction.file), "task": model.task, "calibrated": model.temperature is not None,
        "predictions": [{"class": name, "probability": share} for name, share in prediction.top]})

  return line
