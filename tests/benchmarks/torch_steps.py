"""The train step of Gradient Reweighting in PyTorch, twice, to measure gr_jax against.

`ReleasedStep` is built as the authors' release builds its step: a linear head for each task, autograd called
for each head, norms and ratios in loops over classes on the host. `BestStep` is the best plain PyTorch we
know. Both compute what `gr_jax.training.step.make_train_step` computes (docs/method.md sections 3 to 6, the default
switches; test_torch_steps.py compares them); written from that specification.

Facts of a task are `TaskFacts` of NumPy arrays; old classes come first, then the new ones. Neither needs JAX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

TEMPERATURE = 2.0
_SMALLEST_RATIO, _SMALLEST_NORM = 1e-6, 1e-30
_PAD = 4
_ATTEMPTS = 10


class Block(nn.Module):
  """Two 3x3 convolutions and a shortcut, with ReLU at the end."""

  def __init__(self, channels: int, filters: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
    self.norm1 = nn.BatchNorm2d(filters)
    self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
    self.norm2 = nn.BatchNorm2d(filters)
    self.shortcut = None
    if stride != 1 or channels != filters:
      self.shortcut = nn.Sequential(
          nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Backbone(nn.Module):
  """ResNet of 6n+2 layers in the CIFAR form: images [batch, 3, height, width] -> features [batch, 64]."""

  num_features = 64

  def __init__(self, depth: int = 32):
    super().__init__()
    self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    self.norm = nn.BatchNorm2d(16)
    blocks, channels = [], 16
    for i, filters in enumerate((16, 32, 64)):
      for j in range((depth - 2) // 6):
        blocks.append(Block(channels, filters, 2 if i > 0 and j == 0 else 1))
        channels = filters
    self.blocks = nn.Sequential(*blocks)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    x = self.blocks(F.relu(self.norm(self.conv(images))))
    return x.float().mean((2, 3))


@torch.no_grad()
def load_backbone(backbone: Backbone, params: Mapping, batch_stats: Mapping) -> Backbone:
  """Copies Linen variables of `gr_jax.models.ResNet` into `backbone`, HWIO -> OIHW, and returns it."""
  def copy(target: torch.Tensor, source: Any) -> None:
    values = np.array(source)
    target.copy_(torch.from_numpy(values.transpose(3, 2, 0, 1) if values.ndim == 4 else values))

  def layer(conv: nn.Conv2d, norm: nn.BatchNorm2d, index: int, params: Mapping, stats: Mapping) -> None:
    name = f"BatchNorm_{index}"
    copy(conv.weight, params[f"Conv_{index}"]["kernel"])
    copy(norm.weight, params[name]["scale"])
    copy(norm.bias, params[name]["bias"])
    copy(norm.running_mean, stats[name]["mean"])
    copy(norm.running_var, stats[name]["var"])

  layer(backbone.conv, backbone.norm, 0, params, batch_stats)
  for i, block in enumerate(backbone.blocks):
    name = f"BasicBlock_{i}"
    layer(block.conv1, block.norm1, 0, params[name], batch_stats[name])
    layer(block.conv2, block.norm2, 1, params[name], batch_stats[name])
    if block.shortcut is not None:
      layer(*block.shortcut, 2, params[name], batch_stats[name])
  return backbone


class Losses(NamedTuple):
  """L_ce and L_kd of a step, scalars on the device."""
  cross_entropy: torch.Tensor
  distillation: torch.Tensor


class TaskFacts(NamedTuple):
  """What the steps need to know of a task.

  Attributes:
    old, new: [classes] bool.
    counts: [classes] float32, images present in the task; 0 for unseen classes.
    lost: [classes] float32, images of old classes that are gone.
    attenuation, distillation_weight: a and w_kd.
  """
  old: np.ndarray
  new: np.ndarray
  counts: np.ndarray
  lost: np.ndarray
  attenuation: float
  distillation_weight: float


def task_facts(counts: np.ndarray, first: int, stop: int, *, per_class: int, weight_scale: float = 0.7,
               gamma: float = 1.0) -> TaskFacts:
  """Facts of the task that brings the classes first..stop-1 (docs/method.md sections 4 and 5).

  Args:
    counts: [classes] int, training images n_j of each class.
    first, stop: as above.
    per_class: m, exemplars a class.
    weight_scale: 0.7 in w_kd = 0.7 sqrt(N_old / N_new).
    gamma: of the attenuation.
  """
  classes = np.arange(len(counts))
  old, new = classes < first, (classes >= first) & (classes < stop)
  present = np.where(new, counts, np.where(old, np.minimum(counts, per_class), 0))
  n_old, n_new = float(counts[old].sum()), float(counts[new].sum())
  return TaskFacts(old, new, present.astype(np.float32), np.where(old, counts - present, 0).astype(np.float32),
                   math.exp(-gamma * n_old / (n_old + n_new)), weight_scale * math.sqrt(n_old / n_new))


def mixing(task: TaskFacts) -> tuple[np.ndarray, float]:
  """(v [classes], h) of distribution-aware distillation; both follow from the counts of the task."""
  lost = np.where(task.old, task.lost, 0).astype(np.float64)
  norm, num_old = np.linalg.norm(lost), int(np.sum(task.old))
  weights = (lost / norm if norm > 0 else lost).astype(np.float32)
  if num_old < 2 or norm == 0:
    return weights, 1.0
  raised = lost[np.asarray(task.old)] + 0.001
  share = raised / raised.sum()
  return weights, float(-(share * np.log(share)).sum() / math.log(num_old))


class ReleasedStep:
  """A step in the structure of the authors' release, eager, with loops over heads and classes.

  Args:
    backbone: on its device; trained in place.
    heads: a linear layer for each task up to this one; trained in place.
    task: what the step needs to know of it.
    teacher: (backbone, heads) after the previous task; None in the first.
    learning_rate, momentum, weight_decay: of SGD.
    bfloat16: whether the backbones run under autocast.
  """

  def __init__(self, backbone: Backbone, heads: Sequence[nn.Linear], task: TaskFacts,
               teacher: tuple[Backbone, Sequence[nn.Linear]] | None, *, learning_rate: float,
               momentum: float = 0.9, weight_decay: float = 5e-4, bfloat16: bool = False):
    self.backbone, self.heads, self.teacher = backbone.train(), heads, teacher
    if teacher is not None:
      teacher[0].eval()
    self.device, self.bfloat16 = heads[0].weight.device, bfloat16
    seen = sum(head.out_features for head in heads)
    self.num_old = int(np.sum(task.old))
    counts = torch.as_tensor(np.asarray(task.counts)[:seen], device=self.device)
    self.log_prior = torch.log(counts / counts.sum())
    weights, self.evenness = mixing(task)
    self.weights = torch.as_tensor(weights[:self.num_old], device=self.device)
    self.attenuation = float(task.attenuation)
    self.distillation_scale = float(task.distillation_weight) * TEMPERATURE**2
    self.phi, self.column = [0.0] * seen, [1.0] * seen
    parameters = [*backbone.parameters(), *(p for head in heads for p in head.parameters())]
    self.optimizer = torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)

  def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> Losses:
    """One step on images [batch, 3, height, width] float32 and labels [batch] int64."""
    features = self._features(self.backbone, images)
    logits = torch.cat([head(features) for head in self.heads], dim=1)
    ce, kd = F.cross_entropy(logits + self.log_prior, labels), torch.zeros((), device=self.device)
    if self.teacher is not None:
      kd = self._distillation(logits[:, :self.num_old], images)

    # Through the heads alone, once for each loss and head; the backbone's pass backward comes below.
    ce_grads = [torch.autograd.grad(ce, [head.weight, head.bias], retain_graph=True) for head in self.heads]
    kd_grads = []
    if self.teacher is not None:
      kd_grads = [torch.autograd.grad(kd, [head.weight, head.bias], retain_graph=True)
                  for head in self.heads[:-1]]
    self.optimizer.zero_grad()
    (ce + kd).backward()
    self._reweight(ce_grads, kd_grads)
    self.optimizer.step()
    return Losses(ce.detach(), kd.detach())

  def _features(self, backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
      return backbone(images)

  def _distillation(self, student: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    backbone, heads = self.teacher
    with torch.no_grad():
      features = self._features(backbone, images)
      teacher = torch.cat([head(features) for head in heads], dim=1)
      targets = F.softmax(teacher / TEMPERATURE, dim=1)
    mixed = self.weights * student + (1 - self.weights) * teacher
    loss = (self.evenness * -(targets * F.log_softmax(student / TEMPERATURE, dim=1)).sum(1).mean()
            + (1 - self.evenness) * -(targets * F.log_softmax(mixed / TEMPERATURE, dim=1)).sum(1).mean())
    return self.distillation_scale * loss

  def _reweight(self, ce_grads: list, kd_grads: list) -> None:
    """Puts the reweighted gradients in the place of the heads' own."""
    ce_norms = self._norms(ce_grads)
    for j, norm in enumerate(ce_norms):
      self.phi[j] += norm
    old, new = self.phi[:self.num_old], self.phi[self.num_old:]
    r_old, r_new = self._task_ratios(old, new)
    self.column = [*(r_old * alpha for alpha in self._alphas(old)),
                   *(r_new * alpha for alpha in self._alphas(new))]

    beta = 0.0
    if kd_grads:
      kd_norm = math.hypot(*self._norms(kd_grads))
      if kd_norm > _SMALLEST_RATIO * math.hypot(*ce_norms) and kd_norm >= _SMALLEST_NORM:
        beta = math.hypot(*(c * norm for c, norm in zip(self.column, ce_norms))) / kd_norm

    first = 0
    for i, (head, (weight, bias)) in enumerate(zip(self.heads, ce_grads)):
      column = torch.tensor(self.column[first:first + head.out_features], device=self.device)
      first += head.out_features
      head.weight.grad, head.bias.grad = column[:, None] * weight, column * bias
      if i < len(kd_grads):
        head.weight.grad += beta * kd_grads[i][0]
        head.bias.grad += beta * kd_grads[i][1]

  @staticmethod
  def _norms(grads: list) -> list[float]:
    norms = []
    for weight, _ in grads:
      rows = weight.cpu()
      for j in range(rows.shape[0]):
        norms.append(rows[j].norm().item())
    return norms

  @staticmethod
  def _alphas(phi: list[float]) -> list[float]:
    smallest = min((value for value in phi if value > 0), default=1.0)
    return [smallest / value if value > 0 else 1.0 for value in phi]

  def _task_ratios(self, old: list[float], new: list[float]) -> tuple[float, float]:
    if not old:
      return 1.0, 1.0
    mean_old, mean_new = sum(old) / len(old), sum(new) / len(new)
    ratio = mean_new / mean_old if mean_old > 0 and mean_new > 0 else 1.0
    return min(1.0, ratio), min(1.0, ratio * self.attenuation)


