"""The command line: errors in one message within ten seconds, overrides, dry run, default workdir."""

import json
import os
import time

import pytest
import runs

from gr_jax import config as configuration

DIGITS = "--config=configs/digits_lt.py"


def fails(*flags, module="main", **environment):
  """The one message of a command that ends with code 2, in under ten seconds."""
  started = time.monotonic()
  done = runs.run(module, *flags, **environment)
  seconds = time.monotonic() - started
  assert done.returncode == 2, (done.stdout, done.stderr)
  assert "Traceback" not in done.stderr
  # Errors come early: a wait on the machine aside, nothing heavier than imports lies before them.
  assert seconds < 10 or os.getloadavg()[0] > 3, seconds
  return done.stderr


@pytest.mark.parametrize("flags, words", [
    ((DIGITS, "--config.scenrio.num_tasks=3"), "'scenrio.num_tasks'; did you mean 'scenario.num_tasks'"),
    ((DIGITS, "--config.epochs=many"), "'epochs' is 'many' (str); it takes an integer"),
    ((DIGITS, "--config.dataset=digit"), "did you mean 'digits'"),
    ((DIGITS, "--config.scenario.imbalance=0.5"), "imbalance is 0.5"),
    ((DIGITS, "--config.scenario.num_tasks=11"), "num_tasks is 11, more than the 10 classes"),
    ((DIGITS, "--config.scenario.first_task_classes=10"), "first_task_classes is 10 of 10 classes"),
    ((DIGITS, "--config.memory.per_class=-1"), "memory.per_class is -1"),
    ((DIGITS, "--config.memory.per_class=some"), "'memory.per_class' is 'some' (str); it takes an integer, or None"),
    ((DIGITS, "--config.memory.total=2.5"), "'memory.total' is '2.5' (str); it takes an integer, or None"),
    ((DIGITS, "--config.memory.total=2000"), "memory.per_class is 5 and memory.total is 2000, but a memory has one"),
    ((DIGITS, "--config.memory.per_class=None"), "memory.per_class and memory.total are both None"),
    ((DIGITS, "--config.folder.train_list=None"), "the config file has no keys folder.*"),
    (("--config.data_dir=data",), "--config is missing"),
    ((DIGITS, "--config.scenario.imbalance=500"), "no training image after the draw (4, 7, 8)"),
    ((DIGITS, "--confg.epochs=1"), "'confg.epochs'"),
    ((DIGITS, "--config.method=icarll"), "method is 'icarll'; it can be 'gr', "),
    ((DIGITS, "--config.method_options.margin=0.5"), "margin is not an option of method 'gr' (it belongs to 'lucir')"),
    ((DIGITS, "--config.method=finetune", "--config.method_options.temperature=3"),
     "temperature is not an option of method 'finetune' (it belongs to 'gr', 'lwf', 'bic', "),
    ((DIGITS, "--config.method_options.temperatur=3"), "did you mean method_options.temperature?"),
    ((DIGITS, "--config.method_options.temperature=warm"), "temperature is 'warm' (str); it takes a number"),
    ((DIGITS, "--config.method_options.temperature"), "has no value"),
    ((DIGITS, "--config.method=bic", "--config.memory.per_class=20", "--config.scenario.imbalance=100"),
     "method 'bic' holds out 2 images of each class, but class "),
    ((DIGITS, "extra"), "unexpected arguments: extra"),
    ((), "--config is missing")])
