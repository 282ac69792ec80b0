"""Batch norm folded into convolutions: the same network in evaluation mode."""

import functools

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from gr_jax import models
from gr_jax.models import folding
from gr_jax.models import heads as classifier

# Some blocks a stage in place of ResNet-32's five.
NETWORKS = pytest.mark.parametrize("name, side", [
    ("resnet8", 9), ("resnet14", 8), pytest.param("resnet32", 8, marks=pytest.mark.slow), ("resnet18", 40)])


def trained(name, side, precision="float32"):
  """(model, variables with batch norm as after training, images)."""
  model = models.make_backbone(name, platform="cpu", precision=precision, maps=True)
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.normal(size=(5, side, side, 3)), jnp.float32)
  return model, tiny.trained_variables(model, images, rng), images


def outputs(model, variables, images):
  """(features, maps) in evaluation mode, float32."""
  computed = jax.jit(lambda variables: model.apply(variables, images, train=False))(variables)
  return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(computed)]


def errors(actual, expected):
  return [np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) for ours, theirs in zip(actual, expected, strict=True)]


@NETWORKS
def test_the_same_network_in_float32(name, side):
  model, variables, images = trained(name, side)
  folded = folding.fold(variables["params"], variables["batch_stats"])
  assert folded["batch_stats"] == {}
  plain = outputs(model, variables, images)
  assert max(errors(outputs(model, folded, images), plain)) < 1e-5
  # Random statistics matter: without them the network is another one.
  fresh = jax.tree.map(jnp.ones_like, variables["batch_stats"])
  assert min(errors(outputs(model, {**variables, "batch_stats": fresh}, images), plain)) > 1e-2


@NETWORKS
def test_the_same_network_in_bfloat16(name, side):
  """Both are as far from float32 as bfloat16's rounding takes them."""
  _, variables, images = trained(name, side)
  exact, rounded = (models.make_backbone(name, platform="cpu", precision=p, maps=True) for p in ("float32", "bfloat16"))
  folded = folding.fold(variables["params"], variables["batch_stats"])
  expected = outputs(exact, variables, images)
  unfolded = errors(outputs(rounded, variables, images), expected)
  assert max(unfolded) < 0.05
  for ours, theirs in zip(errors(outputs(rounded, folded, images), expected), unfolded):
    assert ours < 1.5 * theirs


def test_what_a_folded_network_consists_of():
  _, variables, _ = trained("resnet8", 9)
  params = folding.fold(variables["params"], variables["batch_stats"])["params"]
  assert params.keys() == variables["params"].keys()
  for path in ((), ("BasicBlock_1",)):
    layers, unfolded = (functools.reduce(dict.__getitem__, path, tree) for tree in (params, variables["params"]))
    assert layers.keys() == unfolded.keys()
    for name, layer in layers.items():
      if name.startswith("BatchNorm"):
        assert layer.keys() == {"bias"}
      elif name.startswith("Conv"):
        assert layer["kernel"].shape == unfolded[name]["kernel"].shape and layer["kernel"].dtype == jnp.float32


def test_a_channel_without_variance():
  """Epsilon alone keeps it finite, in both networks."""
  model, variables, images = trained("resnet8", 9)
  variables["batch_stats"]["BasicBlock_0"]["BatchNorm_0"]["var"] = jnp.zeros(16)
  folded = folding.fold(variables["params"], variables["batch_stats"])
  assert max(errors(outputs(model, folded, images), outputs(model, variables, images))) < 1e-5


def test_a_backbone_without_batch_norm_stays_as_it_is():
  model = tiny.TinyBackbone(8)
  params = model.init(jax.random.key(0), jnp.zeros((2, 12)), train=False)["params"]
  folded = folding.fold(params, {})
  assert folded == {"params": params, "batch_stats": {}}


def test_convolutions_without_batch_norm_stay_as_they_are():
  class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(4, (3, 3))(x)
      return nn.Dense(2)(x)

  params = Plain().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
  jax.tree.map(np.testing.assert_array_equal, folding.fold(params, {})["params"], params)


def test_a_teacher_keeps_its_classifier():
  model, variables, images = trained("resnet8", 9)
  head = classifier.draw_columns(jax.random.key(1), classifier.init(64, 10), jnp.ones(10, bool))
  teacher = {"params": {"backbone": variables["params"], "classifier": head}, "batch_stats": variables["batch_stats"]}
  folded = folding.fold_teacher(teacher)
  assert folded["params"].keys() == {"backbone", "classifier"} and folded["batch_stats"] == {}
  assert folded["params"]["classifier"] is head
  backbone = {"params": folded["params"]["backbone"], "batch_stats": folded["batch_stats"]}
  assert max(errors(outputs(model, backbone, images), outputs(model, variables, images))) < 1e-5
  # What was given is as it was.
  assert "scale" in teacher["params"]["backbone"]["BatchNorm_0"]


def test_missing_statistics_are_not_taken_for_a_folded_network():
  model, variables, images = trained("resnet8", 9)
  for forgotten in ({"params": variables["params"]}, {"params": variables["params"], "batch_stats": {}}):
    with pytest.raises(ValueError, match="BatchNorm_0 has a scale, but batch_stats holds no running statistics"):
      model.apply(forgotten, images, train=False)
  with pytest.raises(ValueError, match="fold: no running statistics of BatchNorm_0"):
    folding.fold(variables["params"], {})


def test_a_folded_network_cannot_be_trained_or_folded_again():
  model, variables, images = trained("resnet8", 9)
  folded = folding.fold(variables["params"], variables["batch_stats"])
  with pytest.raises(flax.errors.ScopeParamNotFoundError, match="scale"):
    model.apply(folded, images, train=True, mutable=["batch_stats"])
  with pytest.raises(ValueError, match="fold: no running statistics of BatchNorm_0"):
    folding.fold(folded["params"], folded["batch_stats"])
