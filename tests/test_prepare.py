"""What the preparing command does where TensorFlow is missing, and where nothing or little is left to do."""

import importlib.util

import builders
import pytest
import runs

from gr_jax import prepare
from gr_jax.errors import UserError

without_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed, so it would download")


def refused(name, data_dir):
  with pytest.raises(UserError) as caught:
    prepare.prepare(name, data_dir)
  return str(caught.value)


def test_unknown_data_set_lists_the_known(tmp_path):
  assert refused("cifar10", tmp_path) == (
      "data set is 'cifar10'; known are cifar100, imagenet_subset, imagenet2012, imagenet1000, food101")


def test_digits_need_none(tmp_path):
  assert refused("digits", tmp_path) == "digits need no preparation: they come with scikit-learn"


@without_tensorflow
@pytest.mark.parametrize("name", ["cifar100", "imagenet_subset", "imagenet2012", "food101"])
def test_missing_tensorflow_says_the_extra(tmp_path, name):
  assert "TensorFlow, which is not installed; run: pip install -e '.[prepare]'" in refused(name, tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names,write", [
    (("cifar100",), builders.cifar100), (("imagenet_subset", "imagenet2012"), builders.imagenet2012),
    (("food101",), builders.food101)])
def test_prepared_already_returns_the_folder(tmp_path, names, write):
  folder = write(tmp_path, per_class=1)
  before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  for name in names:
    assert prepare.prepare(name, tmp_path) == folder
  assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_damaged_folder_is_not_called_prepared(tmp_path):
  # TFDS takes any folder of the right name for a finished one, so the same command again would repair nothing.
  folder = builders.cifar100(tmp_path, per_class=1)
  (folder / "cifar100-test.array_record-00000-of-00001").unlink()
  message = refused("cifar100", tmp_path)
  assert "which dataset_info.json lists, is missing" in message
  assert f"remove the folder {folder} and prepare it again: python -m gr_jax.prepare cifar100" in message


def test_command_prints_the_folder(tmp_path):
  folder = builders.cifar100(tmp_path, per_class=1)
  done = runs.run("prepare", "cifar100", f"--data_dir={tmp_path}")
  assert (done.returncode, done.stdout) == (0, f"prepared: {folder}\n")


@pytest.mark.parametrize("arguments,message", [
    ((), "error: 1 argument(s) expected, such as: python -m gr_jax.prepare cifar100\n"),
    (("cifar100", "food101"), "error: unexpected arguments: food101; flags begin with --\n"),
    (("digits",), "error: digits need no preparation: they come with scikit-learn\n")])
def test_command_refuses_in_one_line(arguments, message):
  done = runs.run("prepare", *arguments)
  assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
