"""Mixup (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018)."""

from __future__ import annotations

import jax


def draw_share(key: jax.Array, concentration: float) -> jax.Array:
  """lambda ~ Beta(concentration, concentration), a float32 scalar in [0, 1]; 1 makes it uniform."""
  if concentration == 1.0:
    return jax.random.uniform(key)
  return jax.random.beta(key, concentration, concentration)


def mix(batch: jax.Array, partners: jax.Array, share: jax.Array) -> jax.Array:
  """share * batch + (1 - share) * partners, for images or for targets; arrays of one shape."""
  return share * batch + (1.0 - share) * partners
