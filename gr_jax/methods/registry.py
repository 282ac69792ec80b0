"""Methods by name, with their options: the values of `config.method` and `config.method_options`."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gr_jax import reweighting
from gr_jax.errors import UserError
from gr_jax.methods import bic, finetune, gr, icarl, joint, lucir, lwf, wa
from gr_jax.methods.base import Method


class Option(NamedTuple):
  """A hyper-parameter: its default, which also sets the type, and its allowed values or range."""
  default: Any
  allowed: tuple[str, ...] | None = None
  low: float | None = None
  above: float | None = None


def _weight(default: float) -> Option:
  return Option(default, low=0.0)


_TEMPERATURE = Option(2.0, above=0.0)

# name -> (factory, options). A factory's argument `memory` is config.memory.per_class.
METHODS: dict[str, tuple[Callable[..., Method], Mapping[str, Option]]] = {
    "gr": (gr.make, {
        "reweighting": Option("dgr", reweighting.KINDS), "prior": Option(True),
        "distillation": Option("dakd", ("dakd", "kd", "none")),
        "task_ratio": Option("release", reweighting.TASK_RATIOS), "distillation_weight": _weight(0.7),
        "attenuation_gamma": _weight(1.0), "temperature": _TEMPERATURE}),
    "finetune": (finetune.make, {}),
    "joint": (joint.make, {"prior": Option(False)}),
    "lwf": (lwf.make, {"weight": _weight(1.0), "temperature": _TEMPERATURE}),
    "icarl": (icarl.make, {"loss": Option("long_tailed_cil", icarl.LOSSES), "weight": _weight(1.0)}),
    "bic": (bic.make, {
        "temperature": _TEMPERATURE, "bias_epochs_share": Option(1.25, above=0.0),
        "bias_learning_rate": Option(0.1, above=0.0), "bias_penalty": _weight(0.05)}),
    "wa": (wa.make, {"temperature": _TEMPERATURE}),
    "lucir": (lucir.make, {
        "distillation_weight": _weight(5.0), "ranking_weight": _weight(1.0), "margin": _weight(0.5),
        "hardest": Option(2, low=1)}),
}
NAMES = tuple(METHODS)
_PUBLISHED = frozenset(NAMES)


def register(name: str, factory: Callable[..., Method], options: Mapping[str, Option]) -> None:
  """Registers your own method in this process; see docs/methods.md.

  Raises:
    ValueError: the name belongs to a method of this package.
  """
  if name in _PUBLISHED:
    raise ValueError(f"{name!r} is a method of gr_jax; choose another name")
  METHODS[name] = (factory, dict(options))


def resolve(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """All options of a method: checks the given ones and fills in the defaults.

  Raises:
    UserError: unknown method or option, an option of another method, wrong type, value out of range.
  """
  _known(name)
  options = METHODS[name][1]
  for key in given:
    if key not in options:
      raise UserError(_unknown_option(name, key))
  return {key: _checked(key, option, given.get(key, option.default)) for key, option in options.items()}


def parse(name: str, given: Mapping[str, str]) -> dict[str, Any]:
  """Parses options from the command line; raises as `resolve`."""
  _known(name)
  found = {}
  for key, text in given.items():
    if key not in METHODS[name][1]:
      raise UserError(_unknown_option(name, key))
    kind = type(METHODS[name][1][key].default)
    try:
      value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
      value = text
    found[key] = _checked(key, METHODS[name][1][key], value)
  return found


def make(name: str, options: Mapping[str, Any], *, memory: int) -> Method:
  """The method of a config.

  Args:
    name: one of NAMES.
    options: see `resolve`; missing ones have their defaults.
    memory: exemplars per class.

  Raises:
    UserError: see `resolve`; or fewer exemplars than the method needs.
  """
  found = resolve(name, options)
  factory = METHODS[name][0]
  if "memory" in inspect.signature(factory).parameters:
    found["memory"] = memory
  method = factory(**found)
  if memory < method.min_memory:
    raise UserError(f"memory.per_class is {memory}, but {name} needs {method.min_memory} or more exemplars per class; "
                    f"set for example --config.memory.per_class=20")
  return method


def _known(name: str) -> None:
  if name not in METHODS:
    near = difflib.get_close_matches(name, METHODS, n=1)
    raise UserError(f"method is {name!r}; it can be {', '.join(map(repr, METHODS))}"
                    + (f"; did you mean {near[0]!r}?" if near else ""))


def _unknown_option(name: str, key: str) -> str:
  owners = [other for other, (_, options) in METHODS.items() if key in options]
  own = METHODS[name][1]
  near = difflib.get_close_matches(key, own, n=1)
  return (f"method_options.{key} is not an option of method {name!r}"
          + (f" (it belongs to {', '.join(map(repr, owners))})" if owners else "")
          + (f"; did you mean method_options.{near[0]}?" if near else "")
          + (f"; {name!r} has {', '.join(own)}" if own else f"; {name!r} has none"))


def _checked(key: str, option: Option, value: Any) -> Any:
  kind = type(option.default)
  if not isinstance(value, (int, float) if kind is float else kind) or (kind is not bool and isinstance(value, bool)):
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}
    raise UserError(f"method_options.{key} is {value!r} ({type(value).__name__}); it takes {names[kind]}")
  if option.allowed is not None and value not in option.allowed:
    near = difflib.get_close_matches(value, option.allowed, n=1)
    raise UserError(f"method_options.{key} is {value!r}; it can be {', '.join(map(repr, option.allowed))}"
                    + (f"; did you mean {near[0]!r}?" if near else ""))
  if option.low is not None and not (math.isfinite(value) and value >= option.low):
    raise UserError(f"method_options.{key} is {value}; it must be {option.low:g} or more")
  if option.above is not None and not (math.isfinite(value) and value > option.above):
    raise UserError(f"method_options.{key} is {value}; it must be above {option.above:g}")
  return kind(value)
