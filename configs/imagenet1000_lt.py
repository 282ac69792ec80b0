"""ImageNet-1000-LT, rho = 100, learning from half, at 224 pixels (gr_jax/docs/method.md sections 2, 6)."""

import ml_collections

from configs import imagenetsubset_lt


def get_config() -> ml_collections.ConfigDict:
  """python -m gr_jax.main --config=configs/imagenet1000_lt.py

  ImageNet-Subset's recipe on all classes, in a seeded order. Not yet run in full; meant for several GPUs.
  """
  config = imagenetsubset_lt.get_config()
  config.dataset = "imagenet1000"
  config.scenario.first_task_classes = 500
  config.scenario.order = "seeded"
  return config
