"""Reads the runs that score settings on held-out images, and chooses by them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from gr_jax.comparing.choice import Counts, Score, choose, score
from gr_jax.comparing.entries import Setting
from gr_jax.comparing.plan import Run
from gr_jax.config import Config
from gr_jax.errors import UserError
from gr_jax.runs import journal


@dataclasses.dataclass(frozen=True)
class Choice:
  """The setting of an entry, and why.

  Attributes:
    config: of the entry with the chosen setting; None if no setting could be scored.
    note: a sentence for the table; "" where there was nothing to choose.
    record: for tuning.json; {} where there was nothing to choose.
  """
  config: Config | None
  note: str = ""
  record: dict[str, Any] = dataclasses.field(default_factory=dict)


def choose_setting(name: str, config: Config, groups: Sequence[tuple[Setting, Sequence[Run]]]) -> Choice:
  """Chooses among the settings of an entry whose runs are all finished; see choice.choose.

  Args:
    name, config: of the entry.
    groups: its settings, each with its runs; [] if there is nothing to choose.

  Raises:
    UserError: fewer than two classes have held-out images.
  """
  if not groups:
    return Choice(config)
  done = [(setting, runs) for setting, runs in groups if all(run.results is not None for run in runs)]
  missing = [setting.name for setting, runs in groups if any(run.results is None for run in runs)]
  if not done:
    return Choice(None)
  try:
    scores = [score([held_out_counts(run.folder) for run in runs]) for _, runs in done]
  except ValueError as error:
    raise UserError(f"{name}: {error}; raise validation_fraction") from error
  chosen, best = choose(scores, [setting.changes for setting, _ in done])
  chosen_score, seeds = scores[chosen], [run.config.scenario.seed for run in done[0][1]]
  note = (f"{name}: {done[chosen][0].name}, chosen on held-out images: {_percent(chosen_score)} (mean over "
          f"{chosen_score.classes} classes and its standard error; {chosen_score.left_out} without held-out images "
          f"left out; scenario seeds {', '.join(map(str, seeds))})")
  note += (f", the best of {len(done)} settings" if chosen == best else
           f"; {done[best][0].name} has {_percent(scores[best])}, but within one standard error the simpler setting is "
           f"taken")
  if missing:
    note += f"; failed and left out: {'; '.join(missing)}"
  return Choice(done[chosen][0].config, note, {
      "chosen": dict(done[chosen][0].values), "best": dict(done[best][0].values), "failed": missing,
      "scenario_seeds": seeds, "settings": [
          {"values": dict(setting.values), "changed_keys": setting.changes, "accuracy": one.mean,
           "standard_error": one.error, "classes": one.classes, "classes_left_out": one.left_out}
          for (setting, _), one in zip(done, scores)]})


def held_out_counts(folder: pathlib.Path) -> Counts:
  """Label of each seen class -> (correct, held-out images) after the last task of a finished run.

  Args:
    folder: of a run with evaluate_on=holdout.
  """
  rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  correct = [row["correct"] for row in rows if row["kind"] == "task"][-1]
  drawn = journal.read_json(folder / "scenario.json", "class_order", "holdout_counts")
  return {str(label): (right, images) for label, right, images in zip(
      drawn["class_order"], correct, drawn["holdout_counts"])}


def _percent(setting_score: Score) -> str:
  return f"{100 * setting_score.mean:.2f} ± {100 * setting_score.error:.2f} %"
