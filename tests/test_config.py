"""Every key is checked for name, type and range before anything is loaded."""

import dataclasses

import ml_collections
import pytest
import runs

from gr_jax import config as configuration
from gr_jax import methods
from gr_jax.errors import UserError

CONFIGS = sorted(path.stem for path in (runs.ROOT / "configs").glob("*.py") if path.stem != "base")


@pytest.mark.parametrize("name", CONFIGS)
def test_config_files_are_valid_locked_and_complete(name):
  config = runs.get_config(name)
  configuration.check(config)
  assert config.is_locked
  keys = {key for key in configuration.flatten(config) if not key.startswith("method_options.")}
  assert keys ^ set(configuration.keys_of(config.dataset)) == set()


@pytest.mark.parametrize("name", ["base", *CONFIGS])
def test_config_files_hold_plain_values(name):
  """No placeholder of ml_collections: gr_jax.config knows each key's type."""
  groups = [runs.get_config(name)]
  for group in groups:
    for value in dict(group.items(preserve_field_references=True)).values():
      assert not isinstance(value, ml_collections.FieldReference)
      groups += [value] if isinstance(value, ml_collections.ConfigDict) else []


def test_texts_in_the_type_of_their_key():
  for key, text, value in (
      ("stored_size", "320", 320), ("stored_size", "None", None), ("data_dir", "none", None), ("data_dir", "8", "8"),
      ("learning_rate", "1", 1.0), ("tensorboard", "true", True), ("milestones", "(80,120)", (80, 120)),
      ("milestones", "()", ()), ("dataset", "None", "None")):
    assert configuration.parsed(key, text) == value and type(configuration.parsed(key, text)) is type(value)
  for key, text, words in (("stored_size", "3.5", "an integer, or None"), ("epochs", "None", "an integer"),
                           ("tensorboard", "1", "True or False"), ("milestones", "80,x", "integers in a tuple")):
    with pytest.raises(UserError, match=f"{key}. is {text!r} .str.; it takes {words}"):
      configuration.parsed(key, text)


def test_the_papers_protocol():
  """docs/method.md section 6."""
  cifar, imagenet, food = (runs.get_config(n) for n in ("cifar100_lt", "imagenetsubset_lt", "food101_lt"))
  for config in (cifar, imagenet, food):
    assert (config.batch_size, config.learning_rate, config.momentum) == (128, 0.1, 0.9)
    assert (config.scenario.kind, config.scenario.imbalance, config.memory.per_class) == ("lt", 100.0, 20)
    assert config.method == "gr"
    options = configuration.check(config).method_options
    assert options == {
        "reweighting": "dgr", "prior": True, "distillation": "dakd", "task_ratio": "release",
        "temperature": 2.0, "distillation_weight": 0.7, "attenuation_gamma": 1.0, "head": "linear"}
    assert config.validation_fraction == 0.1 and config.scenario.num_tasks == 6
  assert (cifar.epochs, cifar.milestones, cifar.weight_decay) == (160, (80, 120), 5e-4)
  assert (imagenet.epochs, imagenet.milestones, imagenet.weight_decay) == (90, (30, 60), 1e-4)
  assert (food.epochs, food.milestones, food.weight_decay) == (90, (30, 60), 1e-4)
  assert [c.scenario.first_task_classes for c in (cifar, imagenet, food)] == [50, 50, 51]
  assert (cifar.model, imagenet.model, food.model) == ("resnet32", "resnet18", "resnet18")


@pytest.mark.parametrize("key, value, words", [
    ("dataset", "cifar10", "dataset is 'cifar10'; known are .*did you mean 'cifar100'"),
    ("method", "icarll", "method is 'icarll'.*did you mean 'icarl'"),
    ("seed", -1, "seed is -1"),
    ("epochs", 0, "epochs is 0"),
    ("milestones", (20, 10), "milestones are"),
    ("stored_size", 7, "stored_size is 7, smaller than image_size .8., .*stored_size=None for"),
    ("schedule", "cosine", "milestones are .*, but schedule 'cosine' has none"),
    ("schedule", "cosin", "did you mean 'cosine'"),
    ("learning_rate", 0.0, "learning_rate is 0.0"),
    ("momentum", 1.0, "momentum is 1.0; it must be 0 or more and below 1"),
    ("batch_size", 0, "batch_size is 0"),
    ("augmentation", "flip", "augmentation is 'flip'"),
    ("validation_fraction", 1.0, "validation_fraction is 1.0"),
    ("stop_after_task", 6, "stop_after_task is 6, but scenario.num_tasks is 5"),
    ("scenario.kind", "longtail", "scenario.kind is 'longtail'"),
    ("scenario.imbalance", 0.9, "imbalance is 0.9; it must be the largest class over the smallest, so 1 or more"),
    ("scenario.num_tasks", 0, "num_tasks is 0"),
    ("memory.per_class", -1, "memory.per_class is -1"),
    ("memory.selection", "herd", "memory.selection is 'herd'.*did you mean 'herding'"),
    ("memory.total", 0, "memory.total is 0; it must be 1 or more"),
    ("memory.total", 50, "memory.per_class is 5 and memory.total is 50.*unset one .*memory.per_class=None"),
    ("memory.per_class", None, "memory.per_class and memory.total are both None; set one .*memory.per_class=20"),
    ("method_options.reweighting", "full", "reweighting is 'full'; it can be 'dgr', 'class', 'none'"),
    ("method_options.distillation", "dkd", "distillation is 'dkd'"),
    ("method_options.task_ratio", "both", "task_ratio is 'both'"),
    ("method_options.temperature", 0.0, "temperature is 0.0; it must be above 0"),
    ("method_options.temperature", float("nan"), "temperature is nan"),
    ("method_options.distillation_weight", -1.0, "distillation_weight is -1.0; it must be 0 or more"),
    ("method_options.margin", 0.5, r"margin is not an option of method 'gr' \(it belongs to 'lucir'\)"),
    ("method_options.tempratur", 2.0, "tempratur is not an option .*; did you mean method_options.temperature"),
    ("steps_per_call", 0, "steps_per_call is 0")])
