"""Every key is checked for name, type and range before anything is loaded."""

import ml_collections
import pytest
import runs

from gr_jax import config as configuration
from gr_jax.errors import UserError

CONFIGS = sorted(path.stem for path in (runs.ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_files_are_valid_locked_and_complete(name):
  config = runs.get_config(name)
  configuration.validate(config)
  assert config.is_locked
  assert list(configuration.flatten(config).keys() ^ set(configuration.keys_of(config.dataset))) == []


def test_the_papers_protocol():
  """docs/method.md section 6."""
  cifar, imagenet, food = (runs.get_config(n) for n in ("cifar100_lt", "imagenetsubset_lt", "food101_lt"))
  for config in (cifar, imagenet, food):
    assert (config.batch_size, config.learning_rate, config.momentum) == (128, 0.1, 0.9)
    assert (config.scenario.kind, config.scenario.imbalance, config.memory.per_class) == ("lt", 100.0, 20)
    assert (config.temperature, config.distillation_weight, config.attenuation_gamma) == (2.0, 0.7, 1.0)
    assert config.validation_fraction == 0.1 and config.scenario.num_tasks == 6
  assert (cifar.epochs, cifar.milestones, cifar.weight_decay) == (160, (80, 120), 5e-4)
  assert (imagenet.epochs, imagenet.milestones, imagenet.weight_decay) == (90, (30, 60), 1e-4)
  assert (food.epochs, food.milestones, food.weight_decay) == (90, (30, 60), 1e-4)
  assert [c.scenario.first_task_classes for c in (cifar, imagenet, food)] == [50, 50, 51]
  assert (cifar.model, imagenet.model, food.model) == ("resnet32", "resnet18", "resnet18")


@pytest.mark.parametrize("key, value, words", [
    ("dataset", "cifar10", "dataset is 'cifar10'; known are .*did you mean 'cifar100'"),
    ("method", "icarl", "method is 'icarl'"),
    ("seed", -1, "seed is -1"),
    ("epochs", 0, "epochs is 0"),
    ("milestones", (20, 10), "milestones are"),
    ("stored_size", 7, "stored_size is 7, smaller than image_size, 8, .*stored_size=None is"),
    ("schedule", "cosine", "milestones are .*, but schedule is 'cosine', which has none"),
    ("schedule", "cosin", "did you mean 'cosine'"),
    ("learning_rate", 0.0, "learning_rate is 0.0"),
    ("momentum", 1.0, "momentum is 1.0; it must be 0 or more and below 1"),
    ("batch_size", 0, "batch_size is 0"),
    ("augmentation", "flip", "augmentation is 'flip'"),
    ("validation_fraction", 1.0, "validation_fraction is 1.0"),
    ("stop_after_task", 6, "stop_after_task is 6, but scenario.num_tasks is 5"),
    ("scenario.kind", "longtail", "scenario.kind is 'longtail'"),
    ("scenario.imbalance", 0.9, "imbalance is 0.9; it must be the largest class over the smallest"),
    ("scenario.num_tasks", 0, "num_tasks is 0"),
    ("memory.per_class", -1, "memory.per_class is -1"),
    ("memory.selection", "herd", "memory.selection is 'herd'.*did you mean 'herding'"),
    ("reweighting", "full", "reweighting is 'full'; it can be 'dgr', 'class', 'none'"),
    ("distillation", "dkd", "distillation is 'dkd'"),
    ("task_ratio", "both", "task_ratio is 'both'"),
    ("temperature", 0.0, "temperature is 0.0"),
    ("steps_per_call", 0, "steps_per_call is 0")])
def test_values_out_of_range(key, value, words):
  with pytest.raises(UserError, match=words):
    configuration.validate(runs.get_config("digits_lt", **{key: value}))


def test_a_first_task_alone():
  with pytest.raises(UserError, match="num_tasks is 1 with scenario.first_task_classes = 4"):
    configuration.validate(runs.get_config(
        "digits_lt", **{"scenario.num_tasks": 1, "scenario.first_task_classes": 4}))


def test_unknown_missing_and_mistyped_keys():
  config = ml_collections.ConfigDict(runs.get_config("digits_lt").to_dict())
  config.scenario.num_task = 3
  with pytest.raises(UserError, match="'scenario.num_task'; did you mean 'scenario.num_tasks'"):
    configuration.validate(config)
  config = ml_collections.ConfigDict(runs.get_config("digits_lt").to_dict())
  del config.temperature
  with pytest.raises(UserError, match="lacks 'temperature'"):
    configuration.validate(config)
  for key, value, words in (("epochs", 1.5, "an integer"), ("prior", 1, "True or False"),
                            ("milestones", (1.5,), "integers in a tuple"), ("learning_rate", "x", "a number"),
                            ("dataset", None, "a text"), ("seed", True, "an integer")):
    config = ml_collections.ConfigDict({**runs.get_config("digits_lt").to_dict(), key: value})
    with pytest.raises(UserError, match=f"{key!r} is {value!r}".replace("(", r"\(").replace(")", r"\)")
                       + f".*it takes {words}"):
      configuration.validate(config)


def test_integers_stand_for_numbers():
  configuration.validate(ml_collections.ConfigDict(
      {**runs.get_config("digits_lt").to_dict(), "learning_rate": 1, "weight_decay": 0}))


def test_difference_leaves_out_what_may_change():
  saved = configuration.flatten(runs.get_config("digits_lt"))
  wanted = configuration.flatten(runs.get_config(
      "digits_lt", data_dir="elsewhere", stop_after_task=2, epochs=31))
  assert configuration.difference(saved, wanted) == ["epochs: 30 -> 31"]
