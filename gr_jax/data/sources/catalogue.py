"""Data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from gr_jax.data.sources import digits, folder, tfds_source
from gr_jax.data.sources.absent import AbsentSplit
from gr_jax.data.sources.base import IMAGENET_MEAN, IMAGENET_STD, Source
from gr_jax.errors import UserError
from gr_jax.scenario import DatasetProperties

NAMES = ("digits", "folder", *tfds_source.CATALOGUE)


def check(name: str) -> None:
  """Raises UserError for an unknown data set."""
  if name not in NAMES:
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"dataset is {name!r}; known are {', '.join(NAMES)}{hint}")


def load(name: str, data_dir: str | None, *, cache_dir: str | None = "off",
         progress: Callable = lambda items, **_: items, say: Callable[[str], None] = lambda line: None,
         **options: Any) -> Source:
  """The data set called `name`.

  Args:
    name: one of NAMES.
    data_dir: TFDS's data folder; None: the environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets. For
      "folder": the folder of the pictures.
    cache_dir: see tfds_source.load.
    progress: wraps the iteration over pictures or records.
    say: receives log lines.
    options: only for "folder"; see folder.load.

  Raises:
    UserError: unknown, not prepared, or damaged.
  """
  check(name)
  if name == "folder":
    return folder.load(data_dir, progress=progress, **options)
  return digits.load() if name == "digits" else tfds_source.load(
      name, tfds_source.data_folder(data_dir), cache_dir=cache_dir, progress=progress, say=say)


def without_pictures(name: str, class_names: Sequence[str]) -> Source:
  """The data set called `name` with empty splits; reads no file.

  Args:
    name: one of NAMES.
    class_names: in the order of the data set.

  Raises:
    UserError: an unknown name.
  """
  check(name)
  properties, mean, std, uniform = DatasetProperties(), IMAGENET_MEAN, IMAGENET_STD, False
  if name == "digits":
    mean, std, uniform = digits.MEAN, digits.STD, True
  elif name in tfds_source.CATALOGUE:
    entry = tfds_source.CATALOGUE[name]
    properties, mean, std, uniform = entry.properties, entry.mean, entry.std, entry.uniform
  nothing = AbsentSplit(name)
  return Source(name=name, class_names=tuple(class_names), train=nothing, test=nothing, properties=properties,
                mean=mean, std=std, uniform=uniform)
