"""Rules that choose exemplars besides herding, row by row: FACIL's entropy and distance; distance to the mean."""

import math


def entropy(logits):
  """Of each row [classes]: -sum p log p of its softmax."""
  entropies = []
  for row in logits:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    shares = [power / sum(powers) for power in powers]
    entropies.append(-sum(share * math.log(share) for share in shares if share > 0))
  return entropies


def distance_to_mean(features):
  """Of each row: the distance of the row, brought to length 1, to the mean of all such rows."""
  units = []
  for row in features:
    length = math.sqrt(sum(value * value for value in row))
    units.append([value / length if length else 0.0 for value in row])
  mean = [sum(column) / len(units) for column in zip(*units)]
  return [math.dist(row, mean) for row in units]


def smallest(values, m):
  """Places of the m smallest values, smallest first; of equal ones the first place."""
  return sorted(range(len(values)), key=lambda place: (values[place], place))[:m]


def gap(values):
  """The smallest difference between two of the values; infinite for fewer than two."""
  ordered = sorted(values)
  return min((b - a for a, b in zip(ordered, ordered[1:])), default=math.inf)
