"""Published results for a setting, from published.csv."""

from __future__ import annotations

import csv
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Columns of the file that a config must have to be the same setting -> its key.
_SETTING = {"dataset": "dataset", "kind": "scenario.kind", "imbalance": "scenario.imbalance",
            "num_tasks": "scenario.num_tasks", "first_task_classes": "scenario.first_task_classes",
            "per_class": "memory.per_class", "model": "model"}


class Published(NamedTuple):
  """A published result.

  Attributes:
    average, last: average incremental and last accuracy, per cent.
    epochs: of each task.
    source: paper and table.
    note: what to keep in mind, or "".
  """
  average: float
  last: float
  epochs: int
  source: str
  note: str


def find(config: Mapping[str, Any], method: str, addons: Sequence[str]) -> Published | None:
  """The published result of a method in the setting of a flat config, or None."""
  name = "+".join([method, *sorted(addons)])
  for row in _table():
    if row["method"] == name and all(str(config[key]) == row[column] for column, key in _SETTING.items()):
      return Published(float(row["average"]), float(row["last"]), int(row["epochs"]), row["source"], row["note"])
  return None


@functools.cache
def _table() -> tuple[dict[str, str], ...]:
  with pathlib.Path(__file__).with_name("published.csv").open(newline="") as file:
    return tuple(csv.DictReader(file))
