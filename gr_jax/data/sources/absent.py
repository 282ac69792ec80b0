"""A data set that is not at hand: what its models need, and no picture."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

import numpy as np

from gr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class AbsentSplit:
  """A split without images; see base.Split."""
  name: str

  @property
  def labels(self) -> np.ndarray:
    return np.zeros(0, np.int64)

  @property
  def ids(self) -> list[str]:
    return []

  @property
  def fingerprint(self) -> str:
    return "absent"

  def identity(self, row: int) -> str:
    self._raise()

  def size(self, row: int) -> tuple[int, int]:
    self._raise()

  def encoded(self, row: int) -> bytes:
    self._raise()

  def image(self, row: int) -> np.ndarray:
    self._raise()

  def _raise(self) -> NoReturn:
    raise UserError(f"the pictures of {self.name} were not loaded; use gr_jax.evaluate for the run's own pictures")
