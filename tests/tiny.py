"""Small things that several tests build."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class TinyBackbone(nn.Module):
  """relu(x @ kernel + bias), the backbone of the recorded trajectory."""
  num_features: int

  @nn.compact
  def __call__(self, x, *, train):
    """x [batch, inputs] -> (features [batch, num_features], no maps)."""
    del train
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.num_features))
    bias = self.param("bias", nn.initializers.zeros, (self.num_features,))
    # The recording is exact to 1e-5, so the products must be too.
    return nn.relu(jnp.dot(x, kernel, precision=jax.lax.Precision.HIGHEST)
                   + jnp.expand_dims(bias, range(x.ndim - 1))), ()


class PixelBackbone(nn.Module):
  """A dense layer on all pixels, with one signed map: where a test is not about the network, it compiles quickly."""
  num_features: int = 12

  @nn.compact
  def __call__(self, x, *, train):
    """x [batch, side, side, channels] -> (features [batch, num_features], one map [batch, 2, 2, num_features / 4])."""
    del train
    projected = nn.Dense(self.num_features)(x.reshape(x.shape[0], -1))
    return nn.relu(projected), (projected.reshape(-1, 2, 2, self.num_features // 4),)


def pictures(rng, count, side, channels=3):
  """[count, side, side, channels] uint8, smooth blobs: neighbouring pixels are alike, as in photographs."""
  coarse = rng.uniform(0, 255, (count, 4, 4, channels))
  repeat = -(-side // 4)
  return np.kron(coarse, np.ones((1, repeat, repeat, 1)))[:, :side, :side].astype(np.uint8)


def trained_variables(model, images, rng):
  """A backbone's variables with batch norm as after training; at its start batch norm would do nothing."""
  # Shapes alone: compiling the draws of the real initialisation takes up to a minute.
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

  def draw(path, leaf):
    if path[-1].key == "kernel":
      return jnp.asarray(rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:2]) / leaf.shape[3]), leaf.shape), jnp.float32)
    if path[-1].key in ("mean", "bias"):
      return jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32)
    return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)

  return jax.tree.map_with_path(draw, shapes)
