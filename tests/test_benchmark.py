"""The benchmark runs to its end and its figures hang together; how fast anything is, no test says."""

import json
import os

import photographs
import pytest
import runs

from gr_jax import benchmark
from gr_jax.benchmarking import steps as timings
from gr_jax.benchmarking import table


@pytest.fixture(scope="module")
def report():
  return timings.measure(runs.get_config(
      "digits_lt", **{"scenario.num_tasks": 3, "evaluation_block": 50}), calls=1, steps=1, replicas=2, long=True)


def test_every_figure_is_there(report):
  assert set(report["programs"]) == {"base task", "task 2", "task 3"}
  for row in report["programs"].values():
    assert row["compile_seconds"] > 0 and row["step"]["fastest"] <= row["step"]["median"] <= row["step"]["slowest"]
    assert row["images_per_second"] == pytest.approx(32 / row["step"]["median"])
    assert row["flops_per_step"] > 0 and row["bytes_per_step"] > 0
  assert {"augmentation", "teacher", "reweighting", "distillation and teacher"} < set(report["without"])
  assert set(report["shares"]) == set(report["without"])
  assert set(report["replicas"]) == {"count", "one after another", "threads", "vectorised", "branches"}
  for name in ("evaluation_images_per_second", "feature_images_per_second", "herding_images_per_second",
               "import_seconds", "first_step_seconds", "peak_host_bytes"):
    assert report[name] > 0
  json.dumps(report)


def test_the_teacher_and_the_distillation_are_really_left_out(report):
  flops = {name: row["flops_per_step"] for name, row in report["programs"].items()}
  # A third of a forward and backward pass: the teacher's own forward pass.
  assert 1.15 < flops["task 2"] / flops["base task"] < 1.5
  # Nothing grows from task to task.
  assert flops["task 3"] == flops["task 2"]


def test_table_and_file(report, tmp_path, capsys):
  benchmark.write(report, str(tmp_path / "report.json"))
  out = capsys.readouterr().out
  assert "| base task |" in out and "the method's own cost" in out and "2 replicas on one device" in out
  assert json.loads((tmp_path / "report.json").read_text())["programs"].keys() == report["programs"].keys()


def test_the_flags_are_those_of_training(tmp_path):
  """An optional key can be unset, and what is wrong is answered before anything is timed."""
  done = runs.run("benchmark", "--config=configs/cifar100_lt.py", "--config.scenario.first_task_classes=None",
                  f"--config.data_dir={tmp_path}")
  assert done.returncode == 2 and "cifar100 is not prepared" in done.stderr
  done = runs.run("benchmark")
  assert done.returncode == 2 and "--config is missing" in done.stderr


def test_pictures_of_mixed_sizes_on_their_way(tmp_path):
  photographs.write(tmp_path / "photos", classes=4, per_class=20, test_per_class=2, sides=(40, 90))
  found = timings.measure(runs.get_config("folder_lt", **{
      "data_dir": str(tmp_path / "photos"), "image_size": 32, "stored_size": 37, "model": "resnet8", "batch_size": 8,
      "scenario.num_tasks": 2, "evaluation_block": 8}), calls=1, steps=1, replicas=0, long=False)
  rows = found["pictures"]
  # Each class holds a tenth out.
  assert rows["decoded"] == 4 * 18 + 4 * 2
  assert rows["decoded_per_core"] == pytest.approx(80 / rows["cold_seconds"] / len(os.sched_getaffinity(0)))
  assert rows["pillow_per_core"] > 0 and rows["cached_per_second"] > 0
  assert rows["cache_bytes"] >= 72 * 37 * 37 * 3 + 8 * 32 * 32 * 3
  assert set(rows["paths"]) == {"resident", "prefetch", "stream"}
  assert all(value > 0 for row in rows["paths"].values() for value in row.values())
  assert found["first_step_seconds"] < rows["first_step_without_cache_seconds"]
  text = table.markdown(json.loads(json.dumps(found)))
  assert "Pillow only" in text and "| stream |" in text
  # The short form, which is the default.
  assert set(found["programs"]) == {"base task", "task 2"} and "step of task 2 without" not in text
  # Its own cache is gone, and nothing has been put into the user's.
  assert not list((tmp_path / "photos" / "gr_jax_cache").iterdir())
