"""The folder of a run: whose it is, and what it holds besides metrics and checkpoints."""

from __future__ import annotations

import pathlib
from typing import Any

import ml_collections

from gr_jax import config as configuration
from gr_jax import journal
from gr_jax.errors import UserError
from gr_jax.experiment import Experiment


def check_config(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Refuses a folder with a run of another config, and takes a new one for this config.

  Raises:
    UserError: the folder's config differs (the message shows how), or the folder cannot be used.
  """
  wanted = configuration.flatten(config)
  path = folder / "config.json"
  if path.exists():
    saved = configuration.flatten(journal.read_json(path))
    lines = configuration.difference(saved, wanted)
    if lines:
      raise UserError(f"{folder} holds a run of another config:\n  " + "\n  ".join(lines) +
                      "\nchoose another --workdir, or give the config of that run")
    return
  if (folder / "checkpoints").exists():
    raise UserError(f"{folder} has checkpoints but no config.json, so whose they are is not known; choose "
                    f"another --workdir")
  try:
    folder.mkdir(parents=True, exist_ok=True)
    journal.write_json(path, config.to_dict())
  except OSError as error:
    raise UserError(f"--workdir {folder} cannot be written ({error}); choose another") from error


def check_scenario(folder: pathlib.Path, experiment: Experiment) -> None:
  """Refuses to go on with a run whose images have changed.

  Raises:
    UserError: scenario.json holds another digest.
  """
  path = folder / "scenario.json"
  if path.exists() and (saved := journal.read_json(path)["digest"]) != experiment.scenario.digest:
    raise UserError(f"{folder} holds a run on other images (digest {saved[:16]}, now "
                    f"{experiment.scenario.digest[:16]}): the data set has changed; choose another --workdir")


def write_scenario(folder: pathlib.Path, experiment: Experiment) -> None:
  drawn, source = experiment.scenario, experiment.source
  journal.write_json(folder / "scenario.json", {
      "digest": drawn.digest, "dataset": source.name, "class_order": list(drawn.class_order),
      "class_names": list(drawn.class_names), "counts": drawn.counts.tolist(),
      "holdout_counts": [len(rows) for rows in drawn.holdout],
      "profile": None if drawn.profile is None else list(drawn.profile),
      "capped": {drawn.class_names[j]: pair for j, pair in drawn.capped.items()},
      "tasks": [{"classes": list(plan.task.classes), "new_images": int(drawn.counts[plan.task.classes].sum()),
                 "images_present": plan.size, "steps_per_epoch": plan.steps_per_epoch}
                for plan in experiment.plans],
      "train_ids": [[source.train.ids[row] for row in rows] for rows in drawn.train],
      "holdout_ids": [[source.train.ids[row] for row in rows] for rows in drawn.holdout]})


def finished(folder: pathlib.Path, experiment: Experiment) -> dict[str, Any] | None:
  """The results of a run that has done all the tasks it is asked for; None where there is work left."""
  path = folder / "results.json"
  if not path.exists():
    return None
  results = journal.read_json(path)
  return results if results["tasks_done"] >= experiment.stop_after_task else None


def write_results(folder: pathlib.Path, content: dict[str, Any]) -> None:
  """results.json, the last file of a run: with it the run counts as finished."""
  journal.write_json(folder / "results.json", content)
