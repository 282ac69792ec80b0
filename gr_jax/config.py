"""Every config key with its type and range, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any

import ml_collections

from gr_jax import memory, methods, models, optimizer, scenario
from gr_jax.data import augment
from gr_jax.data.sources import catalogue, folder
from gr_jax.devices import processes
from gr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Key:
  """A config key: its type, whether it may be None, and the allowed values."""
  type: type
  optional: bool = False
  allowed: tuple[str, ...] | None = None
  range: str = ""
  inside: Callable[[Any], bool] = lambda value: True


def _at_least(low: float, meaning: str | None = None) -> dict[str, Any]:
  return {"range": meaning or f"{low} or more", "inside": lambda value: math.isfinite(value) and value >= low}


_POSITIVE: dict[str, Any] = {"range": "above 0", "inside": lambda value: math.isfinite(value) and value > 0}
_SHARE: dict[str, Any] = {"range": "0 or more and below 1", "inside": lambda value: 0 <= value < 1}

KEYS = {
    "dataset": _Key(str),
    "data_dir": _Key(str, optional=True),
    "distributed": _Key(str),
    "image_size": _Key(int, **_at_least(1)),
    "stored_size": _Key(int, optional=True, **_at_least(1)),
    "pictures": _Key(str, allowed=("auto", "resident", "prefetch", "stream")),
    "cache_dir": _Key(str, optional=True),
    "worker_timeout": _Key(float, **_POSITIVE),
    "model": _Key(str),
    "precision": _Key(str, allowed=models.PRECISIONS),
    "method": _Key(str),
    "seed": _Key(int, **_at_least(0)),
    "replicas": _Key(int, **_at_least(1)),
    "epochs": _Key(int, **_at_least(1)),
    "schedule": _Key(str, allowed=optimizer.SCHEDULES),
    "milestones": _Key(tuple),
    "learning_rate": _Key(float, **_POSITIVE),
    "learning_rate_decay": _Key(float, **_POSITIVE),
    "momentum": _Key(float, **_SHARE),
    "weight_decay": _Key(float, **_at_least(0)),
    "batch_size": _Key(int, **_at_least(1)),
    "evaluation_block": _Key(int, **_at_least(1)),
    "augmentation": _Key(str, allowed=augment.KINDS),
    "validation_fraction": _Key(float, **_SHARE),
    "checkpoint_every_epochs": _Key(int, **_at_least(1)),
    "steps_per_call": _Key(int, **_at_least(1)),
    "stop_after_task": _Key(int, optional=True, **_at_least(1)),
    "scenario.kind": _Key(str, allowed=scenario.KINDS),
    "scenario.imbalance": _Key(
        float, **_at_least(1, "the largest class over the smallest, so 1 or more")),
    "scenario.num_tasks": _Key(int, **_at_least(1)),
    "scenario.first_task_classes": _Key(int, optional=True, **_at_least(1)),
    "scenario.order": _Key(str),
    "scenario.seed": _Key(int, **_at_least(0)),
    "memory.per_class": _Key(int, **_at_least(0)),
    "memory.selection": _Key(str, allowed=memory.SELECTIONS),
}

# Additional keys for the data set "folder".
_FOLDER_KEYS = {
    "folder.train_list": _Key(str, optional=True),
    "folder.test_list": _Key(str, optional=True),
    "folder.test_fraction": _Key(float, **_SHARE),
    "folder.test_seed": _Key(int, **_at_least(0)),
    "folder.on_bad_image": _Key(str, allowed=folder.ON_BAD_IMAGE),
}
KEYS |= _FOLDER_KEYS

# The options of the chosen method, see methods.registry.
OPTIONS = "method_options"

# Keys of earlier versions -> their current names.
MOVED = {key: f"{OPTIONS}.{key}" for key in (
    "reweighting", "prior", "distillation", "task_ratio", "distillation_weight", "attenuation_gamma", "temperature")}

# Keys that may change between two starts of a run: locations, and how often things are saved or shown.
FREE_KEYS = ("data_dir", "distributed", "cache_dir", "worker_timeout", "checkpoint_every_epochs", "steps_per_call",
             "stop_after_task")

# Keys that may differ between the processes of a run.
PLACE_KEYS = ("data_dir", "distributed", "cache_dir")


def keys_of(dataset: str | None) -> list[str]:
  """The config keys for a data set."""
  return [key for key in KEYS if key not in _FOLDER_KEYS or dataset == "folder"]


def flatten(config: ml_collections.ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
  """The config as {"scenario.kind": "lt", ...}; unset placeholders are None."""
  flat = {}
  for name in config:
    value = config[name]
    if isinstance(value, (ml_collections.ConfigDict, dict)):
      flat.update(flatten(value, f"{prefix}{name}."))
    else:
      flat[prefix + name] = tuple(value) if isinstance(value, (list, tuple)) else value
  return flat


def shared(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The flat config without the keys that may differ between the processes of a run."""
  return {key: value for key, value in flatten(config).items() if key not in PLACE_KEYS}


