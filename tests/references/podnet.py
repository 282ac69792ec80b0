"""Section 9: PODNet, several proxies for each class, distillation of features and of pooled maps."""

from typing import NamedTuple

import numpy as np

from . import notation


class Gradients(NamedTuple):
  features: np.ndarray  # [batch, features], of the classification and the flat term
  maps: list  # [batch, height, width, channels] for each stage
  kernel: np.ndarray  # [features, proxies, classes]
  sigma: float


def similarities(features, kernel, seen):
  """u_bpc = cos(f_b, theta_cp) [batch, proxies, taking part].

  Args:
    features: [batch, features], signed.
    kernel: [features, proxies, classes].
    seen: [classes] bool.
  """
  return np.einsum("bd,pcd->bpc", notation.normalized(features), _proxies(kernel, seen))


def scores(features, kernel, seen):
  """s_bc = sum_p softmax_p(u_bc)_p u_bcp [batch, classes], within [-1, 1]; -inf in unseen columns."""
  u = similarities(features, kernel, seen)
  return notation.whole((_shares(u) * u).sum(axis=1), seen, -np.inf)


def nca(logits, labels, seen):
  """Mean over the batch of -(s'_y - log(sum over c != y of e^s'_c + e^0)), s' = s - max_c s, over `seen` alone.

  Args:
    logits: [batch, classes].
    labels: [batch], seen classes.
    seen: [classes] bool.
  """
  shifted, hot = _shifted(logits, seen), notation.one_hot(labels, seen)
  others = (np.exp(shifted) * (1 - hot)).sum(axis=1)
  return float((np.log(others + 1) - (shifted * hot).sum(axis=1)).mean())


def nca_gradient(logits, labels, seen):
  """d(nca)/ds [batch, classes]; the largest score, the first of ties, enters every shifted score."""
  shifted, hot = _shifted(logits, seen), notation.one_hot(labels, seen)
  others = np.exp(shifted) * (1 - hot)
  upon_shifted = others / (others.sum(axis=1, keepdims=True) + 1) - hot
  result = upon_shifted.copy()
  result[np.arange(len(result)), shifted.argmax(axis=1)] -= upon_shifted.sum(axis=1)
  return notation.whole(result / len(result), seen)


def flat(features, old_features):
  """Mean over the batch of 1 - cos(f_b, f_b of the previous model)."""
  return float((1 - (notation.normalized(features) * notation.normalized(old_features)).sum(axis=1)).mean())


def pooled(maps):
  """v [batch, (height + width) channels]: squares summed over the width, beside those over the height, of length 1."""
  squares = np.square(np.asarray(maps, np.float64))
  return notation.normalized(np.concatenate(
      [squares.sum(axis=2).reshape(len(squares), -1), squares.sum(axis=1).reshape(len(squares), -1)], axis=1))


def spatial(maps, old_maps):
  """Mean over stages and batch of ||v - v of the previous model||_2; lists of [batch, height, width, channels]."""
  return float(np.mean([np.linalg.norm(pooled(ours) - pooled(theirs), axis=1).mean()
                        for ours, theirs in zip(maps, old_maps, strict=True)]))


def spatial_gradient(maps, old_maps):
  """d(spatial)/d(maps), a list. No map may be 0, and no pooled map equal to the previous model's."""
  per_map = []
  for ours, theirs in zip(maps, old_maps, strict=True):
    ours = np.asarray(ours, np.float64)
    batch, height, width, channels = ours.shape
    v, apart = pooled(ours), pooled(ours) - pooled(theirs)
    upon_v = apart / np.linalg.norm(apart, axis=1, keepdims=True) / (batch * len(maps))
    squares = np.square(ours)
    length = np.sqrt(np.square(squares.sum(axis=2)).sum(axis=(1, 2)) + np.square(squares.sum(axis=1)).sum(axis=(1, 2)))
    upon_sums = (upon_v - (upon_v * v).sum(axis=1, keepdims=True) * v) / length[:, None]
    by_row = upon_sums[:, :height * channels].reshape(batch, height, 1, channels)
    by_column = upon_sums[:, height * channels:].reshape(batch, 1, width, channels)
    per_map.append(2 * ours * (by_row + by_column))
  return per_map


