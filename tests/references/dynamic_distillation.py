"""Section 19: distillation by schedule and entropy, gradients pulled towards their average (a reconstruction)."""

import math

import numpy as np


def evenness(counts, classes):
  """H: entropy of the classes' shares of the images over log of their number, in [0, 1]."""
  shares = [float(n) for n, taken in zip(counts, classes) if taken]
  total = math.fsum(shares)
  return -math.fsum(n / total * math.log(n / total) for n in shares if n) / math.log(len(shares))


def weight(n_old, n_new, progress, even, *, scale, start):
  """lambda_0 sqrt(N_old / N_new) s(e / E) H, with s rising from `start` to 1; without T^2."""
  return scale * math.sqrt(n_old / n_new) * (start + (1 - start) * progress) * even


def consistent(gradients, share, momentum):
  """The pulled gradients of successive steps: m <- momentum m + (1 - momentum) g, m = g at first; g + share (m - g)."""
  mean, pulled = None, []
  for gradient in gradients:
    gradient = np.asarray(gradient, np.float64)
    mean = gradient if mean is None else momentum * mean + (1 - momentum) * gradient
    pulled.append(gradient + share * (mean - gradient))
  return pulled