def test_values_out_of_range(key, value, words):
  with pytest.raises(UserError, match=words):
    configuration.check(runs.get_config("digits_lt", **{key: value}))


@pytest.mark.parametrize("name", methods.NAMES)
def test_every_method_is_valid_at_its_defaults_and_completed(name):
  config = configuration.check(runs.get_config("digits_lt", method=name))
  assert config.method_options == methods.resolve(name, {})
  assert configuration.check(config) is config
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.seed = 1
  assert runs.get_config("digits_lt", method=name).method_options.to_dict() == {}


@pytest.mark.parametrize("name, options, words", [
    ("finetune", {"temperature": 2.0}, "temperature is not an option of method 'finetune'.*has none"),
    ("bic", {"bias_learning_rate": 0.0}, "bias_learning_rate is 0.0; it must be above 0"),
    ("lucir", {"hardest": 0}, "hardest is 0; it must be 1 or more"),
    ("lucir", {"hardest": 2.0}, r"hardest is 2.0 \(float\); it takes an integer"),
    ("icarl", {"loss": "long_tailed"}, "loss is 'long_tailed'.*did you mean 'long_tailed_cil'")])
def test_options_of_other_methods_are_checked(name, options, words):
  with pytest.raises(UserError, match=words):
    configuration.check(runs.get_config(
        "digits_lt", method=name, **{f"method_options.{key}": value for key, value in options.items()}))


NEED_EXEMPLARS = ("icarl", "bic", "eeil", "il2m", "ssil", "lucir", "podnet", "foster", "mafdrc")


def test_numbers_that_a_method_needs():
  for name in NEED_EXEMPLARS:
    with pytest.raises(UserError, match=f"memory.per_class is 0, but {name} needs"):
      configuration.check(runs.get_config("digits_lt", method=name, **{"memory.per_class": 0}))
  for name in set(methods.NAMES) - set(NEED_EXEMPLARS):
    configuration.check(runs.get_config("digits_lt", method=name, **{"memory.per_class": 0}))


@pytest.mark.parametrize("key", sorted(configuration.MOVED))
def test_keys_of_earlier_versions_name_their_new_place(key):
  config = ml_collections.ConfigDict({**runs.get_config("digits_lt").to_dict(), key: 1})
  with pytest.raises(UserError, match=f"{key!r} is now 'method_options.{key}'"):
    configuration.check(config)


def test_a_first_task_alone():
  with pytest.raises(UserError, match="num_tasks is 1 with scenario.first_task_classes = 4"):
    configuration.check(runs.get_config(
        "digits_lt", **{"scenario.num_tasks": 1, "scenario.first_task_classes": 4}))


def test_unknown_missing_and_mistyped_keys():
  config = ml_collections.ConfigDict(runs.get_config("digits_lt").to_dict())
  config.scenario.num_task = 3
  with pytest.raises(UserError, match="'scenario.num_task'; did you mean 'scenario.num_tasks'"):
    configuration.check(config)
  config = ml_collections.ConfigDict(runs.get_config("digits_lt").to_dict())
  del config.weight_decay
  with pytest.raises(UserError, match="lacks 'weight_decay'"):
    configuration.check(config)
  for key, value, words in (("epochs", 1.5, "an integer"),
                            ("milestones", (1.5,), "integers in a tuple"), ("learning_rate", "x", "a number"),
                            ("dataset", None, "a string"), ("seed", True, "an integer")):
    config = ml_collections.ConfigDict({**runs.get_config("digits_lt").to_dict(), key: value})
    with pytest.raises(UserError, match=f"{key!r} is {value!r}".replace("(", r"\(").replace(")", r"\)")
                       + f".*it takes {words}"):
      configuration.check(config)
  with pytest.raises(UserError, match=r"method_options.prior is 1 \(int\); it takes True or False"):
    configuration.check(runs.get_config("digits_lt", **{"method_options.prior": 1}))
  with pytest.raises(UserError, match="method_options.temperature is True .*; it takes a number"):
    configuration.check(runs.get_config("digits_lt", **{"method_options.temperature": True}))


def test_integers_stand_for_numbers():
  checked = configuration.check(ml_collections.ConfigDict(
      {**runs.get_config("digits_lt").to_dict(), "learning_rate": 1, "weight_decay": 0}))
  assert checked.learning_rate == 1.0 and isinstance(checked.learning_rate, float)
  checked = configuration.check(runs.get_config("digits_lt", **{"method_options.temperature": 3}))
  assert checked.method_options["temperature"] == 3.0 and isinstance(checked.method_options["temperature"], float)


def test_difference_leaves_out_what_may_change():
  saved = configuration.flatten(runs.get_config("digits_lt"))
  wanted = configuration.flatten(runs.get_config(
      "digits_lt", data_dir="elsewhere", stop_after_task=2, epochs=31))
  assert configuration.difference(saved, wanted) == ["epochs: 30 -> 31"]


def test_difference_tells_of_options():
  saved, wanted = (configuration.flatten(configuration.check(runs.get_config(
      "digits_lt", **{"method_options.temperature": value}))) for value in (2.0, 3.0))
  assert configuration.difference(saved, wanted) == ["method_options.temperature: 2.0 -> 3.0"]
