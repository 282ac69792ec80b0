"""Add-ons by name: what wraps a method, as a value of `config.addons`; one short file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gr_jax.errors import UserError
from gr_jax.methods.addons import gpa, gvalign, lws
from gr_jax.methods.base import Method
from gr_jax.methods.options import Option, Options, nearest, positive, share, weight

# name -> (wrapper, options). The option KEY of an add-on is config.method_options.NAME_KEY.
ADDONS: dict[str, tuple[Callable[..., Method], Options]] = {
    "lws": (lws.wrap, {
        "epochs_share": positive(30 / 160), "learning_rate": positive(0.1), "scale_rate": weight(0.1)}),
    "gvalign": (gvalign.wrap, {
        "mixup": positive(1.0), "steps": Option(100, low=1), "learning_rate": positive(0.1),
        "statistics": Option("plain", gvalign.STATISTICS)}),
    "gpa": (gpa.wrap, {
        "variant": Option("published", gpa.VARIANTS), "weight": weight(0.12), "momentum": share(0.9)}),
}


def names(text: str) -> tuple[str, ...]:
  """The add-ons in `config.addons`, such as "lws,gvalign", in the order in which they wrap; "" for none.

  Raises:
    UserError: an unknown add-on, or one named twice.
  """
  chosen = tuple(name.strip() for name in text.split(",")) if text.strip() else ()
  for name in chosen:
    if name not in ADDONS:
      raise UserError(f"addons is {text!r}, but {name!r} is no add-on; it can be {', '.join(map(repr, ADDONS))}"
                      + nearest(name, ADDONS))
    if chosen.count(name) > 1:
      raise UserError(f"addons is {text!r}, which names {name!r} twice; name it once")
  return chosen


def options_of(name: str) -> dict[str, Option]:
  """The options of an add-on, by their names in `config.method_options`."""
  return {f"{name}_{key}": option for key, option in ADDONS[name][1].items()}


def owner_of(key: str) -> str | None:
  """The add-on that has an option of `config.method_options`; None if there is none."""
  return next((name for name in ADDONS if key in options_of(name)), None)


def wrap(method: Method, chosen: Sequence[str], options: dict[str, Any]) -> Method:
  """A method with add-ons, each wrapping what those before it made.

  Args:
    method: the method.
    chosen: see `names`.
    options: all options of these add-ons, by their names in `config.method_options`.

  Raises:
    UserError: a method that an add-on cannot wrap, and why.
  """
  for name in chosen:
    wrapper, keys = ADDONS[name]
    method = wrapper(method, **{key: options[f"{name}_{key}"] for key in keys})
  return method
