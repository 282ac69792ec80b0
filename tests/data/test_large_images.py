"""Large pictures end to end: the ImageNet-Subset and Food-101 configs on small prepared data sets."""

import json
import pathlib
import shutil

import builders
import numpy as np
import photographs
import pytest
import runs
import tiny

from gr_jax import evaluate, models, train
from gr_jax.errors import UserError
from gr_jax.runs import console
from gr_jax.runs.workdir import check_scenario, read_config, write_start
from gr_jax.training import experiment


@pytest.fixture(scope="module", autouse=True)
def pixels():
  """These tests are about pictures and counts; a dense layer compiles quickly."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, "make_backbone", lambda name, **options: tiny.PixelBackbone())
    yield


@pytest.fixture(scope="module")
def run(pixels, tmp_path_factory):
  """Two tasks of 50 classes, few steps: (config, workdir, what train returned)."""
  folder = tmp_path_factory.mktemp("large")
  builders.imagenet2012(folder / "tfds", per_class=3, test_per_class=1)
  config = runs.get_config("imagenetsubset_lt", **{
      "data_dir": str(folder / "tfds"), "image_size": 32, "stored_size": None, "model": "resnet8", "epochs": 1,
      "milestones": (), "batch_size": 64,
      "scenario.num_tasks": 2, "scenario.imbalance": 2.0, "memory.per_class": 1, "validation_fraction": 0.3,
      "evaluation_block": 52})
  return config, folder / "run", train.train(config, folder / "run")


def test_two_tasks_are_learnt_and_counted(run):
  config, workdir, results = run
  assert config.scenario.first_task_classes == 50
  assert results["tasks_done"] == 2
  tasks = runs.rows(workdir, "task")
  # One test picture a class: all 50, then all 100 are counted.
  assert [len(row["correct"]) for row in tasks] == [50, 100]
  for row, accuracy in zip(tasks, results["task_accuracies"]):
    assert accuracy == sum(row["correct"]) / len(row["correct"])
  assert tasks[1]["exemplars"] == [1] * 100
  epochs = runs.rows(workdir, "epoch")
  assert [row["distillation"] > 0 for row in epochs] == [False, True]
  assert all(np.isfinite(row["loss"]) for row in epochs)


def test_scenario_is_the_hundred_classes_by_wordnet_id(run):
  _, workdir, results = run
  saved = json.loads((workdir / "scenario.json").read_text())
  assert saved["dataset"] == "imagenet_subset" and len(saved["counts"]) == 100
  # Profile from 3 images to 1, and of each a class keeps those that are not held out.
  assert max(saved["profile"]) == 3 and min(saved["profile"]) == 1
  assert sum(saved["counts"]) + sum(saved["holdout_counts"]) == sum(saved["profile"])
  for name, ids in zip(saved["class_names"], saved["train_ids"]):
    assert ids and all(one.startswith(f"{name}_") for one in ids)
  assert saved["digest"] == results["scenario_digest"]


def test_evaluation_from_the_checkpoints_gives_the_runs_numbers(run, tmp_path):
  _, workdir, results = run
  assert runs.timeless(evaluate.evaluate(workdir)) == runs.timeless(results)
  first = evaluate.evaluate(workdir, task=1)
  assert first["accuracy_matrix"][0] == results["accuracy_matrix"][0]
  assert first["task_accuracies"] == [results["task_accuracies"][0], None]
  # Held-out pictures are stored larger than test pictures; they go through the same central crop.
  held = evaluate.evaluate(workdir, split="holdout")
  assert held["task"] == 2 and 0 <= held["accuracy"] <= 1
  with pytest.raises(UserError, match="not prepared"):
    evaluate.evaluate(workdir, data_dir=str(tmp_path))


def test_folders_named_from_here_are_found_from_elsewhere(run, tmp_path, monkeypatch):
  config, *_ = run
  config = config.copy_and_resolve_references()
  data = pathlib.Path(config.data_dir)
  config.data_dir, config.cache_dir = data.name, "cache of pictures"
  monkeypatch.chdir(data.parent)
  begun = experiment.load(config)
  write_start(tmp_path, begun)
  monkeypatch.chdir(tmp_path)
  saved = read_config(tmp_path)
  assert saved["cache_dir"] == str(data.parent / "cache of pictures")
  assert experiment.load(saved).scenario.digest == begun.scenario.digest
  # As it was given, where a config is compared or used again.
  assert config.data_dir == data.name


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("how", [
    lambda path: path.write_bytes(path.read_bytes() + b"\0"), lambda path: path.unlink()], ids=["changed", "removed"])
def test_going_on_with_other_pictures_is_refused(tmp_path, part, how):
  photographs.write(tmp_path / "photos", classes=2, per_class=8, test_per_class=3, sides=(40, 60))
  config = runs.get_config("folder_lt", **{"data_dir": str(tmp_path / "photos"), "scenario.num_tasks": 2})
  folder = tmp_path / "run"
  folder.mkdir()
  write_start(folder, experiment.load(config))
  (folder / "metrics.jsonl").write_text("{}\n")
  check_scenario(folder, experiment.load(config))
  # A copy is the same data, whenever it was made.
  shutil.copytree(tmp_path / "photos", tmp_path / "copy", copy_function=shutil.copyfile)
  config.data_dir = str(tmp_path / "copy")
  check_scenario(folder, experiment.load(config))
  how(sorted((tmp_path / "copy" / part).rglob("*.jpg"))[0])
  with pytest.raises(UserError, match="holds a run on other images .*the data set has changed"):
    check_scenario(folder, experiment.load(config))


def test_all_of_imagenet_is_all_of_it(tmp_path):
  builders.imagenet2012(tmp_path, per_class=1, test_per_class=1)
  config = runs.get_config("imagenet1000_lt", **{
      "data_dir": str(tmp_path), "scenario.kind": "conv", "scenario.num_tasks": 2,
      "scenario.first_task_classes": None})
  with pytest.raises(UserError, match="1281167 training images, but"):
    experiment.load(config)


def test_same_command_again_trains_nothing(run):
  config, workdir, results = run
  before = (workdir / "metrics.jsonl").read_bytes()
  assert train.train(config, workdir) == json.loads((workdir / "results.json").read_text())
  assert (workdir / "metrics.jsonl").read_bytes() == before
  assert runs.results(workdir)["last_accuracy"] == results["last_accuracy"]


def test_dry_run_of_food101(tmp_path):
  builders.food101(tmp_path, per_class=3, test_per_class=2)
  config = runs.get_config("food101_lt", **{
      "data_dir": str(tmp_path), "scenario.imbalance": 2.0, "validation_fraction": 0.0})
  loaded = experiment.load(config)
  counts = loaded.scenario.counts
  assert counts.sum() == sum(loaded.scenario.profile) and counts.max() == 3 and counts.min() == 1
  lines = console.dry_run_lines(loaded).splitlines()
  assert lines[0].startswith(f"food101: 101 classes in 6 tasks; {counts.sum()} images to train on, 0 held out")
  # Half and a bit, then tens.
  tasks = [line for line in lines if line.startswith("  task")]
  assert [line.split(":")[1].split(" classes")[0].strip() for line in tasks] == ["51"] + ["10"] * 5
  # 320 x 320 for a crop of 224 of each training picture; test pictures are cropped already.
  train_mebibytes, test_mebibytes = counts.sum() * 320**2 * 3 / 2**20, 202 * 224**2 * 3 / 2**20
  assert f"(train {train_mebibytes:.1f} MiB, test {test_mebibytes:.1f} MiB)" in lines[-2]
  assert "4: train (first task), train (with a teacher), evaluate, features" in lines[-3]
  # Where pictures travel, a device has a fourth of two calls: 13 steps of 128 at 320 pixels come to 512 MiB.
  for path, side, cached in (("prefetch", 320, train_mebibytes + test_mebibytes), ("stream", 224, test_mebibytes)):
    config.pictures = path
    steps = 2**29 // (128 * side**2 * 3)
    line = console.dry_run_lines(experiment.load(config)).splitlines()[-2]
    assert (f"pictures {2 * steps * 32 * side**2 * 3 / 2**20:.1f} MiB ({path}: two calls of {steps} steps), "
            f"cache on disk {cached:.1f} MiB") in line
