"""The mathematics of the method once more: float64, scalar loops, hand-made derivatives.

Written from the specification alone. It imports neither jax nor anything of the package, so that
the tests that compare the two compare two derivations. Nothing here is meant to be quick.

Conventions: logits [batch, classes], kernel [features, classes], masks and counts [classes].
Results are float64 arrays or Python floats. `old` and `new` are disjoint; a class in neither is
unseen.
"""

import math
from dataclasses import dataclass, field

import numpy as np

# ---------------------------------------------------------------------------------------- losses


def _log_softmax(values):
  """log softmax of a non-empty list of floats, as a list."""
  top = max(values)
  total = math.fsum(math.exp(value - top) for value in values)
  return [value - top - math.log(total) for value in values]


def _where(mask):
  """Indices at which `mask` holds, as a list."""
  return [j for j, held in enumerate(mask) if held]


def cross_entropy(logits, labels, class_counts):
  """Prior-regularized cross-entropy.

  Returns (mean over the batch, its gradient [batch, classes]). Classes with count 0 take no part.
  Per sample: -log p[y] with p = softmax(z + log pi), hence d/dz_k = p_k - [k = y].
  """
  batch, classes = np.shape(logits)
  seen = [j for j in range(classes) if class_counts[j] > 0]
  total = math.fsum(float(class_counts[j]) for j in seen)
  value, gradient = 0.0, np.zeros((batch, classes))
  for b in range(batch):
    shifted = [float(logits[b][j]) + math.log(float(class_counts[j]) / total) for j in seen]
    logp = _log_softmax(shifted)
    for place, j in enumerate(seen):
      hit = 1.0 if j == int(labels[b]) else 0.0
      value -= hit * logp[place] / batch
      gradient[b, j] = (math.exp(logp[place]) - hit) / batch
  return value, gradient


def imbalance(lost, old):
  """h: normalized entropy of the lost images over the old classes; 1 = evenly lost."""
  members = _where(old)
  if len(members) < 2 or sum(float(lost[j]) for j in members) == 0.0:
    return 1.0
  raised = [float(lost[j]) + 0.001 for j in members]
  total = math.fsum(raised)
  entropy = -math.fsum(s / total * math.log(s / total) for s in raised)
  return entropy / math.log(len(members))


def mixing(lost, old):
  """v [classes]: lost / ||lost||_2 over the old classes, 0 elsewhere and where nothing is lost."""
  weights = np.zeros(len(old))
  norm = math.sqrt(math.fsum(float(lost[j]) ** 2 for j in _where(old)))
  for j in _where(old):
    weights[j] = float(lost[j]) / norm if norm > 0.0 else 0.0
  return weights


def dakd(student, teacher, lost, old, temperature=2.0):
  """Distribution-aware distillation without w_kd and T^2.

  Returns (mean over the batch, gradient with respect to the student [batch, classes]).
  Per sample, with p = softmax(q/T), s = softmax(z/T), m = softmax(z_mix/T) and dz_mix/dz = v:
  d/dz_k = (h (s_k - p_k) + (1 - h) v_k (m_k - p_k)) / T.
  """
  batch, classes = np.shape(student)
  members = _where(old)
  value, gradient = 0.0, np.zeros((batch, classes))
  if not members:
    return value, gradient
  h, v = imbalance(lost, old), mixing(lost, old)
  for b in range(batch):
    z = {j: float(student[b][j]) for j in members}
    q = {j: float(teacher[b][j]) for j in members}
    target = [math.exp(x) for x in _log_softmax([q[j] / temperature for j in members])]
    direct = _log_softmax([z[j] / temperature for j in members])
    mixed = _log_softmax([(v[j] * z[j] + (1.0 - v[j]) * q[j]) / temperature for j in members])
    for place, j in enumerate(members):
      p = target[place]
      value -= p * (h * direct[place] + (1.0 - h) * mixed[place]) / batch
      unmixed = math.exp(direct[place]) - p
      blended = math.exp(mixed[place]) - p
      gradient[b, j] = (h * unmixed + (1.0 - h) * v[j] * blended) / (temperature * batch)
  return value, gradient


def distillation(student, teacher, old, temperature=2.0):
  """Plain distillation without w_kd and T^2: (mean over the batch, gradient [batch, classes])."""
  batch, classes = np.shape(student)
  members = _where(old)
  value, gradient = 0.0, np.zeros((batch, classes))
  if not members:
    return value, gradient
  for b in range(batch):
    target = _log_softmax([float(teacher[b][j]) / temperature for j in members])
    guess = _log_softmax([float(student[b][j]) / temperature for j in members])
    for place, j in enumerate(members):
      value -= math.exp(target[place]) * guess[place] / batch
      gap = math.exp(guess[place]) - math.exp(target[place])
      gradient[b, j] = gap / (temperature * batch)
  return value, gradient


