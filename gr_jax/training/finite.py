"""Finds the arrays of a state with infinity or NaN."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

# Most names in a message: a divergence soon spreads to every array.
_NAMED = 5


def non_finite(tree: Any) -> list[str]:
  """Paths of the floating-point leaves that contain infinity or NaN."""
  return [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
          if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(np.asarray(leaf)).all()]


def named(paths: list[str]) -> str:
  """The first few paths, and how many more there are."""
  more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
  return ", ".join(paths[:_NAMED]) + more
