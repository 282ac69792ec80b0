"""The files of a run besides checkpoints, written atomically: a kill cannot leave half a file."""

from __future__ import annotations

import io
import json
import os
import pathlib
from typing import Any

import numpy as np

from gr_jax import files
from gr_jax.devices import processes
from gr_jax.errors import UserError
from gr_jax.runs.events import Events


def write_json(path: pathlib.Path, content: Any) -> None:
  """Replaces the file atomically, safe against a power cut."""
  files.replace(path, json.dumps(content, indent=1) + "\n")


def read_json(path: pathlib.Path, *keys: str) -> dict[str, Any]:
  """Reads a JSON object that has at least the given keys.

  Raises:
    UserError: the file is not such an object.
  """
  try:
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not content.keys() >= set(keys):
      raise ValueError(f"not a JSON object with {', '.join(keys)}")
  except ValueError as error:
    raise UserError(f"{path} cannot be read ({error}); move it away or choose another --workdir") from error
  return content


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Process 0 replaces a .npz file atomically; creates the folder."""
  if processes.primary():
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, content.getvalue())


def parse_row(line: bytes) -> dict[str, Any]:
  """Parses a row of metrics.jsonl; raises ValueError if it is not one."""
  row = json.loads(line)
  if not isinstance(row, dict) or not all(isinstance(row.get(key), int) for key in ("global_step", "start")):
    raise ValueError("not a row with global_step and start")
  return row


class Metrics:
  """metrics.jsonl: one row per epoch and one per task, ordered by global step; a context manager.

  Only process 0 writes; other processes discard rows.
  """

  def __init__(self, path: pathlib.Path, *, step: int, events: pathlib.Path | None = None):
    """Opens the file for appending and drops the rows after `step`, which a killed start wrote.

    Their epochs are repeated from the checkpoint of that step and write their rows again.

    Args:
      path: of the file.
      step: global step of the checkpoint that the run resumes from.
      events: folder for event files with the same rows; None for none.
    """
    self._events = None
    if not processes.primary():
      self._file = None
      return
    rows, lines = [], path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines):
      try:
        rows.append(parse_row(line))
      except ValueError as error:
        # A kill may have truncated the last line; anything else is damage.
        if number < len(lines) - 1:
          raise UserError(f"line {number + 1} of {path} cannot be read ({error}); move the file away, then rerun the "
                          f"command to resume") from error
    # Numbers the starts of the run: after a kill, the rows show which epochs were repeated.
    self._start = 1 + max((row["start"] for row in rows), default=0)
    kept = [row for row in rows if row["global_step"] <= step]
    files.replace(path, "".join(json.dumps(row) + "\n" for row in kept))
    self._file = path.open("a")
    if events is not None:
      self._events = Events(events, kept)

  def write(self, **row: Any) -> None:
    if self._file is not None:
      self._file.write(json.dumps({**row, "start": self._start}) + "\n")
      self._file.flush()
    if self._events is not None:
      self._events.write(row)

  def sync(self) -> None:
    """Flushes the rows to disk; called before a checkpoint is saved."""
    if self._file is not None:
      os.fsync(self._file.fileno())

  def __enter__(self) -> Metrics:
    return self

  def __exit__(self, *exc_info: object) -> None:
    if self._file is not None:
      self._file.close()
    if self._events is not None:
      self._events.close()
