"""The table of a comparison as Markdown, CSV and LaTeX: means and standard deviations over seeds."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr_jax.comparing.published import Published
from gr_jax.metrics import MEDIUM_SHOT


class Row(NamedTuple):
  """One method of a comparison.

  Attributes:
    name: as on the command line.
    wanted: number of seeds asked for.
    results: the content of results.json of each finished run.
    published: numbers from the literature for the same setting, or None.
  """
  name: str
  wanted: int
  results: Sequence[Mapping[str, Any]]
  published: Published | None = None

  @property
  def seeds(self) -> str:
    done = len(self.results)
    return str(done) if done == self.wanted else f"{done} of {self.wanted}"


class Measure(NamedTuple):
  """A column: its title, its name in the CSV file, its value in a run (None if undefined) and its decimals.

  `deviates` is False for what is the same for every seed.
  """
  title: str
  key: str
  of: Callable[[Mapping[str, Any]], float | None]
  decimals: int = 2
  deviates: bool = True


def _per_cent(value: float | None) -> float | None:
  return None if value is None else 100 * value


def _group(name: str) -> Callable[[Mapping[str, Any]], float | None]:
  def accuracy(results: Mapping[str, Any]) -> float | None:
    group = results["many_medium_few"][name]
    return None if group is None else _per_cent(group["accuracy"])

  return accuracy


# Accuracies and forgetting are in per cent.
MEASURES = (
    Measure("average incremental", "average_incremental", lambda r: _per_cent(r["average_incremental_accuracy"])),
    Measure("last", "last", lambda r: _per_cent(r["last_accuracy"])),
    Measure("forgetting", "forgetting", lambda r: _per_cent(r["forgetting"][r["tasks_done"] - 1])),
    Measure("many", "many", _group("many")), Measure("medium", "medium", _group("medium")),
    Measure("few", "few", _group("few")),
    Measure("seconds", "seconds", lambda r: r["seconds"], 0),
    Measure("parameters", "parameters", lambda r: r["memory"]["parameters"] + r["memory"]["extra_parameters"],
            decimals=0, deviates=False),
    Measure("memory, MB", "memory_megabytes", lambda r: r["memory"]["megabytes"], 3, False))


def values(row: Row, measure: Measure) -> list[float]:
  """A measure of each finished run, without undefined ones."""
  return [value for results in row.results if (value := measure.of(results)) is not None]


def spread(numbers: Sequence[float], decimals: int = 2, plus_minus: str = " ± ") -> str:
  """The mean and, for two or more values, the sample standard deviation; "-" for none."""
  if not numbers:
    return "-"
  mean = f"{np.mean(numbers):.{decimals}f}"
  return mean if len(numbers) == 1 else f"{mean}{plus_minus}{np.std(numbers, ddof=1):.{decimals}f}"


def markdown(rows: Sequence[Row]) -> str:
  """A Markdown table."""
  lines = [*_grid(rows, " ± ")]
  return "\n".join([f"| {' | '.join(lines[0])} |", "|---" * len(lines[0]) + "|",
                    *(f"| {' | '.join(line)} |" for line in lines[1:])])


def latex(rows: Sequence[Row]) -> str:
  """A LaTeX tabular; needs the package booktabs."""
  header, *lines = [[_escaped(cell) for cell in line] for line in _grid(rows, r" $\pm$ ")]
  return "\n".join([f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", " & ".join(header) + r" \\",
                    r"\midrule", *(" & ".join(line) + r" \\" for line in lines), r"\bottomrule", r"\end{tabular}"])


def comma_separated(rows: Sequence[Row]) -> str:
  """A CSV file: full precision, a column for each mean and each standard deviation, empty where undefined."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(["method", "seeds", *(f"{measure.key}_{part}" for measure in MEASURES
                                        for part in ("mean", "standard_deviation")),
                   "published_average_incremental", "published_last", "published_source"])
  for row in rows:
    cells = [row.name, len(row.results)]
    for measure in MEASURES:
      numbers = values(row, measure)
      cells += [float(np.mean(numbers)) if numbers else "", float(np.std(numbers, ddof=1)) if len(numbers) > 1 else ""]
    known = row.published
    writer.writerow([*cells, *(("", "", "") if known is None else (known.average, known.last, known.source))])
  return file.getvalue()


def notes(rows: Sequence[Row], config: Mapping[str, Any]) -> list[str]:
  """Sentences below the table: what its columns are, and where published numbers come from.

  Args:
    rows: of the table.
    config: flat, of one of them.
  """
  lines = ["Accuracies and forgetting in per cent; mean ± standard deviation over seeds. Many, medium, few: classes "
           f"with more than {MEDIUM_SHOT[1]}, {MEDIUM_SHOT[0]} to {MEDIUM_SHOT[1]}, and fewer training images.",
           "Parameters: of all networks that are kept. Memory: pictures kept as uint8, and parameters besides one "
           "network, at 4 bytes; the teacher of a task is not counted."]
  precisions = {row.name: sorted({run["precision"] for run in row.results if "precision" in run}) for row in rows}
  if len(set().union(*precisions.values())) > 1:
    lines.append("Precisions differ: " + ", ".join(
        f"{name} {' and '.join(used)}" for name, used in precisions.items() if used)
                 + "; set --config.precision and use a new --workdir to compare in one of them.")
  learned = {row.name: sorted({run["tasks_done"] for run in row.results}) for row in rows}
  if len(set().union(*learned.values())) > 1:
    lines.append("Numbers of learned tasks differ, so the rows cannot be compared: " + ", ".join(
        f"{name} {' and '.join(map(str, done))}" for name, done in learned.items() if done)
                 + "; rerun the command for all methods without --config.stop_after_task.")
  for row in rows:
    if (known := row.published) is not None:
      ours = f", ours {config['epochs']}" if known.epochs != config["epochs"] else ""
      lines.append(f"{row.name}, published: {known.source}; {known.epochs} epochs a task{ours}"
                   + (f"; {known.note}" if known.note else ""))
  return lines


def _grid(rows: Sequence[Row], plus_minus: str) -> list[list[str]]:
  """The cells of the table as shown, header first; columns for published numbers if any row has them."""
  published = any(row.published for row in rows)
  grid = [["method", "seeds", *(measure.title for measure in MEASURES),
           *(["published: average incremental", "published: last"] if published else [])]]
  for row in rows:
    cells = []
    for measure in MEASURES:
      numbers = values(row, measure)
      cells.append(spread(numbers if measure.deviates else numbers[:1], measure.decimals, plus_minus))
    if published:
      cells += ["-", "-"] if row.published is None else [f"{row.published.average:.2f}", f"{row.published.last:.2f}"]
    grid.append([row.name, row.seeds, *cells])
  return grid


def _escaped(text: str) -> str:
  for character in "_%&#":
    text = text.replace(character, f"\\{character}")
  return text
