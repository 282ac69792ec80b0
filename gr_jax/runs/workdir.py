"""The folder of a run: which run it belongs to, and its files besides metrics and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gr_jax import config as configuration
from gr_jax import files, models, origin
from gr_jax.config import Config
from gr_jax.devices import processes
from gr_jax.errors import UserError
from gr_jax.runs import journal
from gr_jax.training.experiment import Experiment

# File with the precision, platform, dates, versions and processors of a run's starts.
START = "start.json"

# Keys that name folders on this machine.
_FOLDERS = ("data_dir", "cache_dir")


def locate(workdir: str | pathlib.Path, *, flag: str = "--workdir") -> pathlib.Path:
  """The folder that --workdir, or another flag, names.

  Raises:
    UserError: it is an object-store URL, which would become a local folder of that name.
  """
  if "://" in str(workdir):
    raise UserError(f"{flag} is {workdir}, but a run must be able to lock and rename files in it; use a local or "
                    f"mounted folder and copy it afterwards")
  return pathlib.Path(workdir).expanduser().absolute()


def check_config(folder: pathlib.Path, config: Config) -> None:
  """Refuses a folder that cannot be written or holds a run with another config. Leaves no file in it.

  Only process 0 checks; the caller passes errors on to the others (see processes.together).

  Raises:
    UserError: the folder's config differs (the message shows how), or the folder cannot be written.
  """
  if not processes.primary():
    return
  path = folder / "config.json"
  if path.exists() and _replicas_have_begun(folder):
    saved, wanted = configuration.flatten(read_config(folder)), configuration.flatten(config)
    # More replicas may join. Each has a folder of its own, with its seed and what "auto" meant there.
    free = ("precision", "seed", "replicas") if config.replicas > 1 else ("precision",)
    _refuse_others(folder, saved, {**wanted, **{key: saved[key] for key in free}})
  elif path.exists() and _has_begun(folder):
    saved, wanted = configuration.flatten(read_config(folder)), configuration.flatten(config)
    # "auto" may mean one precision where the run started and another one here.
    saved["precision"] = saved_precision(folder, saved["precision"])
    wanted["precision"] = models.resolve_precision(config.precision, jax.devices()[0].platform)
    if config.precision == "auto" and _done(folder, config, config.stop_after_task or config.scenario.num_tasks):
      # Nothing is left to train.
      wanted["precision"] = saved["precision"]
    meant = config.precision == "auto" and saved["precision"] != wanted["precision"]
    _refuse_others(folder, saved, wanted, f" with --config.precision={saved['precision']}" if meant else "")
  elif _has_begun(folder):
    raise UserError(f"{folder} holds a run but no config.json, so its config is unknown; choose another --workdir")
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise UserError(f"--workdir {folder} cannot be written ({error}); choose another one") from error


def _refuse_others(folder: pathlib.Path, saved: dict[str, Any], wanted: dict[str, Any], remedy: str = "") -> None:
  lines = configuration.difference(saved, wanted)
  if lines:
    raise UserError(f"{folder} holds a run with another config:\n  " + "\n  ".join(lines) +
                    f"\nchoose another --workdir, or use the config of that run{remedy}")


def _has_begun(folder: pathlib.Path) -> bool:
  """Whether anything has been trained there; files of a refused or interrupted start do not count."""
  checkpoints, rows = folder / "checkpoints", folder / "metrics.jsonl"
  return (checkpoints.is_dir() and any(checkpoints.iterdir())) or (rows.exists() and rows.stat().st_size > 0)


def _replicas_have_begun(folder: pathlib.Path) -> bool:
  """Whether anything has been trained in the folder of a replica of config.json."""
  begun = {member.name for member in folder.glob("seed-*") if _has_begun(member)}
  if not begun or not (folder / "config.json").exists():
    return False
  saved = read_config(folder)
  # Other folders are runs of their own, as gr_jax.compare starts them.
  return saved.get("replicas", 1) > 1 and not begun.isdisjoint(
      f"seed-{saved['seed'] + number}" for number in range(saved["replicas"]))


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The config saved with a run, as nested dicts with the keys of this version.

  Raises:
    UserError: it cannot be read.
  """
  path = folder / "config.json"
  try:
    config = _with_new_names(json.loads(path.read_text()))
    return {**config, "milestones": tuple(config["milestones"])}
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    raise UserError(f"{path} cannot be read ({error}), so the run cannot be used; restore the file, or choose another "
                    f"--workdir") from error


