"""The backbones: parameter counts, an independent forward pass, initialisation, batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from gr_jax import models
from gr_jax.errors import UserError


def build(name, side, channels=3, **changes):
  model = models.make_backbone(name, **{"platform": "cpu", **changes})
  image = jnp.zeros((1, side, side, channels))
  return model, jax.jit(lambda key: model.init(key, image, train=False))(jax.random.key(0))


def parameters(name, side):
  model = models.make_backbone(name, platform="cpu")
  shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, side, side, 3)), train=False),
                          jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("name, side, expected", [
    # Stem 3*16*9; stages of 10 convolutions; 1x1 shortcuts 16*32 and 32*64; batch norm 2 a channel.
    ("resnet32", 32, 466_256),
    # torchvision's 11,689,512 less the classifier's 512*1000 + 1000.
    ("resnet18", 64, 11_176_512)])
def test_parameter_counts(name, side, expected):
  assert parameters(name, side) == expected


def convolve(x, kernel, stride, pad):
  """Scalar-loop convolution in float64: x [h, w, i], kernel [kh, kw, i, o]."""
  padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
  kh, kw = kernel.shape[:2]
  rows, columns = ((n - k) // stride + 1 for n, k in zip(padded.shape[:2], (kh, kw)))
  out = np.zeros((rows, columns, kernel.shape[3]))
  for r in range(rows):
    for c in range(columns):
      window = padded[r * stride:r * stride + kh, c * stride:c * stride + kw]
      out[r, c] = np.einsum("hwi,hwio->o", window, kernel)
  return out


def oracle(variables, x, blocks, stem):
  """The network in evaluation mode, from its parameters, one image."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
  stats = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["batch_stats"])

  def norm(x, p, s):
    return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

  def relu(x):
    return np.maximum(x, 0)

  if stem == "cifar":
    x = convolve(x, params["Conv_0"]["kernel"], 1, 1)
  else:
    x = convolve(x, params["Conv_0"]["kernel"], 2, 3)
  x = relu(norm(x, params["BatchNorm_0"], stats["BatchNorm_0"]))
  if stem == "imagenet":
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    size = (x.shape[0] + 2 - 3) // 2 + 1
    x = np.stack([[padded[2 * r:2 * r + 3, 2 * c:2 * c + 3].max((0, 1)) for c in range(size)]
                  for r in range(size)])
  maps, number = [], 0
  for stage, count in enumerate(blocks):
    for j in range(count):
      p, s = params[f"BasicBlock_{number}"], stats[f"BasicBlock_{number}"]
      stride = 2 if stage and not j else 1
      y = relu(norm(convolve(x, p["Conv_0"]["kernel"], stride, 1), p["BatchNorm_0"], s["BatchNorm_0"]))
      y = norm(convolve(y, p["Conv_1"]["kernel"], 1, 1), p["BatchNorm_1"], s["BatchNorm_1"])
      if "Conv_2" in p:
        x = norm(convolve(x, p["Conv_2"]["kernel"], stride, 0), p["BatchNorm_2"], s["BatchNorm_2"])
      before, number = x + y, number + 1
      x = relu(before)
    maps.append(before)
  return x.mean((0, 1)), maps


@pytest.mark.parametrize("name, side, blocks, stem", [
    ("resnet8", 7, (1, 1, 1), "cifar"), ("resnet14", 8, (2, 2, 2), "cifar"),
    pytest.param("resnet32", 8, (5, 5, 5), "cifar", marks=pytest.mark.slow),
    ("resnet18", 18, (2, 2, 2, 2), "imagenet")])
def test_forward_against_a_float64_oracle(name, side, blocks, stem):
  rng = np.random.default_rng(0)
  model, x = models.make_backbone(name, platform="cpu", maps=True), rng.normal(size=(side, side, 3))
  images = jnp.asarray(x[None], jnp.float32)
  variables = tiny.trained_variables(model, images, rng)
  features, maps = jax.jit(lambda variables: model.apply(variables, images, train=False))(variables)
  expected, expected_maps = oracle(variables, x, blocks, stem)
  np.testing.assert_allclose(features[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  assert [m.shape[1:] for m in maps] == [m.shape for m in expected_maps]
  for stage_map, wanted in zip(maps, expected_maps):
    np.testing.assert_allclose(stage_map[0], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
  assert features.shape == (1, model.num_features)


def test_weights_are_normal_with_variance_two_over_fan_out():
  _, variables = build("resnet8", 8)
  kernel = np.asarray(variables["params"]["BasicBlock_2"]["Conv_1"]["kernel"])
  assert kernel.shape == (3, 3, 64, 64)
  assert kernel.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
  # Not truncated: of 36,864 normal values some lie beyond four standard deviations or close to it.
  assert np.abs(kernel).max() > 3.5 * kernel.std()


def test_running_statistics_move_by_a_tenth():
  model, variables = build("resnet8", 8)
  x = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
  stem = jax.lax.conv_general_dilated(x, variables["params"]["Conv_0"]["kernel"], (1, 1), ((1, 1), (1, 1)),
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))
  _, updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
  statistics = updated["batch_stats"]["BatchNorm_0"]
  np.testing.assert_allclose(statistics["mean"], 0.1 * stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "resnet33", "resnet2", "vgg16", "resnet50"])
def test_unknown_models(name):
  with pytest.raises(UserError, match=f"model is '{name}'"):
    models.make_backbone(name, platform="cpu")


def test_convolution_by_platform():
  cpu, gpu = (models.make_backbone("resnet8", platform=p) for p in ("cpu", "gpu"))
  assert cpu.convolution is not jax.lax.conv_general_dilated
  assert gpu.convolution is jax.lax.conv_general_dilated
