"""The tables of README.md and gr_jax/docs/speed.md beside PyTorch, from the JSON files of tests/benchmarks:

  python tests/benchmarks/against_torch.py --bfloat16 --json=gr_jax/docs/results/against_torch.json
  python tests/benchmarks/whole_run.py --json=gr_jax/docs/results/whole_run.json

In tests/tables.py is only the table of a processor with AVX2: the others in the pages were measured before these files
were kept.
"""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

_STEPS, _RUN = "against_torch.json", "whole_run.json"
_PLAIN, _AUGMENTED = "plain", "augmented"
_OURS = "gr_jax"
# Name in the file -> in the tables.
_SIDES = {_OURS: "gr_jax", "released step": "structured as the release",
          "best step, eager": "best plain PyTorch, eager", "best step, compiled": "best plain PyTorch, compiled"}
_EMPTY, _FILLED = "gr_jax, empty compilation cache", "gr_jax, filled compilation cache"
_RELEASED = "PyTorch, structured as the release"


def beside_torch(results: pathlib.Path) -> list[str]:
  """The README's: median time of a step, and of a whole run."""
  steps, run = _read(results / _STEPS)["seconds_per_step"][_PLAIN], _read(results / _RUN)
  options = run["options"]
  empty, filled, released = (f"{run['sides'][side]['seconds']:.0f} s" for side in (_EMPTY, _FILLED, _RELEASED))
  whole = {_OURS: f"{filled}, {empty} with an empty compilation cache", "released step": released}
  rows = {_OURS: "gr_jax", "released step": _RELEASED,
          "best step, eager": "PyTorch, the best plain step that we could write, eager",
          "best step, compiled": "the same, compiled"}
  run_of = f"whole run, {options['precision']}, {options['epochs']} epochs a task"
  return [f"| | step, float32 | step, bfloat16 | {run_of} |", "|---|---|---|---|",
          *[f"| {shown} | {_milliseconds(steps[side])} ms | {_milliseconds(steps[f'{side}, bfloat16'])} ms | "
            f"{whole.get(side, '')} |" for side, shown in rows.items()]]


def steps(file: pathlib.Path, precision: str) -> list[str]:
  """Median and range of a step and of its ratio to gr_jax's in the same rounds, without and with augmentation."""
  seconds, suffix = _read(file)["seconds_per_step"], "" if precision == "float32" else f", {precision}"
  lines = [f"| {precision} | ms | ratio | with augmentation, ms | ratio |", "|---|---|---|---|---|"]
  for side, shown in _SIDES.items():
    cells = []
    for program in (_PLAIN, _AUGMENTED):
      times, ours = (seconds[program][f"{name}{suffix}"] for name in (side, _OURS))
      ratios = [time / base for time, base in zip(times, ours, strict=True)]
      spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
      cells += [f"{_milliseconds(times)} ({1e3 * min(times):.0f} to {1e3 * max(times):.0f})",
                "1" if side == _OURS else spread]
    lines.append(f"| {shown} | {' | '.join(cells)} |")
  return lines


def whole_run(results: pathlib.Path) -> list[str]:
  """Seconds of a whole run, by part."""
  sides = _read(results / _RUN)["sides"]
  parts = list(sides[_RELEASED]["parts"])
  rows = {name: [side["seconds"], *(side["parts"][part] for part in parts)] for name, side in sides.items()}
  return [f"| seconds | in all | {' | '.join(parts)} |", f"|{'---|' * (len(parts) + 2)}",
          *[f"| {name} | {' | '.join(f'{value:.0f}' for value in row)} |" for name, row in rows.items()]]


def _milliseconds(seconds: Sequence[float]) -> str:
  return f"{1e3 * statistics.median(seconds):.0f}"


def _read(path: pathlib.Path) -> dict[str, Any]:
  return json.loads(path.read_text())
