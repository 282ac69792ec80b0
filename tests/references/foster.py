"""Section 13: FOSTER, boosting and compression."""

import numpy as np

from . import notation, wa


def class_weights(counts, seen, beta):
  """w_c = (1 - beta) / (1 - beta^n_c) over the seen classes, scaled to add up to their number N; 1 elsewhere."""
  counts = notation.part(counts, seen)
  weights = (1 - beta) / (1 - np.power(float(beta), counts))
  return notation.whole(weights * len(weights) / weights.sum(), seen, 1.0)


def boosting_loss(logits, new_features, teacher, labels, old, new, counts, beta=0.96, weight=1.0, temperature=2.0):
  """CE(z / w) + CE(z_fe) + weight KD_T(z_old, z_hat).

  Args:
    logits: [batch, classes] of the head on both backbones.
    new_features: [batch, classes] of the head on the new backbone alone.
    teacher: [batch, classes]; only the columns of `old` count.
    labels: [batch], seen classes.
    old, new: [classes] bool.
    counts: [classes], n_c, training images present.
  """
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  balanced = notation.cross_entropy(_divided(logits, seen, counts, beta), labels, seen)
  kd = notation.distillation(logits, teacher, old, temperature)
  return balanced + notation.cross_entropy(new_features, labels, seen) + weight * kd


def boosting_gradients(logits, new_features, teacher, labels, old, new, counts, beta=0.96, weight=1.0,
                       temperature=2.0):
  """(dL/dz, dL/dz_fe), [batch, classes] each."""
  seen = np.asarray(old, bool) | np.asarray(new, bool)
  balanced = notation.cross_entropy_gradient(_divided(logits, seen, counts, beta), labels, seen)
  kd = notation.distillation_gradient(logits, teacher, old, temperature)
  return (balanced / class_weights(counts, seen, beta) + weight * kd,
          notation.cross_entropy_gradient(new_features, labels, seen))


def _divided(logits, seen, counts, beta):
  return notation.whole(notation.part(logits, seen) / notation.part(class_weights(counts, seen, beta), seen), seen)


def compression_targets(teacher, seen, counts, beta=0.97, temperature=2.0):
  """softmax(z_dual / T) times w', each row made to add up to 1; [batch, seen classes]."""
  weighted = np.exp(notation.log_softmax(notation.part(teacher, seen) / temperature)) * notation.part(
      class_weights(counts, seen, beta), seen)
  return weighted / weighted.sum(axis=1, keepdims=True)


def compression_loss(logits, teacher, seen, counts, beta=0.97, temperature=2.0):
  """Mean of -sum_c p_c log softmax(z / T)_c, p from `compression_targets`; logits, teacher [batch, classes]."""
  targets = compression_targets(teacher, seen, counts, beta, temperature)
  return float(-(targets * notation.log_softmax(notation.part(logits, seen) / temperature)).sum(axis=1).mean())


def compression_gradient(logits, teacher, seen, counts, beta=0.97, temperature=2.0):
  """dL/dz [batch, classes]."""
  targets = compression_targets(teacher, seen, counts, beta, temperature)
  student = np.exp(notation.log_softmax(notation.part(logits, seen) / temperature))
  return notation.whole((student - targets) / (temperature * len(student)), seen)


def aligned(kernel, old, new, value):
  """Option: WA's alignment, new columns times value^(n_old / m_t) as well."""
  result = wa.aligned(kernel, old, new)
  result[:, np.flatnonzero(new)] *= value ** (np.sum(old) / np.sum(new))
  return result
