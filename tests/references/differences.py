"""Gradients by central differences."""

import numpy as np


def numeric_gradient(function, point, step=1e-5):
  """Gradient of a scalar function of one array.

  Args:
    function: array like `point` -> float.
    point: array of any shape, or a number. It is not changed.
    step: h of (f(x + h) - f(x - h)) / 2h. The error is of the order of h^2 f''' plus 1e-16 f / h.

  Returns:
    float64 array of `point`'s shape. It is 0 at an entry that the function ignores, even where that entry is NaN.
  """
  point = np.array(point, np.float64)
  gradient = np.zeros_like(point)
  for index in np.ndindex(point.shape):
    above, below = point.copy(), point.copy()
    above[index] += step
    below[index] -= step
    gradient[index] = (float(function(above)) - float(function(below))) / (2 * step)
  return gradient