def unknown_key(key: str) -> UserError:
  """The error for an unknown key; suggests its new name or the nearest key."""
  if key in MOVED:
    return UserError(f"config key {key!r} is now {MOVED[key]!r}; use --config.{MOVED[key]}=...")
  near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)
  return UserError(f"unknown config key {key!r}; did you mean {near[0]!r}?")


def wrong_type(key: str, value: Any) -> UserError:
  """The error for a value of the wrong type."""
  return UserError(f"config key {key!r} is {value!r} ({type(value).__name__}); it takes "
                   f"{_type_name(KEYS[key])}")


def _type_name(key: _Key) -> str:
  name = {tuple: "integers in a tuple, such as (80, 120)", int: "an integer", float: "a number",
          bool: "True or False", str: "a string"}[key.type]
  return name + (", or None" if key.optional else "")


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every key, and keys that depend on each other, without using data or devices.

  Raises:
    UserError: unknown or missing key, wrong type, value out of range; gives the value and the remedy.
  """
  flat = flatten(config)
  options = {key.removeprefix(f"{OPTIONS}."): flat.pop(key) for key in list(flat) if key.startswith(f"{OPTIONS}.")}
  for key in flat:
    if key not in KEYS:
      raise unknown_key(key)
  needed = keys_of(config.get("dataset"))
  missing = [key for key in needed if key not in flat]
  if missing:
    raise UserError(f"the config lacks {', '.join(map(repr, missing))}; a config must set every key "
                    f"(see configs/digits_lt.py)")
  for key, value in flat.items():
    _check(key, KEYS[key], value)
  catalogue.check(config.dataset)
  processes.parse(config.distributed)
  for key in flat:
    if key not in needed:
      raise UserError(f"config key {key!r} belongs to the data set 'folder', but dataset is {config.dataset!r}; "
                      f"remove the key, or set dataset to 'folder' (see configs/folder_lt.py)")
  milestones = list(flat["milestones"])
  if milestones != sorted(set(milestones)) or any(m < 1 for m in milestones):
    raise UserError(f"milestones are {tuple(milestones)}; they must be ascending numbers of finished epochs, from 1")
  if config.schedule == "cosine" and milestones:
    raise UserError(f"milestones are {tuple(milestones)}, but schedule 'cosine' has none; set "
                    f"--config.milestones='()' or --config.schedule=steps")
  if config.stored_size is not None and config.stored_size < config.image_size:
    raise UserError(f"stored_size is {config.stored_size}, smaller than image_size ({config.image_size}), which would "
                    f"blur every view; set --config.stored_size=None for image_size * 256 / 224")
  first, tasks = config.scenario.first_task_classes, config.scenario.num_tasks
  if first is not None and tasks < 2:
    raise UserError(f"scenario.num_tasks is {tasks} with scenario.first_task_classes = {first}; a base task needs "
                    f"scenario.num_tasks of 2 or more, or set --config.scenario.first_task_classes=None")
  methods.make(config.method, options, memory=config.memory.per_class)
  stop = config.stop_after_task
  if stop is not None and stop > tasks:
    raise UserError(f"stop_after_task is {stop}, but scenario.num_tasks is {tasks}; choose {tasks} or fewer")


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy with all options of the method, missing ones at their defaults; raises as `validate`."""
  validate(config)
  found = config.copy_and_resolve_references()
  with found.unlocked():
    found[OPTIONS] = ml_collections.ConfigDict(methods.resolve(config.method, dict(config.get(OPTIONS, {}))))
  return found


def _check(name: str, key: _Key, value: Any) -> None:
  if value is None:
    if not key.optional:
      raise wrong_type(name, value)
    return
  allowed_types = (int, float) if key.type is float else (key.type,)
  if not isinstance(value, allowed_types) or (key.type is not bool and isinstance(value, bool)):
    raise wrong_type(name, value)
  if key.type is tuple and not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
    raise wrong_type(name, value)
  if key.allowed is not None and value not in key.allowed:
    near = difflib.get_close_matches(value, key.allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{name} is {value!r}; it can be {', '.join(map(repr, key.allowed))}{hint}")
  if not key.inside(value):
    raise UserError(f"{name} is {value}; it must be {key.range}")


def difference(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
  """Lines "key: saved value -> wanted value" for two flat configs, without FREE_KEYS."""
  keys = [key for key in {**saved, **wanted} if key not in FREE_KEYS]
  return [f"{key}: {saved.get(key)!r} -> {wanted.get(key)!r}" for key in keys
          if saved.get(key) != wanted.get(key)]
