"""NC1 to NC4, section 7 of the mixing notes, in float64: sums over images, no shortcut."""

import numpy as np


def figures(features, labels, kernel, bias):
  """(nc1, nc2 of the centred means, nc2 of the classifier, nc3, nc4), each nc2 as (norms, cosines, angle).

  Args:
    features: [images, features].
    labels: [images], 0..K-1, each class with at least one image.
    kernel: [features, K].
    bias: [K].
  """
  features, kernel = np.asarray(features, np.float64), np.asarray(kernel, np.float64)
  count = kernel.shape[1]
  means = np.stack([features[labels == k].mean(axis=0) for k in range(count)])
  centre = means.mean(axis=0)
  within = sum(np.outer(h - means[y], h - means[y]) for h, y in zip(features, labels)) / len(features)
  between = sum(np.outer(mean - centre, mean - centre) for mean in means) / count
  nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-12, hermitian=True)) / count
  centred, columns = means - centre, kernel.T
  nc3 = np.linalg.norm(columns / np.linalg.norm(columns) - centred / np.linalg.norm(centred)) ** 2
  chosen = (features @ kernel + bias).argmax(axis=1)
  nearest = [int(np.argmin([np.sum((h - mean) ** 2) for mean in means])) for h in features]
  return nc1, simplex(centred), simplex(columns), nc3, np.mean(chosen != nearest)


def simplex(vectors):
  norms = [np.linalg.norm(v) for v in vectors]
  cosines = [v @ u / np.linalg.norm(v) / np.linalg.norm(u)
             for i, v in enumerate(vectors) for j, u in enumerate(vectors) if i != j]
  return (np.std(norms) / np.mean(norms), np.std(cosines),
          np.mean([abs(cosine + 1 / (len(vectors) - 1)) for cosine in cosines]))
