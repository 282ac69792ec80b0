"""A split of picture files in one folder, small enough to read; and files that misbehave."""

import os
import pathlib
import signal
import time

import builders
import numpy as np
import PIL.Image

from gr_jax.data.sources.base import Source
from gr_jax.errors import UserError
from gr_jax.scenario import DatasetProperties

MODES = ("RGB", "RGB", "L", "CMYK")


class FilesSplit:
  """JPEG files <label>_<number>.jpg of one folder; at names in `hang` a process stops, at those in `die` it dies."""

  def __init__(self, folder, *, hang=(), die=()):
    self.folder, self.hang, self.die = pathlib.Path(folder), tuple(hang), tuple(die)
    self.ids = sorted(path.name for path in self.folder.glob("*.jpg"))
    self.labels = np.asarray([int(name.split("_")[0]) for name in self.ids], np.int64)
    self.fingerprint = "files"

  def size(self, row):
    return self.image(row).shape[:2]

  def image(self, row):
    if self.ids[row] in self.hang:
      time.sleep(600)
    if self.ids[row] in self.die:
      os.kill(os.getpid(), signal.SIGKILL)
    try:
      with PIL.Image.open(self.folder / self.ids[row]) as picture:
        return np.asarray(picture.convert("RGB"))
    except OSError as error:
      raise UserError(f"{self.ids[row]} cannot be decoded ({error})") from error


def write(folder, per_class, *, classes=4, sides=(40, 90), seed=0, square=None):
  """Crops of photographs as JPEG of mixed sizes and modes; `square`: the side of every one instead."""
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True, exist_ok=True)
  for label in range(classes):
    for number in range(per_class):
      size = (square, square) if square else rng.integers(sides[0], sides[1] + 1, 2)
      picture = PIL.Image.fromarray(builders.crop(rng, *size)).convert(MODES[number % 4])
      picture.save(folder / f"{label:02d}_{number:04d}.jpg", quality=90)
  return folder


def source(train, test, *, classes=4):
  """A data set of two such splits."""
  return Source(name="files", class_names=tuple(f"class{label}" for label in range(classes)), train=train, test=test,
                properties=DatasetProperties(), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), uniform=False)
