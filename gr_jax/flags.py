"""The flag --config names a config file; --config.KEY=VALUE changes a key, --config.KEY=None unsets it."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from gr_jax.errors import UserError

if TYPE_CHECKING:
  from gr_jax.config import Config

# The keys that options belong to.
_OWNERS = ("method", "addons")

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file; change single keys with --config.KEY=VALUE.", lock_config=True)


def config() -> Config:
  """The checked config from the flags.

  Raises:
    UserError: no --config, a file that returns no ConfigDict, or see config.check.
  """
  if _CONFIG.value is None:
    raise UserError("--config is missing; use for example --config=configs/digits_lt.py")
  if not isinstance(_CONFIG.value, ml_collections.ConfigDict):
    raise UserError(f"get_config() of {path()} returns a {type(_CONFIG.value).__name__}; it must be a ConfigDict, as "
                    f"in configs/digits_lt.py")
  # Imported here so that a bad flag is reported immediately.
  from gr_jax import config as configuration
  return configuration.check(_CONFIG.value)


def path() -> pathlib.Path:
  """Path of the config file."""
  return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]))


def parse(argv: list[str]) -> list[str]:
  """absl's parser for commands with a config; errors suggest the nearest key."""
  from gr_jax import config as configuration
  from gr_jax import methods
  from gr_jax.methods import addons
  kept, optional, options, chosen = [], {}, {}, {}
  arguments = iter(argv)
  for arg in arguments:
    name, _, value = arg.removeprefix("-").removeprefix("-").partition("=")
    if arg.startswith("-") and name == "config" and value and not pathlib.Path(value.partition(":")[0]).is_file():
      raise UserError(f"--config is {value}, but there is no such file")
    key = name.removeprefix("config.")
    if not arg.startswith("-") or key == name:
      kept.append(arg)
      continue
    if key.startswith(f"{configuration.OPTIONS}."):
      if "=" not in arg:
        raise UserError(f"{arg} has no value; use {arg}=VALUE")
      options[key.removeprefix(f"{configuration.OPTIONS}.")] = value
      continue
    if key not in configuration.KEYS:
      raise configuration.unknown_key(key)
    entry = configuration.KEYS[key]
    # A flag of a key that is True or False may have no value.
    if "=" not in arg and entry.type is not bool:
      value = next(arguments, None)
      if value is None:
        raise UserError(f"{arg} has no value; use {arg}=VALUE")
      arg = f"--config.{key}={value}"
    # The last flag for a key counts.
    if key in _OWNERS:
      chosen[key] = value
    elif entry.optional:
      # ml_collections takes the type from the config file's value, which may be None.
      optional[key] = configuration.parsed(key, value)
    else:
      kept.append(arg)
  try:
    # ml_collections reads overrides from sys.argv and rejects options that the config file does not set.
    with _command_line(kept), _recipes(kept):
      rest = flags.FLAGS(kept)
    _choose(**chosen)
    _set(optional)
  except flags.IllegalFlagValueError as error:
    for arg in kept:
      if str(error).startswith(f"flag {arg}") and arg.startswith("--config."):
        raise configuration.wrong_type(*arg.removeprefix("--config.").split("=", 1)) from error
    raise UserError(str(error)) from error
  except flags.Error as error:
    raise UserError(f"{error}; --help lists the flags") from error
  except KeyError as error:
    # ConfigDict quotes the key in its message.
    name = str(error.args[0]).strip("'\"")
    raise UserError(f"the config file has no keys {name}.*; they belong to another data set (configs/folder_lt.py has "
                    f"all keys)") from error
  except AttributeError as error:
    raise UserError(f"the config file cannot be used: {error}; see configs/digits_lt.py for an example") from error
  # What is no ConfigDict is refused by `config`.
  if options and isinstance(_CONFIG.value, ml_collections.ConfigDict):
    with _CONFIG.value.unlocked():
      # The type of an option depends on the method, which another flag may set.
      _CONFIG.value[configuration.OPTIONS].update(methods.parse(
          _CONFIG.value.method, options, addons.names(_CONFIG.value.addons)))
  return rest


def _choose(method: str | None = None, addons: str | None = None) -> None:
  """Sets method and add-ons from the flags; what a recipe says for others than these is dropped.

  Raises:
    AttributeError: the config file has no such key.
    UserError: see addons.names.
  """
  from gr_jax import config as configuration
  from gr_jax.methods import addons as known
  recipe = _CONFIG.value
  # What is no ConfigDict is refused by `config`.
  if not isinstance(recipe, ml_collections.ConfigDict) or method is None and addons is None:
    return
  before = recipe.method
  if method is not None:
    recipe.method = method
  if addons is not None:
    recipe.addons = addons
  wrapping = known.names(recipe.addons)
  with recipe.unlocked():
    for option in list(recipe[configuration.OPTIONS]):
      owner = known.owner_of(option)
      if owner not in wrapping if owner is not None else recipe.method != before:
        del recipe[configuration.OPTIONS][option]


def _set(values: Mapping[str, Any]) -> None:
  """Sets keys of the config that can be None.

  Raises:
    KeyError: the config file has no such group of keys.
  """
  recipe = _CONFIG.value
  if not isinstance(recipe, ml_collections.ConfigDict):
    return
  for key, value in values.items():
    group, _, name = key.rpartition(".")
    holder = recipe[group] if group else recipe
    # Without its type check, which knows the type of the value before, not that of the key.
    with holder.ignore_type(), holder.unlocked():
      holder[name] = value


@contextlib.contextmanager
def _recipes(argv: list[str]) -> Iterator[None]:
  """Lets a recipe in a folder `configs` import the others (`from configs import base`), wherever the command runs."""
  before = list(sys.path)
  sys.path += [str(pathlib.Path(arg.partition("=")[2].partition(":")[0]).absolute().parent.parent) for arg in argv
               if arg.startswith(("--config=", "-config="))]
  try:
    yield
  finally:
    sys.path[:] = before


@contextlib.contextmanager
def _command_line(argv: list[str]) -> Iterator[None]:
  """Sets sys.argv to `argv` inside the context."""
  before, sys.argv = sys.argv, argv
  try:
    yield
  finally:
    sys.argv = before
