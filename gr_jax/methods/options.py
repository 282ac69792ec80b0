"""One hyper-parameter of a method: its default, type and range, and the checks of a given value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from gr_jax.errors import UserError


class Option(NamedTuple):
  """A hyper-parameter: its default, which also sets the type, and its allowed values or range."""
  default: Any
  allowed: tuple[str, ...] | None = None
  low: float | None = None
  above: float | None = None
  below: float | None = None


Options = Mapping[str, Option]


def weight(default: float) -> Option:
  """A number of 0 or more."""
  return Option(default, low=0.0)


def positive(default: float) -> Option:
  """A number above 0."""
  return Option(default, above=0.0)


def share(default: float) -> Option:
  """A number of 0 or more, below 1."""
  return Option(default, low=0.0, below=1.0)


def parsed(key: str, option: Option, text: str) -> Any:
  """The value of an option given as text; raises as `checked`."""
  kind = type(option.default)
  try:
    value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
  except (KeyError, ValueError):
    value = text
  return checked(key, option, value)


def checked(key: str, option: Option, value: Any) -> Any:
  """The value of an option, in the option's type.

  Raises:
    UserError: wrong type, or value out of range.
  """
  kind = type(option.default)
  if not isinstance(value, (int, float) if kind is float else kind) or (kind is not bool and isinstance(value, bool)):
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}
    raise UserError(f"method_options.{key} is {value!r} ({type(value).__name__}); it takes {names[kind]}")
  if option.allowed is not None and value not in option.allowed:
    raise UserError(f"method_options.{key} is {value!r}; it can be {', '.join(map(repr, option.allowed))}"
                    + nearest(value, option.allowed))
  if option.low is not None and not (math.isfinite(value) and value >= option.low):
    raise UserError(f"method_options.{key} is {value}; it must be {option.low:g} or more")
  if option.above is not None and not (math.isfinite(value) and value > option.above):
    raise UserError(f"method_options.{key} is {value}; it must be above {option.above:g}")
  if option.below is not None and not value < option.below:
    raise UserError(f"method_options.{key} is {value}; it must be below {option.below:g}")
  return kind(value)


def nearest(name: str, names: Mapping[str, Any] | tuple[str, ...], prefix: str = "") -> str:
  """"; did you mean 'NAME'?" with the nearest of `names`; "" if none is near."""
  near = difflib.get_close_matches(name, names, n=1)
  if not near:
    return ""
  return f"; did you mean {prefix}{near[0]}?" if prefix else f"; did you mean {near[0]!r}?"
