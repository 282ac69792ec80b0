"""Data sets by name."""

from __future__ import annotations

import difflib

from gr_jax.data import digits, tfds_source
from gr_jax.data.source import Source
from gr_jax.errors import UserError

NAMES = ("digits", *tfds_source.CATALOGUE)


def check(name: str) -> None:
  """Raises UserError for an unknown data set."""
  if name not in NAMES:
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"dataset is {name!r}; known are {', '.join(NAMES)}{hint}")


def load(name: str, data_dir: str | None) -> Source:
  """The data set called `name`.

  Args:
    name: one of NAMES.
    data_dir: TFDS's data folder; None: the environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets.

  Raises:
    UserError: unknown, not prepared, or damaged.
  """
  check(name)
  return digits.load() if name == "digits" else tfds_source.load(
      name, tfds_source.data_folder(data_dir))