def distillation_weight(n_old, n_new, scale=0.7):
  """w_kd from the numbers of original images of the old and of the new classes."""
  return scale * math.sqrt(n_old / n_new)


def attenuation(n_old, n_new, gamma=1.0):
  """a from the numbers of original images of the old and of the new classes."""
  return math.exp(-gamma * n_old / (n_old + n_new))


def central_difference(function, point, step=1e-5):
  """Central finite differences of a scalar `function` at `point` (any shape)."""
  point = np.array(point, np.float64)
  slope = np.zeros_like(point)
  for index in np.ndindex(point.shape):
    kept = point[index]
    point[index] = kept + step
    above = function(point)
    point[index] = kept - step
    below = function(point)
    point[index] = kept
    slope[index] = (above - below) / (2.0 * step)
  return slope


# ----------------------------------------------------------------------------------- reweighting


@dataclass
class Reweighted:
  """What one reweighting step yields; `bias` is None where no bias was given."""

  phi: np.ndarray  # [classes], this step's gradient included
  alpha: np.ndarray  # [classes]
  column: np.ndarray  # [classes], r * alpha
  r_old: float
  r_new: float
  beta: float
  kernel: np.ndarray  # [features, classes]
  bias: np.ndarray | None  # [classes]


def _column_norm(kernel, j):
  return math.sqrt(math.fsum(float(kernel[i][j]) ** 2 for i in range(len(kernel))))


def _alphas(phi, group):
  """{class: min Phi / Phi} over the positive Phi of the group; 1 where Phi is 0."""
  positive = [phi[j] for j in group if phi[j] > 0.0]
  return {j: min(positive) / phi[j] if phi[j] > 0.0 else 1.0 for j in group}


def _mean(values):
  return math.fsum(values) / len(values) if values else 0.0


def task_ratios(mean_old, mean_new, attenuation, task_ratio):
  """(r_o, r_n) of a task that has old classes, from the mean Phi of both groups."""
  if mean_old == 0.0 or mean_new == 0.0:
    return 1.0, min(1.0, attenuation)
  r_old = min(1.0, mean_new / mean_old)
  if task_ratio == "release":
    return r_old, min(1.0, mean_new / mean_old * attenuation)
  if task_ratio == "symmetric":
    return r_old, min(1.0, mean_old / mean_new * attenuation)
  raise ValueError(f"no such task_ratio: {task_ratio!r}")


def reweight(
  phi,
  ce_kernel,
  ce_bias,
  kd_kernel,
  kd_bias,
  *,
  old,
  new,
  attenuation=1.0,
  task_ratio="release",
  reweighting="dgr",
  eps=1e-6,
):
  """One step of gradient reweighting on a classifier.

  `kd_kernel` None: no distillation (beta = 0). Biases None: no bias. `reweighting` "dgr", "class"
  (one group of all seen classes, beta = 1) or "none" (every factor 1).
  """
  features, classes = np.shape(ce_kernel)
  olds, news = _where(old), _where(new)
  seen = sorted(olds + news)
  ce_norm = {j: _column_norm(ce_kernel, j) for j in seen}
  kd_norm = {j: 0.0 if kd_kernel is None else _column_norm(kd_kernel, j) for j in olds}

  after = np.zeros(classes)
  for j in seen:
    after[j] = float(phi[j]) + ce_norm[j]

  if reweighting == "dgr":
    alphas = {**_alphas(after, olds), **_alphas(after, news)}
  elif reweighting == "class":
    alphas = _alphas(after, seen)
  elif reweighting == "none":
    alphas = {j: 1.0 for j in seen}
  else:
    raise ValueError(f"no such reweighting: {reweighting!r}")

  r_old = r_new = 1.0
  if reweighting == "dgr" and olds:
    mean_old, mean_new = _mean([after[j] for j in olds]), _mean([after[j] for j in news])
    r_old, r_new = task_ratios(mean_old, mean_new, attenuation, task_ratio)

  alpha, column = np.zeros(classes), np.zeros(classes)
  for j in seen:
    alpha[j] = alphas[j]
    column[j] = alphas[j] * (r_old if j in olds else r_new)

  total_ce = math.sqrt(math.fsum(ce_norm[j] ** 2 for j in seen))
  total_kd = math.sqrt(math.fsum(kd_norm[j] ** 2 for j in olds))
  if kd_kernel is None:
    beta = 0.0
  elif reweighting != "dgr":
    beta = 1.0
  elif total_kd <= eps * total_ce or total_kd < 1e-30:
    beta = 0.0
  else:
    beta = math.sqrt(math.fsum((column[j] * ce_norm[j]) ** 2 for j in seen)) / total_kd

  def combine(ce, kd, j):
    value = column[j] * float(ce)
    # An ignored entry may be NaN, so it must not even be multiplied by zero.
    return value + beta * float(kd) if kd is not None and j in olds else value

  kernel = np.zeros((features, classes))
  bias = None if ce_bias is None else np.zeros(classes)
  for j in seen:
    for i in range(features):
      other = None if kd_kernel is None else kd_kernel[i][j]
      kernel[i, j] = combine(ce_kernel[i][j], other, j)
    if bias is not None:
      bias[j] = combine(ce_bias[j], None if kd_bias is None else kd_bias[j], j)
  return Reweighted(after, alpha, column, r_old, r_new, beta, kernel, bias)


