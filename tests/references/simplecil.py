"""SimpleCIL: class means as a cosine classifier, on features that are never trained again."""

import numpy as np

from . import notation


def means(features, labels, classes):
  """[classes, features], the normalised mean feature of each class; 0 for a class without images."""
  result = np.zeros((classes, np.shape(features)[1]))
  for c in set(np.asarray(labels).tolist()):
    result[c] = np.asarray(features, np.float64)[np.asarray(labels) == c].mean(axis=0)
  return notation.normalized(result)


def answers(features, means, seen):
  """[batch], the seen class whose mean has the largest cosine with the feature."""
  cosines = notation.normalized(features) @ means.T
  return np.argmax(np.where(seen, cosines, -np.inf), axis=1)
