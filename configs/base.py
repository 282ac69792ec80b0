"""Every config key with the usual value. A recipe starts from it and changes what differs.

gr_jax/docs/config.md explains the keys.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The paper's recipe on CIFAR-100-LT, without a data set, and with equal tasks: recipes set both."""
  config = ml_collections.ConfigDict()
  # Every recipe sets it.
  config.dataset = ""
  config.image_size = 32
  # A key that is None takes any type here; gr_jax.config checks it with the others.
  config.stored_size = None
  config.data_dir = None
  config.cache_dir = None
  config.pictures = "auto"
  config.worker_timeout = 300.0
  config.augmentation = "pad_resized_crop_flip"
  config.validation_fraction = 0.1
  config.evaluate_on = "test"

  config.scenario = ml_collections.ConfigDict()
  config.scenario.kind = "lt"
  config.scenario.imbalance = 100.0
  config.scenario.num_tasks = 6
  config.scenario.first_task_classes = None
  config.scenario.order = "fixed"
  config.scenario.seed = 0

  config.method = "gr"
  # Separated by commas, such as "lws,gvalign"; they wrap the method in this order.
  config.addons = ""
  # Options that are not set have their defaults (gr_jax/docs/methods.md).
  config.method_options = ml_collections.ConfigDict()
  config.memory = ml_collections.ConfigDict()
  # One of the two sizes is None.
  config.memory.per_class = 20
  config.memory.total = None
  config.memory.selection = "herding"

  config.model = "resnet32"
  config.precision = "auto"
  config.epochs = 160
  config.schedule = "steps"
  config.milestones = (80, 120)
  config.learning_rate = 0.1
  config.learning_rate_decay = 0.1
  config.momentum = 0.9
  config.weight_decay = 5e-4
  config.batch_size = 128

  config.seed = 0
  config.replicas = 1
  config.distributed = "off"
  config.evaluation_block = 250
  config.checkpoint_every_epochs = 10
  config.steps_per_call = 100
  config.tensorboard = False
  config.stop_after_task = None
  return config.lock()
