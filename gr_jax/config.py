"""The config as a frozen dataclass: every key with its type and range, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from gr_jax import memory, methods, models, optimizer, scenario
from gr_jax.data import augment
from gr_jax.data.sources import catalogue
from gr_jax.data.sources import folder as folder_source
from gr_jax.devices import processes
from gr_jax.errors import UserError
from gr_jax.methods import addons


@dataclasses.dataclass(frozen=True)
class _Key:
  """A config key: its type, whether it may be None, and the allowed values."""
  type: type
  optional: bool = False
  allowed: tuple[str, ...] | None = None
  range: str = ""
  inside: Callable[[Any], bool] = lambda value: True


def _key(*, allowed: tuple[str, ...] | None = None, range: str = "",
         inside: Callable[[Any], bool] = lambda value: True) -> Any:
  """A field without a default: a config sets every key."""
  return dataclasses.field(metadata={"allowed": allowed, "range": range, "inside": inside})


def _at_least(low: float, meaning: str | None = None) -> Any:
  return _key(range=meaning or f"{low} or more", inside=lambda value: math.isfinite(value) and value >= low)


def _positive() -> Any:
  return _key(range="above 0", inside=lambda value: math.isfinite(value) and value > 0)


def _share() -> Any:
  return _key(range="0 or more and below 1", inside=lambda value: 0 <= value < 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenarioConfig:
  """How classes and images are drawn and divided into tasks; see scenario.make_scenario."""
  kind: str = _key(allowed=scenario.KINDS)
  imbalance: float = _at_least(1, "the largest class over the smallest, so 1 or more")
  num_tasks: int = _at_least(1)
  first_task_classes: int | None = _at_least(1)
  order: str = _key()
  seed: int = _at_least(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
  """The exemplar memory; see memory.select. One of the two sizes is None."""
  per_class: int | None = _at_least(0)
  total: int | None = _at_least(1)
  selection: str = _key(allowed=memory.SELECTIONS)

  def quota(self, seen: int) -> int:
    """m, exemplars of each class once `seen` classes have been learned."""
    return memory.quota(seen, per_class=self.per_class, total=self.total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig:
  """Additional keys for the data set "folder"; see data.sources.folder."""
  train_list: str | None = _key()
  test_list: str | None = _key()
  test_fraction: float = _share()
  test_seed: int = _at_least(0)
  on_bad_image: str = _key(allowed=folder_source.ON_BAD_IMAGE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A checked config. docs/config.md explains every key.

  Attributes:
    method_options: all options of the method, its parts and add-ons; see methods.registry.
    folder: None for other data sets.
  """
  dataset: str = _key()
  data_dir: str | None = _key()
  distributed: str = _key()
  image_size: int = _at_least(1)
  stored_size: int | None = _at_least(1)
  pictures: str = _key(allowed=("auto", "resident", "prefetch", "stream"))
  cache_dir: str | None = _key()
  worker_timeout: float = _positive()
  model: str = _key()
  precision: str = _key(allowed=models.PRECISIONS)
  method: str = _key()
  addons: str = _key()
  method_options: Mapping[str, Any]
  seed: int = _at_least(0)
  replicas: int = _at_least(1)
  epochs: int = _at_least(1)
  schedule: str = _key(allowed=optimizer.SCHEDULES)
  milestones: tuple[int, ...] = _key()
  learning_rate: float = _positive()
  learning_rate_decay: float = _positive()
  momentum: float = _share()
  weight_decay: float = _at_least(0)
  batch_size: int = _at_least(1)
  evaluation_block: int = _at_least(1)
  augmentation: str = _key(allowed=augment.KINDS)
  validation_fraction: float = _share()
  evaluate_on: str = _key(allowed=("test", "holdout"))
  checkpoint_every_epochs: int = _at_least(1)
  steps_per_call: int = _at_least(1)
  tensorboard: bool = _key()
  stop_after_task: int | None = _at_least(1)
  scenario: ScenarioConfig
  memory: MemoryConfig
  folder: FolderConfig | None


# What can be checked: a config file's value, a saved config, a config that has been checked.
AnyConfig = Config | ml_collections.ConfigDict | Mapping[str, Any]

# Groups of keys by name.
_GROUPS = {"scenario": ScenarioConfig, "memory": MemoryConfig, "folder": FolderConfig}

# The options of the chosen method, see methods.registry.
OPTIONS = "method_options"

# Keys of earlier versions -> their current names.
MOVED = {key: f"{OPTIONS}.{key}" for key in (
    "reweighting", "prior", "distillation", "task_ratio", "distillation_weight", "attenuation_gamma", "temperature")}

# Keys that may change between two starts of a run: locations, and how often things are saved or shown.
FREE_KEYS = ("data_dir", "distributed", "cache_dir", "worker_timeout", "checkpoint_every_epochs", "steps_per_call",
             "tensorboard", "stop_after_task")

# Keys that may differ between the processes of a run.
PLACE_KEYS = ("data_dir", "distributed", "cache_dir")


def _keys(kind: type, prefix: str = "") -> dict[str, _Key]:
  """The keys of a dataclass of this file, by their dotted names."""
  keys, hints = {}, typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    if field.name in _GROUPS:
      keys |= _keys(_GROUPS[field.name], f"{field.name}.")
    elif field.name != OPTIONS:
      hint = hints[field.name]
      parts = [part for part in typing.get_args(hint) if part is not type(None)]
      optional = isinstance(hint, types.UnionType)
      keys[prefix + field.name] = _Key(
          parts[0] if optional else typing.get_origin(hint) or hint, optional, **field.metadata)
  return keys


KEYS = _keys(Config)


def keys_of(dataset: str | None) -> list[str]:
  """The config keys for a data set."""
  return [key for key in KEYS if not key.startswith("folder.") or dataset == "folder"]


