"""Methods of class-incremental learning, one short file each; `gr` is Gradient Reweighting."""

from gr_jax.methods.base import Context, Loss, Method, Outputs, Stage
from gr_jax.methods.registry import METHODS, NAMES, Option, make, options_of, parse, register, resolve

__all__ = ["METHODS", "NAMES", "Context", "Loss", "Method", "Option", "Outputs", "Stage", "make",
           "options_of", "parse", "register", "resolve"]