# ------------------------------------------------------------- a whole step of a linear classifier


@dataclass
class LinearTask:
  """What stays the same during a task. Counts and masks are [classes]."""

  class_counts: np.ndarray  # n', 0 = unseen
  old: np.ndarray
  new: np.ndarray
  lost: np.ndarray | None = None
  attenuation: float = 1.0
  distillation_weight: float = 0.0
  temperature: float = 2.0
  distillation: str = "dakd"
  reweighting: str = "dgr"
  task_ratio: str = "release"
  prior: bool = True
  learning_rate: float = 0.1
  weight_decay: float = 0.0
  momentum: float = 0.9


@dataclass
class LinearState:
  """A linear classifier in training; `start` makes one at the beginning of a task."""

  kernel: np.ndarray
  bias: np.ndarray
  kernel_trace: np.ndarray
  bias_trace: np.ndarray
  phi: np.ndarray
  column: np.ndarray = field(default=None)
  beta: float = 0.0
  cross_entropy: float = 0.0
  distillation: float = 0.0


def start(kernel, bias):
  """LinearState with copies of the parameters, no momentum and Phi = 0."""
  kernel, bias = np.array(kernel, np.float64), np.array(bias, np.float64)
  zeros = np.zeros_like(bias)
  return LinearState(kernel, bias, np.zeros_like(kernel), zeros, zeros.copy(), zeros.copy())


def linear_logits(features, kernel, bias):
  """features @ kernel + bias, by loops: [batch, classes]."""
  batch, (width, classes) = len(features), np.shape(kernel)
  logits = np.zeros((batch, classes))
  for b in range(batch):
    for j in range(classes):
      terms = (float(features[b][i]) * float(kernel[i][j]) for i in range(width))
      logits[b, j] = math.fsum(terms) + float(bias[j])
  return logits


def linear_gradients(features, cotangent):
  """(kernel gradient [features, classes], bias gradient [classes]) of logits' cotangent."""
  batch, width = np.shape(features)
  classes = np.shape(cotangent)[1]
  kernel, bias = np.zeros((width, classes)), np.zeros(classes)
  for j in range(classes):
    for b in range(batch):
      bias[j] += cotangent[b][j]
    for i in range(width):
      kernel[i, j] = math.fsum(float(features[b][i]) * cotangent[b][j] for b in range(batch))
  return kernel, bias


def linear_step(state, task, features, labels, teacher_logits=None):
  """One training step on given features; returns the next LinearState.

  Both losses -> classifier gradient -> weight decay -> momentum -> update, on seen columns only.
  `teacher_logits` None: no distillation.
  """
  logits = linear_logits(features, state.kernel, state.bias)
  counts = [float(c) if task.prior else float(c > 0) for c in task.class_counts]
  ce_value, ce_cotangent = cross_entropy(logits, labels, counts)
  ce_kernel, ce_bias = linear_gradients(features, ce_cotangent)

  kd_value, kd_kernel, kd_bias = 0.0, None, None
  if teacher_logits is not None and task.distillation != "none":
    if task.distillation == "dakd":
      parts = dakd(logits, teacher_logits, task.lost, task.old, task.temperature)
    else:
      parts = distillation(logits, teacher_logits, task.old, task.temperature)
    scale = task.distillation_weight * task.temperature**2
    kd_value = scale * parts[0]
    kd_kernel, kd_bias = linear_gradients(features, scale * parts[1])

  scaled = reweight(
    state.phi,
    ce_kernel,
    ce_bias,
    kd_kernel,
    kd_bias,
    old=task.old,
    new=task.new,
    attenuation=task.attenuation,
    task_ratio=task.task_ratio,
    reweighting=task.reweighting,
  )

  def descend(weight, trace, gradient):
    trace = task.momentum * trace + gradient + task.weight_decay * weight
    return weight - task.learning_rate * trace, trace

  kernel, kernel_trace = state.kernel.copy(), state.kernel_trace.copy()
  bias, bias_trace = state.bias.copy(), state.bias_trace.copy()
  for j in range(len(bias)):
    if not (task.old[j] or task.new[j]):
      continue
    bias[j], bias_trace[j] = descend(bias[j], bias_trace[j], scaled.bias[j])
    for i in range(len(kernel)):
      kernel[i, j], kernel_trace[i, j] = descend(
        kernel[i, j], kernel_trace[i, j], scaled.kernel[i, j]
      )
  return LinearState(
    kernel,
    bias,
    kernel_trace,
    bias_trace,
    scaled.phi,
    scaled.column,
    scaled.beta,
    ce_value,
    kd_value,
  )


