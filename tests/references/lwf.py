"""Section 3: Learning without Forgetting."""

import numpy as np

from . import finetune, notation

# The form of the Long-Tailed-CIL repository adds this to the student's softened probabilities before the logarithm.
RELEASED_SMOOTHING = 1e-5


def loss(logits, teacher, labels, old, new, *, memory=True, weight=1.0, temperature=2.0, smoothing=0.0):
  """CE + weight KD_T over the old classes, without T^2; without old classes it is cross-entropy.

  Args:
    logits, teacher: [batch, classes]; the teacher's count in the columns of `old` only.
    labels: [batch].
    old, new: [classes] bool.
    memory: True, CE over all seen classes; False, CE over the new ones.
    smoothing: 0 is KD_T of section 0; `RELEASED_SMOOTHING` is the released code's.
  """
  kd = notation.distillation(logits, teacher, old, temperature, smoothing)
  return finetune.loss(logits, labels, old, new, memory=memory) + weight * kd


def gradient(logits, teacher, labels, old, new, *, memory=True, weight=1.0, temperature=2.0, smoothing=0.0):
  """dL/dz [batch, classes].

  Without a memory the old columns of the head are frozen, but the distillation's gradient with respect to the old
  logits (here, not 0) still reaches the backbone through them.
  """
  kd = notation.distillation_gradient(logits, teacher, old, temperature, smoothing)
  return finetune.gradient(logits, labels, old, new, memory=memory) + weight * kd


def pycil_loss(logits, teacher, labels, old, new):
  """PyCIL's form, which has no exemplars: CE over the new classes + 3 KD_2 over the old ones."""
  return loss(logits, teacher, labels, old, new, memory=False, weight=3.0)


def pycil_gradient(logits, teacher, labels, old, new):
  """d(PyCIL's form)/dz [batch, classes]; every column of the head is trained there."""
  return gradient(logits, teacher, labels, old, new, memory=False, weight=3.0)


def tempered(probabilities, temperature):
  """p^(1/T) over its sum [batch, classes]: how the released code softens, equal to softmax(z/T) for p = softmax(z)."""
  powers = np.asarray(probabilities, np.float64) ** (1 / temperature)
  return powers / powers.sum(axis=1, keepdims=True)
