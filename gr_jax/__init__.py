"""Gradient Reweighting for imbalanced class-incremental learning, in JAX (He & Zhu, CVPR 2024).

`load` and `load_results` use a run that has been trained; importing this module imports nothing else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from gr_jax.serving.model import Model
  from gr_jax.serving.recorded import Recorded

__version__ = "0.1.0"


def load(workdir: str | os.PathLike, task: int | None = None) -> Model:
  """The network of a run after a task (from 1; None: the last finished one): model(images) -> probabilities by class.

  Raises:
    UserError: see gr_jax.serving.model.load.
  """
  from gr_jax.serving import model
  return model.load(workdir, task)


def load_results(workdir: str | os.PathLike) -> Recorded:
  """Everything that a run recorded, finished or not; matrices as NumPy arrays.

  Raises:
    UserError: see gr_jax.serving.recorded.load.
  """
  from gr_jax.serving import recorded
  return recorded.load(workdir)
