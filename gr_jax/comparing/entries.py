"""The entries of a comparison, NAME[+ADDON][:KEY=VALUE], and the settings among which the hold-out chooses."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gr_jax import config as configuration
from gr_jax import methods
from gr_jax.config import Config
from gr_jax.errors import UserError
from gr_jax.methods.addons import names as addon_names

# Keys that a comparison sets itself -> how.
_RESERVED = {"method": "--methods", "addons": "--methods", "seed": "--seeds", "replicas": "--seeds",
             "evaluate_on": "--tune", "distributed": "one process a device"}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One method of a comparison.

  Attributes:
    name: as on the command line.
    method, addons: from the name.
    config: with the entry's method and settings, for the first seed.
  """
  name: str
  method: str
  addons: tuple[str, ...]
  config: Config

  @property
  def plain(self) -> bool:
    """Whether the entry is a method as it is, without settings of its own."""
    return ":" not in self.name

  @property
  def folder(self) -> str:
    """Its name as that of a folder."""
    return folder_name(self.name)


@dataclasses.dataclass(frozen=True)
class Setting:
  """One of the settings of an entry that --tune lists.

  Attributes:
    values: config key -> value as on the command line.
    changes: how many keys differ from the entry's config.
    config: with these values.
  """
  values: Mapping[str, str]
  changes: int
  config: Config

  @property
  def name(self) -> str:
    return ", ".join(f"{key.removeprefix(f'{configuration.OPTIONS}.')}={value}" for key, value in self.values.items())

  @property
  def folder(self) -> str:
    return folder_name(self.name)


def folder_name(name: str) -> str:
  """A name without characters that file systems or shells treat differently."""
  return re.sub(r"[^\w+=.,()-]", "_", name.replace(", ", ","))


def parse(texts: str, base: Config) -> list[Entry]:
  """The entries of --methods, checked.

  Args:
    texts: entries separated by commas; a value may have commas inside parentheses.
    base: the config that all entries start from, without add-ons and options of a method.

  Raises:
    UserError: no entry, a bad one, an unknown method, add-on or key, a value out of range, two entries that are the
      same run.
  """
  names = split(texts)
  if not names or not all(names):
    raise UserError(f"--methods is {texts!r}; it takes entries separated by commas, such as gr,lucir,wa:temperature=1")
  if base.addons:
    raise UserError(f"the config has the add-ons {base.addons!r}, but a comparison has several methods; name add-ons "
                    f"in --methods, such as --methods=gr,lucir+lws")
  if base.method_options != methods.resolve(base.method, {}):
    raise UserError(f"the config sets options of the method {base.method!r}, but a comparison has several methods; "
                    f"give options in --methods, such as --methods=wa:temperature=1,gr")
  entries = [_entry(name, base) for name in names]
  for one, other in itertools.combinations(entries, 2):
    if one.config == other.config:
      same = "twice" if one.name == other.name else f"and {other.name!r}, which is the same run"
      raise UserError(f"--methods has {one.name!r} {same}; remove one of them")
    if one.folder == other.folder:
      raise UserError(f"--methods has {one.name!r} and {other.name!r}, which would share the folder {one.folder}; "
                      f"write one of them differently")
  return entries


def refuse_flags(argv: Sequence[str]) -> None:
  """Refuses flags that would have no effect, because --methods names the method of each run; raises UserError."""
  if any(re.match(r"--?config\.method(=|$)", arg) for arg in argv):
    raise UserError("--config.method names one method, but a comparison has several; use --methods=gr,lucir")


def split(texts: str) -> list[str]:
  """Splits at the commas outside of parentheses."""
  return [part.strip() for part in re.split(r",(?![^()]*\))", texts)] if texts else []


def _entry(name: str, base: Config) -> Entry:
  head, *settings = name.split(":")
  method, *addons = head.split("+")
  values = {}
  if not all(addons) or not method:
    raise UserError(f"--methods has the entry {name!r}; an entry is NAME[+ADDON][:KEY=VALUE], such as lucir+lws")
  for setting in settings:
    key, equals, value = setting.partition("=")
    if not equals or not key:
      raise UserError(f"--methods has the entry {name!r}, but {setting!r} is not KEY=VALUE; an entry is "
                      f"NAME[+ADDON][:KEY=VALUE], such as wa:temperature=1")
    key = resolve(key, method, addons)
    if key in values:
      raise UserError(f"--methods has the entry {name!r}, which sets {key} twice")
    values[key] = value
  config = {**_without_options(base), "method": method, "addons": ",".join(addons)}
  try:
    return Entry(name, method, tuple(addons), changed(configuration.check(config), values))
  except UserError as error:
    raise UserError(f"--methods, entry {name!r}: {error}") from error


