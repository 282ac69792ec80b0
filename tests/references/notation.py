"""Section 0: softmax over some of the columns, cross-entropy, distillation, normalization."""

import numpy as np


def part(values, mask):
  """The columns of `values` [..., classes] that `mask` [classes] names, float64 [..., taking part]."""
  return np.asarray(values, np.float64)[..., np.flatnonzero(mask)]


def whole(values, mask, fill=0.0):
  """The inverse of `part`: `values` [..., taking part] in their columns of [..., classes], `fill` in the others."""
  values = np.asarray(values, np.float64)
  result = np.full(values.shape[:-1] + (len(mask),), fill)
  result[..., np.flatnonzero(mask)] = values
  return result


def log_softmax(logits):
  """log softmax over the last axis of finite `logits` [..., classes], all of which take part."""
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def one_hot(labels, mask):
  """[batch, taking part]: 1 at each label's column among those of `mask`.

  Raises:
    ValueError: if a label is a class that `mask` leaves out.
  """
  hot = np.asarray(labels)[:, None] == np.flatnonzero(mask)
  if not hot.any(axis=1).all():
    raise ValueError(f"labels {np.asarray(labels)[~hot.any(axis=1)].tolist()} are not among the classes of the softmax")
  return hot.astype(np.float64)


def cross_entropy(logits, labels, mask):
  """CE(z, y) of section 0 over the classes of `mask`: mean over the batch of -log softmax(z)[y].

  Args:
    logits: [batch, classes].
    labels: [batch], each a class of `mask`.
    mask: [classes] bool.
  """
  return float(-(one_hot(labels, mask) * log_softmax(part(logits, mask))).sum(axis=1).mean())


def cross_entropy_gradient(logits, labels, mask):
  """dCE/dz [batch, classes] = (softmax(z) - one_hot(y)) / batch over the classes of `mask`, 0 elsewhere."""
  probabilities = np.exp(log_softmax(part(logits, mask)))
  return whole((probabilities - one_hot(labels, mask)) / len(labels), mask)


def with_prior(logits, mask, counts):
  """Training logits of the prior-regularized softmax (gr's section 4) and the classes that take part.

  Args:
    logits: [batch, classes].
    mask: [classes] bool.
    counts: [classes], number of training images present now. A class without images takes no part.

  Returns:
    z + log pi [batch, classes] with pi = counts / sum of counts over `mask`, 0 in other columns; the mask [classes].
  """
  mask = np.asarray(mask, bool) & (np.asarray(counts) > 0)
  present = part(counts, mask)
  return whole(part(logits, mask) + np.log(present / present.sum()), mask), mask


def distillation(logits, teacher, old, temperature=2.0, smoothing=0.0):
  """KD_T(z, z_hat) of section 0: mean over the batch of -sum_c softmax(z_hat/T)_c log softmax(z/T)_c, without T^2.

  Args:
    logits, teacher: [batch, classes]; only the columns of `old` count.
    old: [classes] bool. No class: 0.
    smoothing: added to the student's probabilities, shared evenly among the old classes, before these are made to sum
      to 1 again (section 3: the Long-Tailed-CIL repository has 1e-5). The teacher's stay as they are.
  """
  if not np.any(old):
    return 0.0
  student, target = log_softmax(part(logits, old) / temperature), np.exp(log_softmax(part(teacher, old) / temperature))
  if smoothing:
    student = np.log((np.exp(student) + smoothing / student.shape[1]) / (1 + smoothing))
  return float(-(target * student).sum(axis=1).mean())


def distillation_gradient(logits, teacher, old, temperature=2.0, smoothing=0.0):
  """dKD_T/dz [batch, classes]; without smoothing (softmax(z/T) - softmax(z_hat/T)) / (T batch).

  With smoothing e over C classes, u_c = -q_c / (p_c + e/C) is the derivative with respect to p_c up to the batch mean,
  and the softmax turns it into p_c (u_c - sum_k p_k u_k) / T.
  """
  if not np.any(old):
    return np.zeros(np.shape(logits))
  student = np.exp(log_softmax(part(logits, old) / temperature))
  target = np.exp(log_softmax(part(teacher, old) / temperature))
  if smoothing:
    result = softmax_pullback(student, -target / (student + smoothing / student.shape[1]))
  else:
    result = student - target
  return whole(result / (temperature * len(student)), old)


def softmax_pullback(probabilities, cotangent):
  """Gradient with respect to the logits, given that with respect to their softmax; all [batch, taking part]."""
  return probabilities * (cotangent - (probabilities * cotangent).sum(axis=1, keepdims=True))


def sigmoid(values):
  """1 / (1 + exp(-x)), without overflow."""
  return np.exp(-np.logaddexp(0.0, -np.asarray(values, np.float64)))


def normalized(rows):
  """Rows [..., features] over their length; a zero row stays zero."""
  rows = np.asarray(rows, np.float64)
  length = np.linalg.norm(rows, axis=-1, keepdims=True)
  return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def old_share(old, new):
  """lambda = n_old / N of sections 6 and 7, in [0, 1)."""
  return float(np.sum(old) / (np.sum(old) + np.sum(new)))
