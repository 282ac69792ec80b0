"""The network of a run as a function of pictures. The run's data set is not needed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from gr_jax.data import augment
from gr_jax.devices import convolution_library
from gr_jax.errors import UserError
from gr_jax.runs import journal, restored
from gr_jax.runs import workdir as workdirs
from gr_jax.serving import views
from gr_jax.training import experiment as experiments
from gr_jax.training import passes
from gr_jax.training.experiment import Experiment

# Views per call of the network; fewer are filled up to a power of two, so that few programs are compiled.
BLOCK = 64

Picture = str | os.PathLike | np.ndarray


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What the network says about some pictures.

  Attributes:
    classes: names, in learning order.
    probabilities: [pictures, classes] float32; rows add up to 1.
  """
  classes: tuple[str, ...]
  probabilities: np.ndarray

  @property
  def names(self) -> list[str]:
    """The most probable class of each picture."""
    return [self.classes[place] for place in np.argmax(self.probabilities, axis=-1)]

  def top(self, count: int) -> list[list[tuple[str, float]]]:
    """For each picture the `count` most probable classes with their probabilities, largest first."""
    order = np.argsort(-self.probabilities, axis=-1, kind="stable")[:, :count]
    return [[(self.classes[place], float(row[place])) for place in places]
            for row, places in zip(self.probabilities, order)]


@dataclasses.dataclass(frozen=True)
class Model:
  """A trained network that classifies pictures: model(images) -> Predictions.

  Attributes:
    folder: of the run.
    task, num_tasks: after which task, from 1, and the number of the run's tasks.
    classes: names of the classes seen until then, in learning order.
    form: of a view, see views.Form.
    score: which of the method's scores decides, such as "logits" or "nearest_mean".
    temperature: what the score is divided by before the softmax; None: the run is not calibrated, so it is 1.
    network: {"params", "batch_stats", "carry"}, with batch norm folded.
    classify: (network, views [batch, side, side, channels] uint8) -> probabilities [batch, classes] float32; pure, and
      traceable by JAX.
  """
  folder: pathlib.Path
  task: int
  num_tasks: int
  classes: tuple[str, ...]
  form: views.Form
  score: str
  temperature: float | None
  # Not shown in a notebook: pages of numbers.
  network: Any = dataclasses.field(repr=False)
  classify: Callable[[Any, jax.Array], jax.Array] = dataclasses.field(repr=False)

  def __call__(self, images: Picture | Sequence[Picture]) -> Predictions:
    """Classifies pictures.

    Args:
      images: paths, or arrays [height, width] or [height, width, channels] of uint8; one, or a sequence of them, or an
        array [pictures, height, width, channels].

    Raises:
      UserError: a file cannot be read, an array of another form.
    """
    given = _each(images)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      batches = [self.probabilities(np.stack(list(pool.map(self.view, given[first:first + BLOCK]))))
                 for first in range(0, len(given), BLOCK)]
    return Predictions(self.classes, np.concatenate([np.zeros((0, len(self.classes)), np.float32), *batches]))

  def view(self, picture: Picture) -> np.ndarray:
    """What the network takes of a picture, [side, side, channels] uint8; raises as `__call__`."""
    if isinstance(picture, (str, os.PathLike)):
      return views.read(pathlib.Path(picture), self.form)
    return views.of_array(picture, self.form)

  def probabilities(self, batch: np.ndarray) -> np.ndarray:
    """Probabilities [batch, classes] float32 of at most BLOCK views [batch, side, side, channels] uint8."""
    padded = np.zeros((1 << (len(batch) - 1).bit_length(), *batch.shape[1:]), np.uint8)
    padded[:len(batch)] = batch
    return np.asarray(_call(self.classify, self.network, padded))[:len(batch)]

  @property
  def description(self) -> str:
    """A line for people."""
    calibrated = "not calibrated" if self.temperature is None else f"calibrated, temperature {self.temperature:.3f}"
    return (f"{self.folder} after task {self.task} of {self.num_tasks}: {len(self.classes)} classes, score "
            f"{self.score.replace('_', ' ')}, probabilities {calibrated}")


@functools.partial(jax.jit, static_argnums=0)
def _call(classify: Callable[[Any, jax.Array], jax.Array], network: Any, batch: jax.Array) -> jax.Array:
  return classify(network, batch)


def _each(images: Picture | Sequence[Picture]) -> list[Picture]:
  if isinstance(images, (str, os.PathLike)) or isinstance(images, np.ndarray) and images.ndim < 4:
    return [images]
  return list(images)


def load(workdir: str | os.PathLike, task: int | None = None) -> Model:
  """The network of a run after a task, as a function of pictures; reads the run's folder alone.

  Args:
    workdir: folder of a run, finished or not.
    task: after which task, from 1; None: the last finished one.

  Raises:
    UserError: no run, no such task, an unreadable file or checkpoint.
  """
  convolution_library.enable()
  folder = workdirs.locate(pathlib.Path(workdir))
  config = restored.read_config(folder)
  if not (folder / "scenario.json").is_file():
    raise UserError(f"{folder} has no scenario.json, so its classes are unknown; restore the file")
  record = journal.read_json(folder / "scenario.json", "class_order", "class_names", "counts", "holdout_counts",
                             "profile", "digest", "tasks")
  with _quietly():
    experiment = restored.as_trained(folder, experiments.recorded(config, record))
    saved = restored.after_task(folder, experiment, task)
  seen, temperature = experiment.plans[saved.task - 1].task.stop, _temperature(saved.record)
  return Model(
      folder=folder, task=saved.task, num_tasks=len(experiment.plans), classes=experiment.scenario.class_names[:seen],
      form=views.Form(config.image_size, len(experiment.source.mean), experiment.source.uniform),
      score=next(iter(experiment.method.scores)), temperature=temperature,
      network=jax.jit(passes.fold)(saved.network), classify=_classifier(experiment, saved.task, temperature))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
  """Without Orbax's warnings that a read-only folder is read only."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)


def _temperature(record: dict[str, Any]) -> float | None:
  """The temperature that was fitted to held-out images after the task of a checkpoint; None if there were none, or an
  earlier version trained the run."""
  evaluation = (record.get("evaluations") or [None])[-1]
  fitted = evaluation and evaluation["calibration"]["temperatures"]
  return fitted["one"] if fitted else None


def _classifier(experiment: Experiment, task: int, temperature: float | None) -> Callable[[Any, jax.Array], jax.Array]:
  """Model.classify."""
  source, plan = experiment.source, experiment.plans[task - 1].stages[0]

  def classify(network: Any, batch: jax.Array) -> jax.Array:
    inputs = augment.normalise(batch, source.mean, source.std)
    context = jax.tree.map(jnp.asarray, plan.context)
    # The first score is the one that the run's accuracies count; seen classes come first.
    scores = passes.score(experiment.model, experiment.method, network, inputs, context)[0][:, :plan.task.stop]
    return jax.nn.softmax(scores if temperature is None else scores / temperature, axis=-1)

  return classify
