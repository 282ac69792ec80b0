"""Names for annotations."""

from __future__ import annotations

import jax
import numpy as np

# Of values that are NumPy's on the host and JAX's once they are on a device, or traced.
AnyArray = jax.Array | np.ndarray
AnyInteger = jax.Array | np.integer
