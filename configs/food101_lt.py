"""Food101-LT, rho = 100, learning from half, at 224 pixels (gr_jax/docs/method.md sections 2, 6)."""

import ml_collections

from configs import imagenetsubset_lt


def get_config() -> ml_collections.ConfigDict:
  """python -m gr_jax.main --config=configs/food101_lt.py

  ImageNet-Subset's recipe, in a seeded order. Not yet run in full; meant for a GPU.
  """
  config = imagenetsubset_lt.get_config()
  config.dataset = "food101"
  config.scenario.first_task_classes = 51
  config.scenario.order = "seeded"
  return config
