"""Your own pictures in a folder, with their natural class sizes, at 224 pixels; same recipe as ImageNet-Subset."""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  """python -m gr_jax.main --config=configs/folder_lt.py --config.data_dir=FOLDER --config.scenario.num_tasks=5

  FOLDER holds train/<class>/* and test/<class>/*; see "Your own pictures" in the README.
  """
  config = ml_collections.ConfigDict()
  config.dataset = "folder"
  config.data_dir = config_dict.placeholder(str)
  config.distributed = "off"
  config.folder = ml_collections.ConfigDict()
  # Files with lines `path label`, instead of the folders.
  config.folder.train_list = config_dict.placeholder(str)
  config.folder.test_list = config_dict.placeholder(str)
  # Without a test set: the share of each class to use as one.
  config.folder.test_fraction = 0.0
  config.folder.test_seed = 0
  config.folder.on_bad_image = "fail"
  config.image_size = 224
  # A placeholder first, so that it can be set to None: image_size * 256 / 224.
  config.stored_size = config_dict.placeholder(int)
  config.stored_size = 320
  config.pictures = "auto"
  config.cache_dir = config_dict.placeholder(str)
  config.worker_timeout = 300.0
  config.model = "resnet18"
  config.precision = "auto"
  config.method = "gr"
  # Options of the method; missing ones have their defaults (gr_jax/docs/methods.md).
  config.method_options = ml_collections.ConfigDict()
  config.seed = 0
  config.replicas = 1

  config.scenario = ml_collections.ConfigDict()
  config.scenario.kind = "natural"
  config.scenario.imbalance = 100.0
  config.scenario.num_tasks = 5
  config.scenario.first_task_classes = config_dict.placeholder(int)
  config.scenario.order = "seeded"
  config.scenario.seed = 0

  config.memory = ml_collections.ConfigDict()
  config.memory.per_class = 20
  config.memory.selection = "herding"

  config.epochs = 90
  config.schedule = "steps"
  config.milestones = (30, 60)
  config.learning_rate = 0.1
  config.learning_rate_decay = 0.1
  config.momentum = 0.9
  config.weight_decay = 1e-4
  config.batch_size = 128
  config.augmentation = "resized_crop_flip"
  config.validation_fraction = 0.1

  config.evaluation_block = 100
  config.checkpoint_every_epochs = 10
  config.steps_per_call = 100
  config.stop_after_task = config_dict.placeholder(int)
  return config.lock()