def factor(old, new):
  """F = sqrt(N / m_t), N old and new classes together."""
  return float(np.sqrt((np.sum(old) + np.sum(new)) / np.sum(new)))


def loss(features, maps, kernel, sigma, labels, old_features, old_maps, old, new, *, pycil=False, flat_weight=1.0,
         spatial_weight=3.0):
  """CE(sigma s, y), or nca(sigma s, y), + F (flat_weight flat + spatial_weight spatial); the first task has no F term.

  Args:
    features, maps: [batch, features], and a list of [batch, height, width, channels].
    kernel: [features, proxies, classes].
    sigma: the learned scale.
    labels: [batch], seen classes.
    old_features, old_maps: of the previous model; not read in the first task.
    old, new: [classes] bool.
    pycil: nca in place of cross-entropy.
  """
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  logits = sigma * scores(features, kernel, seen)
  result = nca(logits, labels, seen) if pycil else notation.cross_entropy(logits, labels, seen)
  if np.any(old):
    result += factor(old, new) * (flat_weight * flat(features, old_features) + spatial_weight * spatial(maps, old_maps))
  return result


def gradients(features, maps, kernel, sigma, labels, old_features, old_maps, old, new, *, pycil=False, flat_weight=1.0,
              spatial_weight=3.0):
  """d(loss)/d(features, maps, kernel, sigma), arguments as for `loss`; old columns are not frozen here.

  With g = dL/ds and shares a = softmax_p(u): dL/du_p = g a_p (1 + u_p - s). A cotangent w of v/||v|| is
  (w - (w . v/||v||) v/||v||) / ||v|| for v. No feature row and no seen proxy may be 0.
  """
  features, kernel = np.asarray(features, np.float64), np.asarray(kernel, np.float64)
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  plain = scores(features, kernel, seen)
  upon_logits = (nca_gradient if pycil else notation.cross_entropy_gradient)(sigma * plain, labels, seen)
  u, s = similarities(features, kernel, seen), notation.part(plain, seen)
  upon_u = sigma * notation.part(upon_logits, seen)[:, None] * _shares(u) * (1 + u - s[:, None])
  units, columns = notation.normalized(features), _proxies(kernel, seen)
  upon_units = np.einsum("bpc,pcd->bd", upon_u, columns)
  upon_maps = [np.zeros(np.shape(stage_map)) for stage_map in maps]
  if np.any(old):
    weight = factor(old, new)
    upon_units = upon_units - weight * flat_weight * notation.normalized(old_features) / len(features)
    upon_maps = [weight * spatial_weight * gradient for gradient in spatial_gradient(maps, old_maps)]
  upon_columns = _of_unnormalized(np.einsum("bpc,bd->pcd", upon_u, units),
                                  notation.part(kernel, seen).transpose(1, 2, 0))
  return Gradients(_of_unnormalized(upon_units, features), upon_maps,
                   notation.whole(upon_columns.transpose(2, 0, 1), seen),
                   float((notation.part(upon_logits, seen) * s).sum()))


def _proxies(kernel, seen):
  """Unit proxies [proxies, taking part, features]."""
  return notation.normalized(notation.part(kernel, seen).transpose(1, 2, 0))


def _shares(u):
  """softmax over the proxies, axis 1."""
  return np.exp(notation.log_softmax(np.moveaxis(u, 1, -1))).transpose(0, 2, 1)


def _shifted(logits, seen):
  values = notation.part(logits, seen)
  return values - values.max(axis=1, keepdims=True)


def _of_unnormalized(cotangent, values):
  """Gradient with respect to vectors on the last axis, given that with respect to the same of length 1."""
  length = np.linalg.norm(values, axis=-1, keepdims=True)
  direction = values / length
  return (cotangent - (cotangent * direction).sum(axis=-1, keepdims=True) * direction) / length
