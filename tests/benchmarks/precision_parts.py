"""Which part of bfloat16 moves the gradient, on the network of a run.

  python tests/benchmarks/precision_parts.py --workdir=RUN [--task=6] [--data_dir=FOLDER] [--batches=8]

The gradient of the cross-entropy by the backbone's parameters, in training mode, on batches of the test pictures: exact
to float32, with one part of the network rounded to bfloat16, and with all of it in bfloat16. Printed: the error of each
relative to the exact gradient, and its length over the exact one's; beside them what another batch of pictures changes.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

PARTS = ("products forward", "gradients of inputs", "gradients of kernels", "activations and residual sums")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--task", type=int, default=None)
  parser.add_argument("--data_dir", default=None)
  parser.add_argument("--batches", type=int, default=8)
  given = parser.parse_args()
  # After the flags are checked: importing JAX takes a second.
  import jax
  import jax.numpy as jnp
  import numpy as np

  from gr_jax import losses, models
  from gr_jax.data import augment
  from gr_jax.models import convolution, norm
  from gr_jax.runs import restored, workdir
  from gr_jax.training import experiment as experiments
  from gr_jax.training import pictures

  def rounded(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16).astype(jnp.float32)

  @jax.custom_vjp
  def rounded_both_ways(x: jax.Array) -> jax.Array:
    return rounded(x)

  rounded_both_ways.defvjp(lambda x: (rounded(x), None), lambda _, grad: (rounded(grad),))

  def convolution_with(part: str) -> Any:
    """The canonical convolution with one part rounded: its operands and its result."""
    def convolve(inputs: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
      exact = functools.partial(convolution.canonical_convolution, window_strides=tuple(strides),
                                padding=tuple(map(tuple, padding)), **options)

      @jax.custom_vjp
      def run(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return rounded(exact(rounded(inputs), rounded(kernel))) if part == PARTS[0] else exact(inputs, kernel)

      def backward(kept: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs, kernel = kept
        pull = lambda x, k, g: jax.vjp(exact, x, k)[1](g)
        by_inputs = (rounded(pull(inputs, rounded(kernel), rounded(grad))[0]) if part == PARTS[1]
                     else pull(inputs, kernel, grad)[0])
        by_kernel = (rounded(pull(rounded(inputs), kernel, rounded(grad))[1]) if part == PARTS[2]
                     else pull(inputs, kernel, grad)[1])
        return by_inputs, by_kernel

      run.defvjp(lambda inputs, kernel: (run(inputs, kernel), (inputs, kernel)), backward)
      return run(inputs, kernel)

    return convolve

  def normalise_rounded(*arguments: Any) -> Any:
    values, statistics = norm.normalise(*arguments)
    return rounded_both_ways(values), statistics

  folder = workdir.locate(given.workdir)
  config = restored.read_config(folder, **({} if given.data_dir is None else {"data_dir": given.data_dir}))
  setting = restored.as_trained(folder, experiments.load(config, training=False))
  done = restored.after_task(folder, setting, given.task)
  plan, source = setting.plans[done.task - 1].stages[0], setting.source
  images = pictures.load(setting, "test", lambda items, **_: items, print)
  view = jax.jit(augment.make_plain(image_size=config.image_size, mean=source.mean, std=source.std, cropped=True))
  stop = int(np.searchsorted(images.labels, plan.task.stop))
  order = np.random.default_rng(0).permutation(stop)

  def network(precision: str, **changes: Any) -> Any:
    return models.make_backbone(config.model, platform="cpu", precision=precision).clone(**changes)

  def gradient_by(model: Any) -> Any:
    def loss(backbone: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
      (features, _), _ = model.apply({"params": backbone, "batch_stats": done.network["batch_stats"]}, x, train=True,
                                     mutable=["batch_stats"])
      logits, _ = setting.method.head.apply(done.network["params"]["classifier"], features, plan.context)
      return losses.cross_entropy(logits, labels, plan.context.seen)

    @jax.jit
    def flat(x: jax.Array, labels: jax.Array) -> jax.Array:
      gradient = jax.grad(loss)(done.network["params"]["backbone"], x, labels)
      return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
    return flat

  variants = {name: gradient_by(network("float32", convolution=convolution_with(name))) for name in PARTS[:3]}
  variants[PARTS[3]] = gradient_by(network("float32", normalise=normalise_rounded))
  variants["all of it (precision=bfloat16)"] = gradient_by(network("bfloat16"))
  exact = gradient_by(network("float32"))
  errors: dict[str, list[tuple[float, float]]] = {name: [] for name in (*variants, "another batch, float32")}
  for number in range(given.batches):
    rows, others = (np.take(order, range(place * config.batch_size, (place + 1) * config.batch_size), mode="wrap")
                    for place in (number, number + given.batches))
    x, labels = view(images.images[rows], images.sizes[rows]), jnp.asarray(images.labels[rows])
    reference = np.asarray(exact(x, labels), np.float64)
    compared = {name: variant(x, labels) for name, variant in variants.items()}
    compared["another batch, float32"] = exact(view(images.images[others], images.sizes[others]),
                                               jnp.asarray(images.labels[others]))
    for name, gradient in compared.items():
      difference = np.asarray(gradient, np.float64) - reference
      errors[name].append((float(np.linalg.norm(difference) / np.linalg.norm(reference)),
                           float(np.linalg.norm(difference + reference) / np.linalg.norm(reference))))
  print("| rounded to bfloat16 | error of the gradient | length over the exact one's |\n|---|---|---|")
  for name, pairs in errors.items():
    error, length = np.mean(pairs, axis=0)
    print(f"| {name} | {100 * error:.2f} % | {length:.4f} |")


if __name__ == "__main__":
  main()
