"""Your own pictures in a folder, with their natural class sizes, at 224 pixels; same recipe as ImageNet-Subset."""

import ml_collections

from configs import imagenetsubset_lt


def get_config() -> ml_collections.ConfigDict:
  """python -m gr_jax.main --config=configs/folder_lt.py --config.data_dir=FOLDER --config.scenario.num_tasks=5

  FOLDER holds train/<class>/* and test/<class>/*; see "Your own pictures" in the README.
  """
  config = imagenetsubset_lt.get_config()
  config.dataset = "folder"
  with config.unlocked():
    config.folder = ml_collections.ConfigDict()
    # Files with lines `path label`, instead of the folders.
    config.folder.train_list = None
    config.folder.test_list = None
    # Without a test set: the share of each class to use as one.
    config.folder.test_fraction = 0.0
    config.folder.test_seed = 0
    config.folder.on_bad_image = "fail"
  config.scenario.kind = "natural"
  config.scenario.num_tasks = 5
  config.scenario.first_task_classes = None
  config.scenario.order = "seeded"
  return config