def test_bad_input(tmp_path, flags, words):
  assert words in fails(*flags, f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize("key", ["memory.per_class", "epochs", "method"])
def test_a_flag_without_its_value(key):
  assert f"--config.{key} has no value; use --config.{key}=VALUE" in fails(DIGITS, f"--config.{key}")


@pytest.mark.parametrize("flags, kept", [
    (("--config.memory.per_class=None", "--config.memory.total=50"), {"memory.per_class": None, "memory.total": 50}),
    (("--config.memory.per_class", "3", "--config.stored_size=8"), {"memory.per_class": 3, "stored_size": 8}),
    (("--config.memory.total=50", "--config.memory.per_class=none", "--config.memory.total=None",
      "--config.memory.per_class=2"), {"memory.per_class": 2, "memory.total": None}),
    (("--config.scenario.first_task_classes=4", "--config.cache_dir=off", "--config.stop_after_task=1"),
     {"scenario.first_task_classes": 4, "cache_dir": "off", "stop_after_task": 1})])
def test_keys_that_can_be_none(tmp_path, flags, kept):
  """Each in its own type, whatever the recipe has; the last flag counts."""
  process = runs.start("main", DIGITS, *flags, f"--workdir={tmp_path}")
  # Written before anything is trained.
  runs.wait_for((tmp_path / "config.json").exists, process)
  process.kill()
  saved = configuration.flatten(json.loads((tmp_path / "config.json").read_text()))
  assert {key: saved[key] for key in kept} == kept


@pytest.mark.parametrize("key, value", [
    ("reweighting", "none"), ("prior", "False"), ("distillation", "kd"), ("task_ratio", "symmetric"),
    ("distillation_weight", "1"), ("attenuation_gamma", "0"), ("temperature", "3")])
def test_key_names_of_earlier_versions(tmp_path, key, value):
  message = fails(DIGITS, f"--config.{key}={value}", f"--workdir={tmp_path / 'run'}")
  assert f"config key '{key}' is now 'method_options.{key}'; use --config.method_options.{key}=" in message


@pytest.mark.parametrize("method", ["icarl", "bic", "lucir"])
def test_methods_that_need_exemplars(tmp_path, method):
  message = fails(DIGITS, f"--config.method={method}", "--config.memory.per_class=0", f"--workdir={tmp_path / 'run'}")
  assert f"memory.per_class is 0, but {method} needs " in message


def test_options_on_the_command_line_are_checked_against_the_chosen_method(tmp_path):
  """Whatever the order of the flags; and the run keeps all options of its method."""
  process = runs.start("main", DIGITS, "--config.method_options.margin=1", "--config.method=lucir",
                       f"--workdir={tmp_path}")
  # Written before anything is trained.
  runs.wait_for((tmp_path / "config.json").exists, process)
  process.kill()
  assert json.loads((tmp_path / "config.json").read_text())["method_options"] == {
      "distillation_weight": 5.0, "ranking_weight": 1.0, "margin": 1.0, "hardest": 2}


_RECIPE = """
from configs import digits_lt

def get_config():
  config = digits_lt.get_config()
  config.addons = "gpa"
  with config.unlocked():
    config.method_options.update({"temperature": 3.0, "prior": False, "gpa_weight": 0.5})
  return config
"""


@pytest.mark.parametrize("flags, kept, dropped", [
    ((), {"temperature": 3.0, "prior": False, "gpa_weight": 0.5}, ()),
    (("--config.method=gr",), {"temperature": 3.0, "prior": False, "gpa_weight": 0.5}, ()),
    (("--config.method=lwf",), {"temperature": 2.0, "weight": 1.0, "gpa_weight": 0.5}, ("attenuation_gamma",)),
    (("--config.method", "lwf", "--config.method_options.weight=2", "--config.addons=lws"),
     {"temperature": 2.0, "weight": 2.0, "lws_scale_rate": 0.1}, ("gpa_weight",)),
    (("--config.addons=",), {"temperature": 3.0, "prior": False}, ("gpa_weight",))])
def test_a_recipes_options_belong_to_its_method_and_add_ons(tmp_path, flags, kept, dropped):
  """Also those that both methods have."""
  (tmp_path / "configs").mkdir()
  recipe = tmp_path / "configs" / "recipe.py"
  recipe.write_text(_RECIPE)
  process = runs.start("main", f"--config={recipe}", *flags, f"--workdir={tmp_path / 'run'}")
  # Written before anything is trained.
  runs.wait_for((tmp_path / "run" / "config.json").exists, process)
  process.kill()
  options = json.loads((tmp_path / "run" / "config.json").read_text())["method_options"]
  assert options.items() >= kept.items() and not set(dropped) & set(options)


def test_batch_that_the_devices_cannot_share(tmp_path):
  message = fails(DIGITS, f"--workdir={tmp_path}", JAX_NUM_CPU_DEVICES="3")
  assert "batch_size is 32" in message and "--config.batch_size=33" in message


@pytest.mark.parametrize("config, words", [
    ("cifar100_lt", "python -m gr_jax.prepare cifar100"), ("food101_lt", "python -m gr_jax.prepare food101"),
    ("imagenetsubset_lt", "ILSVRC2012_img_train.tar")])
def test_data_that_are_not_prepared(tmp_path, config, words):
  message = fails(f"--config=configs/{config}.py", f"--workdir={tmp_path / 'run'}",
                  TFDS_DATA_DIR=str(tmp_path / "nothing"))
  assert words in message and "not prepared" in message and "--config.data_dir" in message


def test_workdir_of_another_config(tmp_path):
  saved = {**runs.get_config("digits_lt").to_dict(), "epochs": 7}
  (tmp_path / "config.json").write_text(json.dumps(saved))
  (tmp_path / "metrics.jsonl").write_text('{"global_step": 1, "start": 1}\n')
  assert "epochs: 7 -> 30" in fails(DIGITS, f"--workdir={tmp_path}")


def test_an_interrupted_start_leaves_the_workdir_free(tmp_path):
  """config.json and scenario.json of a start that was ended before its first epoch bind nobody."""
  drawn = {"digest": "0" * 64}
  (tmp_path / "config.json").write_text(json.dumps({**runs.get_config("digits_lt").to_dict(), "epochs": 7}))
  (tmp_path / "scenario.json").write_text(json.dumps(drawn))
  done = runs.run("main", *runs.SHORT, f"--workdir={tmp_path}", "--config.stop_after_task=1")
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 3


def test_dry_run_trains_nothing(tmp_path):
  done = runs.run("main", DIGITS, "--dry_run", f"--workdir={tmp_path / 'run'}",
                  "--config.scenario.first_task_classes=4")
  assert done.returncode == 0, done.stderr
  for words in ("digest", "task 1: 4 classes", "steps: ", "programs: 4", "memory on each device", "nothing was"):
    assert words in done.stdout
  assert not (tmp_path / "run").exists()


def test_default_workdir_and_unset(tmp_path):
  """Printed first; --config.KEY=None unsets an optional key again."""
  done = runs.run("main", "--config=configs/cifar100_lt.py", "--config.scenario.first_task_classes=None",
                  "--config.seed=3", "--dry_run", TFDS_DATA_DIR=str(tmp_path))
  assert done.stdout.splitlines()[0] == "workdir: runs/cifar100_lt-s3"
  assert "not prepared" in done.stderr


def test_evaluate_bad_input(tmp_path):
  assert "holds no run" in fails(f"--workdir={tmp_path}", module="evaluate")
  for place in (tmp_path / "nowhere" / "held_out.json", tmp_path):
    assert f"--holdout_json is {place}; it takes a file in a folder" in fails(
        f"--workdir={tmp_path}", f"--holdout_json={place}", module="evaluate")


def test_a_refused_start_leaves_the_workdir_free(tmp_path):
  """The remedy that a message gives works in the same workdir."""
  flags = (*runs.SHORT, f"--workdir={tmp_path / 'run'}", "--config.stop_after_task=1")
  fails(*flags, "--config.scenario.num_tasks=11")
  assert "set --config.image_size=8" in fails(*flags, "--config.image_size=16")
  done = runs.run("main", *flags)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("content, words", [
    (None, "there is no such file"), ("x = 1\n", "cannot be used"),
    ("def get_config():\n  return {}\n", "returns a dict; it must be a ConfigDict"),
    ("import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict({'sede': 0})\n",
     "'sede'; did you mean 'seed'")])
def test_config_files_that_cannot_be_used(tmp_path, content, words):
  if content is not None:
    (tmp_path / "mine.py").write_text(content)
  assert words in fails(f"--config={tmp_path / 'mine.py'}")


def test_the_last_flag_of_a_key_counts(tmp_path):
  for flags, words in ((("--config.data_dir=None", f"--config.data_dir={tmp_path}"), str(tmp_path)),
                       ((f"--config.data_dir={tmp_path}", "--config.data_dir=None"), "elsewhere")):
    message = fails("--config=configs/cifar100_lt.py", "--dry_run", *flags,
                    TFDS_DATA_DIR=str(tmp_path.parent / "elsewhere"))
    assert f"prepared: {tmp_path.parent if words == 'elsewhere' else tmp_path}" in message and words in message


def test_a_start_of_python_with_an_error_is_short():
  """Errors come before what takes long to import."""
  started = time.monotonic()
  done = runs.run_python("main", DIGITS, "--config.epochs=many")
  assert done.returncode == 2 and "'epochs' is 'many' (str); it takes an integer" in done.stderr
  assert time.monotonic() - started < 10 or os.getloadavg()[0] > 3
