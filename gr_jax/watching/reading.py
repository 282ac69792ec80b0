"""Reads the JSON files of a run, which a process may be writing meanwhile."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from gr_jax.errors import UserError


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """The content of a JSON file; {} if there is no such file.

  Raises:
    UserError: it cannot be read, or is no JSON object.
  """
  try:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
      raise ValueError("no JSON object")
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read ({error}); restore the file") from error
  return content


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl, [] if there is no such file; without a last line that is not complete yet.

  Raises:
    UserError: the file, or another line, cannot be read.
  """
  try:
    lines = path.read_bytes().splitlines()
  except FileNotFoundError:
    return []
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error}); fix the disk or the permissions") from error
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
      if not isinstance(row, dict) or "kind" not in row:
        raise ValueError("not a row with a kind")
      rows.append(row)
    except ValueError as error:
      if number < len(lines):
        raise UserError(f"line {number} of {path} cannot be read ({error}); restore the file") from error
  return rows