# --------------------------------------------------------------------------------------- herding


def herd(features, m):
  """(picked rows in order, smallest gap between the best and the second candidate's distance).

  The gap says how far the picks are from a tie, which rounding could settle either way.
  """
  rows = [[float(x) for x in row] for row in features]
  width = len(rows[0]) if rows else 0
  for row in rows:
    # Scaled by the largest entry first: the square of a tiny one would be nothing.
    largest = max((abs(x) for x in row), default=0.0)
    if largest > 0.0:
      row[:] = [x / largest for x in row]
      norm = math.sqrt(math.fsum(x * x for x in row))
      row[:] = [x / norm for x in row]
  centre = [math.fsum(row[i] for row in rows) / len(rows) for i in range(width)]

  picked, gap = [], math.inf
  for _ in range(min(m, len(rows))):
    distances = []
    for r in range(len(rows)):
      if r in picked:
        continue
      trial = [
        math.fsum(rows[p][i] for p in [*picked, r]) / (len(picked) + 1)
        for i in range(width)
      ]
      distances.append(
        (math.sqrt(math.fsum((t - c) ** 2 for t, c in zip(trial, centre))), r)
      )
    distances.sort()  # by distance, then by row
    if len(distances) > 1:
      gap = min(gap, distances[1][0] - distances[0][0])
    picked.append(distances[0][1])
  return picked, gap


# --------------------------------------------------------------------------------------- metrics


def accuracy_matrix(correct, total, task_of_class):
  """N x N lists; entry [t][u] = accuracy on task u after task t, None where u > t or not done."""
  tasks = max(int(t) for t in task_of_class) + 1
  matrix = [[None] * tasks for _ in range(tasks)]
  for t in range(len(correct)):
    for u in range(t + 1):
      members = [c for c in range(len(total)) if int(task_of_class[c]) == u]
      hits = sum(int(correct[t][c]) for c in members)
      matrix[t][u] = hits / sum(int(total[c]) for c in members)
  return matrix


def task_accuracies(correct, total, task_of_class):
  """ACC_t over all test images of the classes seen by then; None where not done."""
  tasks = max(int(t) for t in task_of_class) + 1
  result = [None] * tasks
  for t in range(len(correct)):
    members = [c for c in range(len(total)) if int(task_of_class[c]) <= t]
    hits = sum(int(correct[t][c]) for c in members)
    result[t] = hits / sum(int(total[c]) for c in members)
  return result


def forgetting(matrix):
  """After each task: mean over earlier tasks of the best earlier accuracy minus today's."""
  result = []
  for t, row in enumerate(matrix):
    if t == 0 or row[0] is None:
      result.append(None)
      continue
    losses = []
    for u in range(t):
      best = matrix[u][u]
      for between in range(u, t):
        best = max(best, matrix[between][u])
      losses.append(best - row[u])
    result.append(math.fsum(losses) / t)
  return result


def backward_transfer(matrix):
  """After each task: mean over earlier tasks of today's accuracy minus the one just learnt."""
  result = []
  for t, row in enumerate(matrix):
    if t == 0 or row[0] is None:
      result.append(None)
      continue
    result.append(math.fsum(row[u] - matrix[u][u] for u in range(t)) / t)
  return result


# -------------------------------------------------------------------------------------- scenario


def long_tailed_counts(num_classes, max_count, imbalance):
  """floor(max_count * imbalance^(-i / (num_classes - 1))) in exact integer arithmetic.

  `imbalance` an integer. n is not above the real value exactly if
  n^(K-1) * rho^i <= max_count^(K-1), and the largest such n is found by bisection.
  """
  power = num_classes - 1
  limit = max_count**power
  counts = []
  for i in range(num_classes):
    low, high = 0, max_count
    while low < high:
      middle = (low + high + 1) // 2
      if middle**power * imbalance**i <= limit:
        low = middle
      else:
        high = middle - 1
    counts.append(low)
  return counts