def _with_new_names(config: dict[str, Any]) -> dict[str, Any]:
  """A saved config with keys of earlier versions moved to their current place, and later keys as the run had them."""
  moved = {key: config.pop(key) for key in configuration.MOVED if key in config}
  # Gradient Reweighting had no choice of head, GVAlign none of images.
  later = {**({"head": "linear"} if config.get("method") == "gr" else {}),
           **({"gvalign_statistics": "plain"} if "gvalign" in config.get("addons", "") else {})}
  return {"addons": "", "tensorboard": False, "evaluate_on": "test", **config,
          configuration.OPTIONS: {**later, **config.get(configuration.OPTIONS, {}), **moved},
          "memory": {"total": None, **config["memory"]}}


def saved_precision(folder: pathlib.Path, precision: str) -> str:
  """The run's actual precision when it started; `precision` is its config's.

  Versions that saved only the config's value had two meanings of "auto".
  """
  path = folder / START
  if path.exists():
    return journal.read_json(path, "precision")["precision"]
  auto = "tf32" if jax.devices()[0].platform == "gpu" else "float32"
  return auto if precision == "auto" else precision


@contextlib.contextmanager
def locked(folder: pathlib.Path, *, flag: str = "--workdir") -> Iterator[None]:
  """Locks the folder against a second job; the lock ends with this process, even if it is killed.

  Args:
    folder: that exists.
    flag: by which the user chose it.

  Raises:
    UserError: another job is using the folder, or it cannot be locked.
  """
  def taken() -> None:
    raise UserError(f"another job is using {folder}; wait for it, or choose another {flag}")

  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(files.locked(folder / ".lock", taken))
    except OSError as error:
      raise UserError(f"{folder} cannot be locked ({error.strerror}); some network file systems do not support locks: "
                      f"choose another {flag}") from error
    yield


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
  """`locked`, held by process 0 for all processes of the run.

  Raises:
    UserError: on all processes: another job is using the folder, or a process does not see it.
  """
  with contextlib.ExitStack() as stack:
    if processes.primary():
      processes.together(lambda: stack.enter_context(locked(folder)))
    else:
      processes.together(lambda: None)
    processes.together(lambda: _check_seen(folder))
    yield


def _check_seen(folder: pathlib.Path) -> None:
  if not (folder / ".lock").exists():
    raise UserError(f"--workdir {folder} does not exist on this host; choose one on a file system that all hosts share")


def check_scenario(folder: pathlib.Path, experiment: Experiment) -> None:
  """Refuses to resume a run whose images have changed.

  Raises:
    UserError: scenario.json has another digest, of the draw or of the pictures.
  """
  path = folder / "scenario.json"
  if not path.exists() or not (_has_begun(folder) or _replicas_have_begun(folder)):
    return
  saved = journal.read_json(path, "digest", "pictures_digest")
  for name, now in (("digest", experiment.scenario.digest), ("pictures_digest", pictures_digest(experiment))):
    if saved[name] != now:
      raise UserError(f"{folder} holds a run on other images ({name} {str(saved[name])[:16]}, now {now[:16]}): the "
                      f"data set has changed; restore the data set, or choose another --workdir")


def pictures_digest(experiment: Experiment) -> str:
  """SHA-256 over the split, class and `Split.identity` of every picture, test pictures included."""
  source, drawn, digest = experiment.source, experiment.scenario, hashlib.sha256()
  tests = [np.flatnonzero(source.test.labels == label).tolist() for label in drawn.class_order]
  for part, split, rows_of_class in (("train", source.train, drawn.train), ("holdout", source.train, drawn.holdout),
                                     ("test", source.test, tests)):
    for number, rows in enumerate(rows_of_class):
      digest.update("\0".join((part, str(number), *(split.identity(row) for row in rows), "")).encode())
  return digest.hexdigest()