class BestStep:
  """A step in the best plain PyTorch: one head, no host synchronisation, one pass backward.

  Both losses meet at the logits, so their cotangents there, in closed form, give both gradients of the
  classifier and the one cotangent that goes back through the backbone.

  Args:
    backbone: on its device; trained in place, in channels-last order.
    head: all K classes, zeros in the rows of unseen ones, which then stay zero; trained in place.
    task: what the step needs to know of it.
    teacher: (backbone, head) after the previous task; None in the first.
    learning_rate, momentum, weight_decay: of SGD.
    augment: (images as stored) -> images [batch, 3, height, width] float32; None: they are that already.
    bfloat16: whether the backbones run under autocast.
    compile_mode: of torch.compile, "default" or "reduce-overhead" (CUDA graphs); None: eager.
  """

  def __init__(self, backbone: Backbone, head: nn.Linear, task: TaskFacts,
               teacher: tuple[Backbone, nn.Linear] | None, *, learning_rate: float, momentum: float = 0.9,
               weight_decay: float = 5e-4, augment: nn.Module | None = None, bfloat16: bool = False,
               compile_mode: str | None = None):
    self.backbone, self.head, self.teacher = backbone.train(), head, teacher
    self.backbone.to(memory_format=torch.channels_last)
    if teacher is not None:
      teacher[0].eval().to(memory_format=torch.channels_last)
    for module in backbone.modules():
      if isinstance(module, nn.BatchNorm2d):
        # A counter that nothing reads here, and a kernel launch for each layer.
        module.num_batches_tracked = None
    device = head.weight.device
    self.device_type, self.bfloat16, self.augment = device.type, bfloat16, augment
    old, new = (torch.as_tensor(np.asarray(mask), device=device) for mask in (task.old, task.new))
    self.groups, self.not_old = torch.stack([old, new]), ~old
    self.num_old, self.num_new = (int(np.sum(mask)) for mask in (task.old, task.new))
    counts = torch.as_tensor(np.asarray(task.counts), device=device)
    # -inf, hence probability 0, in the columns of unseen classes.
    self.log_prior = torch.log(counts / counts.sum())
    weights, self.evenness = mixing(task)
    self.weights = torch.as_tensor(weights, device=device)
    self.attenuation = float(task.attenuation)
    self.distillation_scale = float(task.distillation_weight) * TEMPERATURE**2
    self.phi, self.column = torch.zeros_like(counts), torch.zeros_like(counts)
    self.optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=learning_rate,
                                     momentum=momentum, weight_decay=weight_decay, fused=True)
    self.forward = self._forward
    if compile_mode is not None:
      self.forward = torch.compile(self._forward, mode=compile_mode, fullgraph=True)

  def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> Losses:
    """One step on images as `augment` takes them and labels [batch] int64; the losses last until the next."""
    features, cotangent, weight, bias, phi, column, losses = self.forward(images, labels, self.phi)
    features.backward(cotangent)
    self.head.weight.grad, self.head.bias.grad = weight, bias
    # Copied: under CUDA graphs the next step overwrites what this one returned.
    self.phi.copy_(phi)
    self.column.copy_(column)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return losses

  def _forward(self, images: torch.Tensor, labels: torch.Tensor, phi: torch.Tensor) -> tuple:
    """Everything up to the features' cotangent and the head's gradient."""
    if self.augment is not None:
      images = self.augment(images)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(self.device_type, torch.bfloat16, enabled=self.bfloat16):
      features = self.backbone(images)
    with torch.no_grad():
      fixed = features.detach()
      logits = self.head(fixed)
      ce, ce_pull = self._cross_entropy(logits, labels)
      kd, kd_pull = torch.zeros_like(ce), None
      if self.teacher is not None:
        backbone, head = self.teacher
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.bfloat16):
          teacher_features = backbone(images)
        kd, kd_pull = self._distillation(logits, head(teacher_features))
      weight, bias, phi, column = self._reweight(fixed, ce_pull, kd_pull, phi)
      pull = ce_pull if kd_pull is None else ce_pull + kd_pull
      return features, pull @ self.head.weight, weight, bias, phi, column, Losses(ce, kd)

  def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(L_ce, dL_ce/dlogits)."""
    log_probabilities = F.log_softmax(logits + self.log_prior, dim=1)
    hit = F.one_hot(labels, logits.shape[1])
    return F.nll_loss(log_probabilities, labels), (log_probabilities.exp() - hit) / len(labels)

  def _distillation(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(L_kd, dL_kd/dlogits)."""
    h, v = self.evenness, self.weights
    def log_softmax(values):
      return F.log_softmax((values / TEMPERATURE).masked_fill(self.not_old, -math.inf), dim=1)
    targets = log_softmax(teacher).exp()
    direct, mixed = log_softmax(student), log_softmax(torch.lerp(teacher, student, v))
    both = (h * direct + (1 - h) * mixed).masked_fill(self.not_old, 0.0)
    loss = -self.distillation_scale * (targets * both).sum(1).mean()
    pull = h * (direct.exp() - targets) + (1 - h) * v * (mixed.exp() - targets)
    return loss, pull * (self.distillation_scale / (TEMPERATURE * len(student)))

  def _reweight(self, features: torch.Tensor, ce_pull: torch.Tensor, kd_pull: torch.Tensor | None,
                phi: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(gradient of the head's weight and bias, Phi, column ratios)."""
    old, new = self.groups
    ce_weight, ce_bias = ce_pull.mT @ features, ce_pull.sum(0)
    ce_norms = torch.linalg.vector_norm(ce_weight, dim=1)
    phi = phi + ce_norms
    smallest = phi.masked_fill(~self.groups | (phi <= 0), math.inf).amin(1)
    alpha = torch.where(phi > 0, torch.where(old, smallest[0], smallest[1]) / phi, 1.0)
    if not self.num_old:
      column = torch.where(new, alpha, 0.0)
      return column[:, None] * ce_weight, column * ce_bias, phi, column

    sums = (phi * self.groups).sum(1)
    mean_old, mean_new = sums[0] / self.num_old, sums[1] / self.num_new
    ratio = torch.where((mean_old > 0) & (mean_new > 0), mean_new / mean_old, 1.0)
    column = alpha * torch.where(old, ratio.clamp(max=1.0), (ratio * self.attenuation).clamp(max=1.0))
    column = torch.where(old | new, column, 0.0)
    kd_weight, kd_bias = kd_pull.mT @ features, kd_pull.sum(0)
    ce_norm, kd_norm = torch.linalg.vector_norm(ce_norms), torch.linalg.vector_norm(kd_weight)
    counts = (kd_norm > _SMALLEST_RATIO * ce_norm) & (kd_norm >= _SMALLEST_NORM)
    beta = torch.where(counts, torch.linalg.vector_norm(column * ce_norms) / kd_norm, 0.0)
    return (column[:, None] * ce_weight + beta * kd_weight, column * ce_bias + beta * kd_bias, phi, column)


# ----------------------------------------------------------------- augmentation, CIFAR's of docs/method.md section 6


class DeviceAugment(nn.Module):
  """Pad 4, random resized crop, flip and normalise a batch where it lies; boxes by interpolation matrices.

  [batch, 3, side, side] uint8 -> the same in float32.
  """

  def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str):
    super().__init__()
    self.register_buffer("mean", torch.tensor(mean, device=device)[:, None, None])
    self.register_buffer("std", torch.tensor(std, device=device)[:, None, None])

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    batch, _, side, _ = images.shape
    boxes = draw_boxes(batch, side + 2 * _PAD, images.device)
    flip = torch.rand(batch, device=images.device) < 0.5
    return (crop_flip(images, *boxes, flip) / 255 - self.mean) / self.std


def draw_boxes(batch: int, side: int, device: torch.device) -> tuple[torch.Tensor, ...]:
  """(top, left, height, width) [batch] float of random boxes in a side x side picture; whole numbers."""
  area = side * side * torch.empty((batch, _ATTEMPTS), device=device).uniform_(0.08, 1.0)
  aspect = torch.empty((batch, _ATTEMPTS), device=device).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
  widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
  fits = (widths <= side) & (heights <= side)
  first = fits.int().argmax(1, keepdim=True)
  # In a square picture the largest central box within the aspect limits is the picture.
  width, height = (torch.where(fits.any(1), sizes.gather(1, first)[:, 0], float(side))
                   for sizes in (widths, heights))
  top, left = ((torch.rand(batch, device=device) * (side - size + 1)).floor() for size in (height, width))
  return top, left, height, width


def crop_flip(images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, height: torch.Tensor,
              width: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
  """Boxes [batch] of the padded images [batch, 3, side, side], resized to side x side; float32 in 0..255."""
  side = images.shape[-1]
  rows, columns = _resize_weights(top, height, side), _resize_weights(left, width, side)
  columns = torch.where(flip[:, None, None], columns.flip(1), columns)
  return rows[:, None] @ images.float() @ columns[:, None].mT


def _resize_weights(start: torch.Tensor, length: torch.Tensor, side: int) -> torch.Tensor:
  """[batch, side out, side in]: antialiased bilinear weights within the box; padding weighs but holds 0."""
  scale = (length / side)[:, None, None]
  steps = torch.arange(side, device=start.device)[:, None] + 0.5
  pixels = torch.arange(side + 2 * _PAD, device=start.device) + 0.5
  begin, end = start[:, None, None], (start + length)[:, None, None]
  weights = (1 - (pixels - begin - steps * scale).abs() / scale.clamp(min=1.0)).clamp(min=0.0)
  weights = weights * ((pixels > begin) & (pixels < end))
  return (weights / weights.sum(2, keepdim=True))[:, :, _PAD:-_PAD]


class HostPictures(torch.utils.data.Dataset):
  """One picture at a time on the host, as the release's data loader augments them.

  Args:
    images: [images, side, side, 3] uint8.
    labels: [images].
    mean, std: of the channels.
    augment: whether to crop and flip at random; False: the pictures as they are.
  """

  def __init__(self, images: np.ndarray, labels: np.ndarray, mean: Sequence[float], std: Sequence[float], *,
               augment: bool = True):
    self.images, self.labels, self.augment = images, labels, augment
    self.mean, self.std = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
    picture = self.images[index]
    if self.augment:
      box = self._draw_box(picture.shape[0] + 2 * _PAD)
      picture = crop_flip_on_host(picture, *box, np.random.random() < 0.5)
    values = np.asarray(picture, np.float32).transpose(2, 0, 1) / 255
    return torch.from_numpy((values - self.mean) / self.std), int(self.labels[index])

  @staticmethod
  def _draw_box(side: int) -> tuple[int, int, int, int]:
    for _ in range(_ATTEMPTS):
      area = side * side * np.random.uniform(0.08, 1.0)
      aspect = math.exp(np.random.uniform(math.log(3 / 4), math.log(4 / 3)))
      width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
      if width <= side and height <= side:
        return np.random.randint(side - height + 1), np.random.randint(side - width + 1), height, width
    return 0, 0, side, side


def crop_flip_on_host(image: np.ndarray, top: int, left: int, height: int, width: int,
                      flip: bool) -> Image.Image:
  """What `crop_flip` does, for one image [side, side, 3] uint8, by Pillow."""
  side = image.shape[0]
  picture = ImageOps.expand(Image.fromarray(image), border=_PAD)
  picture = picture.crop((left, top, left + width, top + height))
  picture = picture.resize((side, side), Image.Resampling.BILINEAR)
  return ImageOps.mirror(picture) if flip else picture
