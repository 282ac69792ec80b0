"""Neural collapse of the last layer (Papyan, Han and Donoho, PNAS 2020; docs/method.md section 7), in float64.

All figures are 0 when the features of each class are one point, and the centred class means and the classifier's
columns form the same simplex.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Singular values of the centred class means below this share of the largest one count as 0: the means are float32.
_RANK = 1e-6


def figures(means: np.ndarray, within: np.ndarray, kernel: np.ndarray, *, images: int, disagreeing: int
            ) -> dict[str, Any] | None:
  """NC1 to NC4 over a group of classes.

  Args:
    means: [classes, features], class means mu_k.
    within: [features, features], sum over the images of (h - mu_k)(h - mu_k)^T.
    kernel: [features, classes], the classifier's columns w_k.
    images: number of images.
    disagreeing: images for which the classifier and the nearest class mean choose different classes.

  Returns:
    {nc1, nc2: {means, classifier: {norms, cosines, angle}}, nc3, nc4, classes, images}; an undefined figure is None.
    None for fewer than two classes.
  """
  means, columns = np.asarray(means, np.float64), np.asarray(kernel, np.float64).T
  if len(means) < 2 or not images:
    return None
  centred = means - means.mean(axis=0)
  return {
      "nc1": variability(centred, np.asarray(within, np.float64) / images),
      "nc2": {"means": simplex(centred), "classifier": simplex(columns)},
      "nc3": duality(centred, columns), "nc4": disagreeing / images, "classes": len(means), "images": images}


def variability(centred: np.ndarray, within: np.ndarray) -> float | None:
  """NC1: tr(Sigma_W pinv(Sigma_B)) / K, with Sigma_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)^T.

  Args:
    centred: [K, features], mu_k - mu_G.
    within: [features, features], Sigma_W.
  """
  if not np.any(centred):
    return None
  # pinv(M^T M / K) = K pinv(M) pinv(M)^T.
  inverse = np.linalg.pinv(centred, rcond=_RANK)
  return float(np.sum((within @ inverse) * inverse))


def simplex(vectors: np.ndarray) -> dict[str, float | None]:
  """NC2: how far vectors [K, features] are from a simplex equiangular tight frame.

  Returns:
    norms: standard deviation of the norms over their mean. cosines: standard deviation of the cosines between different
    vectors. angle: mean of |cosine + 1 / (K - 1)|.
  """
  norms = np.linalg.norm(vectors, axis=1)
  if not norms.all():
    return {"norms": float(norms.std() / norms.mean()) if norms.any() else None, "cosines": None, "angle": None}
  unit = vectors / norms[:, None]
  cosines = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
  return {"norms": float(norms.std() / norms.mean()), "cosines": float(cosines.std()),
          "angle": float(np.mean(np.abs(cosines + 1 / (len(vectors) - 1))))}


def duality(centred: np.ndarray, columns: np.ndarray) -> float | None:
  """NC3: || W / ||W||_F - M / ||M||_F ||_F^2, both [K, features], in [0, 4]."""
  if not np.any(centred) or not np.any(columns):
    return None
  return float(np.sum(np.square(columns / np.linalg.norm(columns) - centred / np.linalg.norm(centred))))