def write_start(folder: pathlib.Path, experiment: Experiment) -> None:
  """Process 0 writes config.json, start.json and scenario.json: from now on the folder belongs to this run.

  Raises:
    UserError: start.json is damaged.
  """
  if not processes.primary():
    return
  content = configuration.to_dict(experiment.config)
  for key in _FOLDERS:
    # A later command may be run from another folder.
    if content[key] not in (None, "off"):
      content[key] = str(pathlib.Path(content[key]).expanduser().absolute())
  journal.write_json(folder / "config.json", content)
  _write_origin(folder, experiment)
  drawn, source = experiment.scenario, experiment.source
  journal.write_json(folder / "scenario.json", {
      "digest": drawn.digest, "pictures_digest": pictures_digest(experiment), "dataset": source.name,
      "class_order": list(drawn.class_order),
      "class_names": list(drawn.class_names), "counts": drawn.counts.tolist(),
      "notes": list(source.notes), "skipped": list(source.skipped),
      "holdout_counts": [len(rows) for rows in drawn.holdout],
      "profile": None if drawn.profile is None else list(drawn.profile),
      "capped": {drawn.class_names[j]: pair for j, pair in drawn.capped.items()},
      "tasks": [{"classes": list(plan.task.classes), "new_images": int(drawn.counts[plan.task.classes].sum()),
                 "images_present": plan.size, "steps_per_epoch": plan.steps_per_epoch,
                 "stages": [{"name": stage.name, "epochs": stage.epochs, "steps_per_epoch": stage.steps_per_epoch,
                             "batch_size": stage.batch_size}
                            for stage in plan.stages]}
                for plan in experiment.plans],
      "train_ids": [[source.train.ids[row] for row in rows] for rows in drawn.train],
      "holdout_ids": [[source.train.ids[row] for row in rows] for rows in drawn.holdout]})


def _write_origin(folder: pathlib.Path, experiment: Experiment) -> None:
  """Creates start.json, or adds this start if it differs from the one before, as after an upgrade."""
  path, platform = folder / START, experiment.devices[0].platform
  now = origin.describe(experiment.devices)
  # Replicas have begun where one of them has.
  if not any(map(_has_begun, (folder, *folder.glob("seed-*")))):
    journal.write_json(path, {"precision": experiment.precision, "platform": platform, "starts": [now]})
  elif path.exists():
    saved = journal.read_json(path, "precision")
    # Earlier versions recorded only the versions at the first one.
    starts = saved.get("starts", [])
    if not isinstance(starts, list):
      raise UserError(f"{path} has starts that are no list, so it is damaged; restore the file")
    if starts[-1:] != [now]:
      journal.write_json(path, {**saved, "starts": [*starts, now]})


def finished(folder: pathlib.Path, experiment: Experiment) -> dict[str, Any] | None:
  """The results of a run that has finished all requested tasks; None if some are left."""
  return _done(folder, experiment.config, experiment.stop_after_task)


def _done(folder: pathlib.Path, config: Config, tasks: int) -> dict[str, Any] | None:
  """The results of a run of at least this many tasks; else None."""
  path = folder / "results.json"
  if not path.exists():
    return None
  content = journal.read_json(path, "tasks_done")
  first, count = config.seed, config.replicas
  # The mean over replicas is not a single run's result, nor that of other replicas.
  if content.get("seeds") != (list(range(first, first + count)) if count > 1 else None):
    return None
  return content if content["tasks_done"] >= tasks else None


def write_results(folder: pathlib.Path, content: dict[str, Any]) -> None:
  """Process 0 writes results.json, the last file of a run: it marks the run as finished."""
  if processes.primary():
    journal.write_json(folder / "results.json", content)