def resolve(key: str, method: str, addons: Sequence[str]) -> str:
  """The config key that a short key of an entry means: an option of its method or add-ons, else a key of the config.

  Raises:
    UserError: unknown, or set by the comparison itself.
  """
  prefix = f"{configuration.OPTIONS}."
  option = key.removeprefix(prefix)
  chosen = addon_names(",".join(addons))
  if option in methods.options_of(method, chosen):
    return prefix + option
  if key in _RESERVED:
    raise UserError(f"{key} cannot be set for one method; a comparison sets it by {_RESERVED[key]}")
  if key in configuration.KEYS:
    return key
  # Unknown to both. Unless a key of the config is nearest, it is taken for an option of the method, misspelt.
  near = difflib.get_close_matches(key, [*configuration.KEYS, *methods.options_of(method, chosen)], n=1)
  if not near or near[0] not in configuration.KEYS:
    methods.parse(method, {option: ""}, chosen)
  raise configuration.unknown_key(key)


def changed(config: Config, values: Mapping[str, str]) -> Config:
  """The config with keys set to values from the command line; raises UserError as config.check."""
  flat, prefix = configuration.flatten(config), f"{configuration.OPTIONS}."
  options = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
  flat |= {prefix + key: value for key, value in methods.parse(
      config.method, options, addon_names(config.addons)).items()}
  flat |= {key: configuration.parsed(key, value) for key, value in values.items() if not key.startswith(prefix)}
  return configuration.check(flat)


def settings(entry: Entry, tune: Sequence[str]) -> list[Setting]:
  """Every combination of the values that --tune lists for an entry; [] if it lists none for its method.

  Args:
    entry: of the comparison.
    tune: KEY=VALUE,VALUE,... each.

  Raises:
    UserError: not of this form, a value out of range, a key that the entry fixes, a single value.
  """
  choices = {}
  for text in tune:
    key, _, listed = text.partition("=")
    values = split(listed)
    if len(set(values)) < 2 or len(set(values)) < len(values) or not all(values):
      raise UserError(f"--tune is {text!r}; it takes KEY=VALUE,VALUE,... with two or more different values, such as "
                      f"--tune=learning_rate=0.05,0.1")
    if not _belongs(key, entry):
      continue
    key = resolve(key, entry.method, entry.addons)
    if key in choices or key in _fixed(entry):
      raise UserError(f"--tune={text}: {key} is set twice for the entry {entry.name!r}; remove one of the two")
    choices[key] = values
  candidates, before = [], configuration.flatten(entry.config)
  for combination in itertools.product(*choices.values()) if choices else ():
    values = dict(zip(choices, combination))
    try:
      config = changed(entry.config, values)
    except UserError as error:
      raise UserError(f"--tune, for the entry {entry.name!r}: {error}") from error
    flat = configuration.flatten(config)
    candidates.append(Setting(values, sum(flat.get(key) != before.get(key) for key in values), config))
  return candidates


def check_tune(entries: Sequence[Entry], tune: Sequence[str]) -> None:
  """Refuses a key of --tune that no entry has; raises UserError."""
  for text in tune:
    key = text.partition("=")[0]
    if not any(_belongs(key, entry) for entry in entries):
      resolve(key, entries[0].method, entries[0].addons)
      raise UserError(f"--tune={text}: no entry of --methods has {key}")


def _belongs(key: str, entry: Entry) -> bool:
  """Whether --tune's key is one of the config, or an option of this entry's method or add-ons."""
  return key in configuration.KEYS or key in _RESERVED or (
      key.removeprefix(f"{configuration.OPTIONS}.") in methods.options_of(entry.method, entry.addons))


def _fixed(entry: Entry) -> set[str]:
  return {resolve(setting.partition("=")[0], entry.method, entry.addons) for setting in entry.name.split(":")[1:]}


def _without_options(config: Config) -> dict[str, Any]:
  return {key: value for key, value in configuration.flatten(config).items()
          if not key.startswith(f"{configuration.OPTIONS}.")}
