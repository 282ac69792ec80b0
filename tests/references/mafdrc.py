"""Section 14: MAFDRC, a residual classifier of two branches."""

import numpy as np

from . import notation

EPSILON = 1e-5


def branch(maps, scale, shift, kernel, bias, mean=None, variance=None):
  """head(GAP(BN(h))): a batch norm over the map, the mean over the pixels, the linear layer.

  Args:
    maps: h, [batch, height, width, channels].
    scale, shift: [channels], of the branch.
    kernel, bias: [channels, classes], [classes], shared by the branches.
    mean, variance: [channels], running statistics; None: those of the batch (biased).
  """
  maps = np.asarray(maps, np.float64)
  mean = maps.mean(axis=(0, 1, 2)) if mean is None else mean
  variance = maps.var(axis=(0, 1, 2)) if variance is None else variance
  normal = (maps - mean) / np.sqrt(variance + EPSILON) * scale + shift
  return normal.mean(axis=(1, 2)) @ kernel + bias


def merged(old, new, task):
  """The old branch's affine when task `task` (from 1) begins: the new one's at first, then the mean of both."""
  return np.asarray(new, np.float64) if task == 1 else (np.asarray(old, np.float64) + np.asarray(new)) / 2


def adaptation_loss(logits, labels, new):
  """CE among the new classes alone; logits [batch, classes] of both branches together, labels [batch] new classes."""
  return notation.cross_entropy(logits, labels, new)


def adaptation_gradient(logits, labels, new):
  """dL/dz [batch, classes]."""
  return notation.cross_entropy_gradient(logits, labels, new)


def prior(counts, seen, power=1.2):
  """gamma_c = log(pi_c^power + 1e-12) [classes], pi the share of each seen class; 0 elsewhere."""
  present = notation.part(counts, seen)
  return notation.whole(np.log((present / present.sum()) ** power + 1e-12), seen)


def fusion_loss(old_branch, new_branch, previous, adapted, labels, old, new, counts, *, alpha=0.2, beta1=4.0,
                beta2=1.0, power=1.2, temperature=2.0):
  """alpha L_ice + (1 - alpha) CE(eta) + beta1 KD_T(eta_old, previous) + beta2 KD_T(eta_new, adapted).

  Args:
    old_branch, new_branch: z_O and z_N, [batch, classes]; eta = z_O + z_N + gamma.
    previous, adapted: teachers' logits [batch, classes], read in the columns of `old` and of `new`.
    labels: [batch], seen classes.
    old, new: [classes] bool.
    counts: [classes], training images present.
  """
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  eta = _adjusted(old_branch, new_branch, seen, counts, power)
  return (alpha * _branches(old_branch, new_branch, labels, old, seen)
          + (1 - alpha) * notation.cross_entropy(eta, labels, seen)
          + beta1 * notation.distillation(eta, previous, old, temperature)
          + beta2 * notation.distillation(eta, adapted, new, temperature))


def fusion_gradients(old_branch, new_branch, previous, adapted, labels, old, new, counts, *, alpha=0.2, beta1=4.0,
                     beta2=1.0, power=1.2, temperature=2.0):
  """(dL/dz_O, dL/dz_N), [batch, classes] each."""
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  eta = _adjusted(old_branch, new_branch, seen, counts, power)
  shared = ((1 - alpha) * notation.cross_entropy_gradient(eta, labels, seen)
            + beta1 * notation.distillation_gradient(eta, previous, old, temperature)
            + beta2 * notation.distillation_gradient(eta, adapted, new, temperature))
  of_old, batch = np.asarray(old, bool)[np.asarray(labels)], len(labels)
  factor = alpha * batch / (of_old.sum() + batch)
  on_old = notation.cross_entropy_gradient(old_branch, labels, seen) * of_old[:, None]
  return shared + factor * on_old, shared + factor * notation.cross_entropy_gradient(new_branch, labels, seen)


def _adjusted(old_branch, new_branch, seen, counts, power):
  total = notation.part(old_branch, seen) + notation.part(new_branch, seen) + notation.part(
      prior(counts, seen, power), seen)
  return notation.whole(total, seen)


def _branches(old_branch, new_branch, labels, old, seen):
  """L_ice: the old branch's terms count for images of old classes, the new branch's for all."""
  labels = np.asarray(labels)
  of_old, hot = np.asarray(old, bool)[labels], notation.one_hot(labels, seen)
  nll_old, nll_new = (-(hot * notation.log_softmax(notation.part(z, seen))).sum(axis=1)
                      for z in (old_branch, new_branch))
  return float(((of_old * nll_old).sum() + nll_new.sum()) / (of_old.sum() + len(labels)))
