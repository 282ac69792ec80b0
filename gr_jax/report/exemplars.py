"""Pictures of the exemplars that a run keeps, from its last checkpoint and the data set, where both are at hand."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import PIL.Image

from gr_jax.errors import UserError
from gr_jax.report import style
from gr_jax.report.records import Run
from gr_jax.runs import checkpoints as checkpointing
from gr_jax.runs import restored, workdir
from gr_jax.training import experiment as experiments

# Classes and pictures of each that are shown, and the side of a picture in pixels.
_CLASSES, _PICTURES, _SIDE = 30, 8, 64


@dataclasses.dataclass(frozen=True)
class Thumbnails:
  """Pictures as addresses, by class; with none, `words` say why.

  Attributes:
    classes: (name, pictures) of each class.
    words: what is shown, or why nothing is.
  """
  classes: tuple[tuple[str, tuple[str, ...]], ...]
  words: str


def of(run: Run, data_dir: str | None = None) -> Thumbnails:
  """The first exemplars of the first classes after the last saved step; takes no lock and writes nothing.

  Args:
    run: with at least one finished task, or there are none.
    data_dir: overrides the run's.
  """
  if not run.done:
    return Thumbnails((), "no task is finished yet")
  try:
    config = restored.read_config(run.folder, **({} if data_dir is None else {"data_dir": data_dir}))
    experiment = experiments.load(config, training=False)
    workdir.check_scenario(run.folder, experiment)
    with checkpointing.Checkpoints(run.folder / "checkpoints", read_only=True) as checkpoints:
      steps = checkpoints.steps()
      if not steps:
        return Thumbnails((), "the run has no checkpoint, which names them")
      kept = checkpoints.record(steps[-1])["exemplars"]
    return _drawn(experiment, kept)
  except UserError as error:
    return Thumbnails((), str(error))


def _drawn(experiment: experiments.Experiment, kept: list[list[int]]) -> Thumbnails:
  drawn, split = experiment.scenario, experiment.source.train
  if not any(kept):
    return Thumbnails((), "the run keeps none")
  starts = np.cumsum([0, *drawn.counts])
  classes = []
  for place, rows in enumerate(kept[:_CLASSES]):
    pictures = [split.image(drawn.train[place][row - starts[place]]) for row in rows[:_PICTURES]]
    classes.append((drawn.class_names[place], tuple(map(_address, pictures))))
  return Thumbnails(tuple(classes), f"The first {_PICTURES} exemplars at most of {len(classes)} of {len(kept)} seen "
                    f"classes, in the order in which they were picked.")


def _address(picture: np.ndarray) -> str:
  """A small PNG of [height, width, 1 or 3] uint8."""
  small = PIL.Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
  small.thumbnail((_SIDE, _SIDE))
  content = io.BytesIO()
  small.save(content, "PNG")
  return style.data_address(content.getvalue(), "image/png")
