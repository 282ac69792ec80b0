"""ImageNet-Subset-LT, rho = 100, learning from half, at 224 pixels (gr_jax/docs/method.md sections 2, 6)."""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  """python -m gr_jax.main --config=configs/imagenetsubset_lt.py

  Published: average incremental accuracy 48.00 %, last 38.50 %. Not yet run in full; meant for a GPU.
  """
  config = base.get_config()
  config.dataset = "imagenet_subset"
  config.image_size = 224
  config.stored_size = 320
  config.augmentation = "resized_crop_flip"
  config.scenario.first_task_classes = 50
  config.model = "resnet18"
  config.epochs = 90
  config.milestones = (30, 60)
  config.weight_decay = 1e-4
  config.evaluation_block = 100
  return config
