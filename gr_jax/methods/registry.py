"""Methods by name, with their options: the values of `config.method` and `config.method_options`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gr_jax import reweighting
from gr_jax.errors import UserError
from gr_jax.methods import (
  addons,
  bic,
  combining,
  der,
  dynamic_distillation,
  eeil,
  finetune,
  foster,
  gr,
  icarl,
  il2m,
  joint,
  lucir,
  lwf,
  mafdrc,
  podnet,
  simplecil,
  ssil,
  wa,
)
from gr_jax.methods.base import Method, with_nearest_mean
from gr_jax.methods.options import Option, Options, checked, nearest, parsed, share
from gr_jax.methods.options import weight as _weight

_TEMPERATURE = Option(2.0, above=0.0)

# name -> (factory, options). A factory's argument `memory` is the number of exemplars of each class; with
# config.memory.total, that after the last task.
METHODS: dict[str, tuple[Callable[..., Method], Mapping[str, Option]]] = {
    "gr": (gr.make, {
        "reweighting": Option("dgr", reweighting.KINDS), "prior": Option(True),
        "distillation": Option("dakd", ("dakd", "kd", "none")),
        "task_ratio": Option("release", reweighting.TASK_RATIOS), "distillation_weight": _weight(0.7),
        "attenuation_gamma": _weight(1.0), "temperature": _TEMPERATURE, "head": Option("linear", gr.HEADS)}),
    "finetune": (finetune.make, {}),
    "joint": (joint.make, {"prior": Option(False)}),
    "lwf": (lwf.make, {"weight": _weight(1.0), "temperature": _TEMPERATURE}),
    "icarl": (icarl.make, {"loss": Option("long_tailed_cil", icarl.LOSSES), "weight": _weight(1.0)}),
    "bic": (bic.make, {
        "temperature": _TEMPERATURE, "bias_epochs_share": Option(1.25, above=0.0),
        "bias_learning_rate": Option(0.1, above=0.0), "bias_penalty": _weight(0.05)}),
    "eeil": (eeil.make, {
        "weight": _weight(1.0), "temperature": _TEMPERATURE, "balanced_epochs_share": Option(0.25, above=0.0),
        "balanced_learning_rate": Option(0.001, above=0.0),
        "balanced_teacher": Option("start", eeil.TEACHERS)}),
    "il2m": (il2m.make, {"scores": Option("logits", il2m.SCORES)}),
    "podnet": (podnet.make, {
        "loss": Option("long_tailed_cil", podnet.LOSSES), "proxies": Option(10, low=1), "flat_weight": _weight(1.0),
        "spatial_weight": _weight(3.0), "balanced_epochs_share": _weight(0.125),
        "balanced_learning_rate": Option(0.005, above=0.0)}),
    "ssil": (ssil.make, {"weight": _weight(1.0), "temperature": _TEMPERATURE, "ratio": Option(4, low=1)}),
    "wa": (wa.make, {"temperature": _TEMPERATURE}),
    "lucir": (lucir.make, {
        "distillation_weight": _weight(5.0), "ranking_weight": _weight(1.0), "margin": _weight(0.5),
        "hardest": Option(2, low=1)}),
    "dynamic_distillation": (dynamic_distillation.make, {
        "distillation_weight": _weight(0.7), "ramp_start": _weight(0.5),
        "entropy": Option("evenness", dynamic_distillation.ENTROPIES), "temperature": _TEMPERATURE,
        "consistency": _weight(0.1), "momentum": share(0.9)}),
    "simplecil": (simplecil.make, {}),
    "der": (der.make, {"auxiliary_weight": _weight(1.0), "aligned": Option(True)}),
    "foster": (foster.make, {
        "boosting_beta": Option(0.96, low=0.0, below=1.0), "compression_beta": Option(0.97, low=0.0, below=1.0),
        "distillation_weight": _weight(1.0), "temperature": _TEMPERATURE,
        "compression_epochs_share": Option(130 / 170, above=0.0),
        "old_features": Option("train", foster.OLD_FEATURES), "align": Option("none", foster.ALIGNMENTS),
        "align_base": Option(1.0, above=0.0)}),
    "mafdrc": (mafdrc.make, {
        "adaptation_epochs_share": Option(0.35, above=0.0), "fusion_epochs_share": Option(0.65, above=0.0),
        "branch_weight": Option(0.2, low=0.0, below=1.0), "old_weight": _weight(4.0), "new_weight": _weight(1.0),
        "prior_power": _weight(1.2), "temperature": _TEMPERATURE}),
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


def resolve(name: str, given: Mapping[str, Any], chosen: Sequence[str] = ()) -> dict[str, Any]:
  """All options of a method and its add-ons: checks the given ones and fills in the defaults.

  Parts that combine (methods.combining) appear only if they are switched on.

  Args:
    name: one of NAMES.
    given: options by name.
    chosen: add-ons, see addons.names.

  Raises:
    UserError: unknown method or option, an option of another method, wrong type, value out of range.
  """
  accepted = options_of(name, chosen)
  _check_known(name, given, accepted)
  valid = {key: checked(key, accepted[key], value) for key, value in given.items()}
  combined = {key: value for key, value in valid.items() if key in combining.OPTIONS and key not in METHODS[name][1]}
  complete = {key: valid.get(key, checked(key, option, option.default)) for key, option in accepted.items()
              if key in METHODS[name][1] or key not in combining.OPTIONS}
  return {**complete, **combining.resolve(combined)}


def parse(name: str, given: Mapping[str, str], chosen: Sequence[str] = ()) -> dict[str, Any]:
  """Parses options from the command line; arguments and errors as for `resolve`."""
  accepted = options_of(name, chosen)
  _check_known(name, given, accepted)
  return {key: parsed(key, accepted[key], text) for key, text in given.items()}


def make(name: str, options: Mapping[str, Any], *, memory: int, chosen: Sequence[str] = ()) -> Method:
  """The method of a config, with its parts and add-ons; with a memory, also the score NEAREST_MEAN.

  Args:
    name: one of NAMES.
    options: see `resolve`; missing ones have their defaults.
    memory: exemplars per class.
    chosen: add-ons, in the order in which they wrap; see addons.names.

  Raises:
    UserError: see `resolve`; parts or add-ons that do not fit the method; or fewer exemplars than are needed.
  """
  complete = resolve(name, options, chosen)
  factory, keys = METHODS[name]
  arguments = {key: complete[key] for key in keys}
  if "memory" in inspect.signature(factory).parameters:
    arguments["memory"] = memory
  parts = {key: value for key, value in complete.items() if key in combining.OPTIONS and key not in keys}
  method = addons.wrap(combining.combine(factory(**arguments), **parts), chosen, complete)
  if memory < method.min_memory:
    with_them = f" with {', '.join(chosen)}" if chosen else ""
    raise UserError(f"memory.per_class is {memory}, but {name}{with_them} needs {method.min_memory} or more exemplars "
                    f"per class; set for example --config.memory.per_class=20")
  return with_nearest_mean(method) if memory else method


def options_of(name: str, chosen: Sequence[str] = ()) -> Options:
  """Options by name: of the parts that combine, the method and its add-ons; UserError for an unknown method."""
  if name not in METHODS:
    raise UserError(f"method is {name!r}; it can be {', '.join(map(repr, METHODS))}" + nearest(name, METHODS))
  # Gradient Reweighting has all parts as its own options.
  parts = {} if name == "gr" else combining.OPTIONS
  return {**parts, **METHODS[name][1], **{key: option for addon in chosen for key, option in
                                          addons.options_of(addon).items()}}


def _check_known(name: str, given: Mapping[str, Any], accepted: Options) -> None:
  of_method = METHODS[name][1]
  for key in given:
    if key in accepted:
      continue
    addon = addons.owner_of(key)
    if addon is not None:
      raise UserError(f"method_options.{key} is an option of the add-on {addon!r}, which is not chosen; add "
                      f"--config.addons={addon}, or leave the option out")
    owners = [other for other, (_, options) in METHODS.items() if key in options]
    others = [other for other in accepted if other not in of_method]
    raise UserError(
        f"method_options.{key} is not an option of method {name!r}"
        + (f" (it belongs to {', '.join(map(repr, owners))})" if owners else "")
        + nearest(key, accepted, "method_options.")
        + (f"; {name!r} has {', '.join(of_method)}" if of_method else f"; {name!r} has none")
        + (f"; parts and add-ons have {', '.join(others)}" if others else ""))