def to_dict(config: Config) -> dict[str, Any]:
  """The config as nested dicts, as it is saved with a run; without `folder` if it is None."""
  nested = dataclasses.asdict(config)
  return nested if config.folder is not None else {key: value for key, value in nested.items() if key != "folder"}


def flatten(config: AnyConfig, prefix: str = "") -> dict[str, Any]:
  """The config as {"scenario.kind": "lt", ...}."""
  if isinstance(config, Config):
    config = to_dict(config)
  flat = {}
  for name in config:
    value = config[name]
    if isinstance(value, (ml_collections.ConfigDict, Mapping)):
      flat.update(flatten(value, f"{prefix}{name}."))
    else:
      flat[prefix + name] = tuple(value) if isinstance(value, (list, tuple)) else value
  return flat


def shared(config: Config) -> dict[str, Any]:
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


def parsed(key: str, text: str) -> Any:
  """The value of a config key given as text, such as "20", "None" for a key that can be None, or "80,120".

  Raises:
    UserError: text that does not stand for a value of the key's type.
  """
  entry = KEYS[key]
  if entry.optional and text.lower() == "none":
    return None
  try:
    if entry.type is tuple:
      return tuple(int(part) for part in text.strip("()").split(",") if part.strip())
    return {"true": True, "false": False}[text.lower()] if entry.type is bool else entry.type(text)
  except (KeyError, ValueError) as error:
    raise wrong_type(key, text) from error


def _type_name(key: _Key) -> str:
  name = {tuple: "integers in a tuple, such as (80, 120)", int: "an integer", float: "a number",
          bool: "True or False", str: "a string"}[key.type]
  return name + (", or None" if key.optional else "")


def check(config: AnyConfig) -> Config:
  """Checks every key, and keys that depend on each other, without using data or devices.

  Args:
    config: see configs/, or as saved with a run. A Config has been checked and is returned as it is.

  Returns:
    The frozen config with all options of the method, missing ones at their defaults.

  Raises:
    UserError: unknown or missing key, wrong type, value out of range; gives the value and the remedy.
  """
  if isinstance(config, Config):
    return config
  flat = flatten(config)
  options = {key.removeprefix(f"{OPTIONS}."): flat.pop(key) for key in list(flat) if key.startswith(f"{OPTIONS}.")}
  for key in flat:
    if key not in KEYS:
      raise unknown_key(key)
  needed = keys_of(flat.get("dataset"))
  missing = [key for key in needed if key not in flat]
  if missing:
    raise UserError(f"the config lacks {', '.join(map(repr, missing))}; a config must set every key "
                    f"(see configs/digits_lt.py)")
  for key, value in flat.items():
    _check(key, KEYS[key], value)
  catalogue.check(flat["dataset"])
  processes.parse(flat["distributed"])
  for key in flat:
    if key not in needed:
      raise UserError(f"config key {key!r} belongs to the data set 'folder', but dataset is {flat['dataset']!r}; "
                      f"remove the key, or set dataset to 'folder' (see configs/folder_lt.py)")
  checked = _build(flat, methods.resolve(flat["method"], options, addons.names(flat["addons"])))
  _check_together(checked)
  return checked


def _build(flat: dict[str, Any], options: Mapping[str, Any]) -> Config:
  """The config of checked flat keys."""
  groups: dict[str, dict[str, Any]] = {"": {}}
  for key, value in flat.items():
    group, _, name = key.rpartition(".")
    groups.setdefault(group, {})[name] = value if value is None else KEYS[key].type(value)
  parts: dict[str, Any] = {name: kind(**groups[name]) if name in groups else None for name, kind in _GROUPS.items()}
  return Config(**groups[""], **parts, method_options=options)


def _check_together(config: Config) -> None:
  """Checks keys that depend on each other."""
  milestones = list(config.milestones)
  if milestones != sorted(set(milestones)) or any(m < 1 for m in milestones):
    raise UserError(f"milestones are {config.milestones}; they must be ascending numbers of finished epochs, from 1")
  if config.schedule == "cosine" and milestones:
    raise UserError(f"milestones are {config.milestones}, but schedule 'cosine' has none; set "
                    f"--config.milestones='()' or --config.schedule=steps")
  if config.stored_size is not None and config.stored_size < config.image_size:
    raise UserError(f"stored_size is {config.stored_size}, smaller than image_size ({config.image_size}), which would "
                    f"blur every view; set --config.stored_size=None for image_size * 256 / 224")
  first, tasks = config.scenario.first_task_classes, config.scenario.num_tasks
  if first is not None and tasks < 2:
    raise UserError(f"scenario.num_tasks is {tasks} with scenario.first_task_classes = {first}; a base task needs "
                    f"scenario.num_tasks of 2 or more, or set --config.scenario.first_task_classes=None")
  _check_memory(config.memory)
  # Of a total, the data set's number of classes decides; training.experiment checks it.
  methods.make(config.method, config.method_options, memory=config.memory.quota(1),
               chosen=addons.names(config.addons))
  stop = config.stop_after_task
  if stop is not None and stop > tasks:
    raise UserError(f"stop_after_task is {stop}, but scenario.num_tasks is {tasks}; choose {tasks} or fewer")


def _check_memory(config: MemoryConfig) -> None:
  if config.per_class is not None and config.total is not None:
    raise UserError(f"memory.per_class is {config.per_class} and memory.total is {config.total}, but a memory has one "
                    f"size; unset one of them: --config.memory.per_class=None or --config.memory.total=None")
  if config.per_class is None and config.total is None:
    raise UserError("memory.per_class and memory.total are both None; set one of them, such as "
                    "--config.memory.per_class=20, or 0 for no memory")


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
