"""Methods of class-incremental learning, one short file each; `gr` is the one this project is about."""

from gr_jax.methods.base import Method
from gr_jax.methods.gr import gradient_reweighting

__all__ = ["Method", "gradient_reweighting"]
