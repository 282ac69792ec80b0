"""The benchmark runs to its end and its figures hang together; how fast anything is, no test says."""

import functools
import json
import os

import jax
import photographs
import pytest
import runs

from gr_jax import benchmark
from gr_jax import config as configuration
from gr_jax.benchmarking import steps as timings
from gr_jax.benchmarking import table
from gr_jax.training import experiment, pictures


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  """The short form, which is the default, on pictures of mixed sizes: (report, folder of the pictures)."""
  folder = tmp_path_factory.mktemp("mixed") / "photos"
  photographs.write(folder, classes=4, per_class=20, test_per_class=2, sides=(40, 90))
  config = configuration.check(runs.get_config("folder_lt", **{
      "data_dir": str(folder), "image_size": 32, "stored_size": 37, "model": "resnet8", "batch_size": 8,
      "scenario.num_tasks": 2, "evaluation_block": 8}))
  return timings.measure(config, calls=1, steps=1, replicas=0, long=False), folder


@pytest.fixture(scope="module")
def long():
  config = configuration.check(runs.get_config("digits_lt", **{"scenario.num_tasks": 3, "evaluation_block": 50}))
  return timings.measure(config, calls=1, steps=1, replicas=2, long=True)


def assert_figures(report, batch_size):
  for row in report["programs"].values():
    assert row["compile_seconds"] > 0 and row["step"]["fastest"] <= row["step"]["median"] <= row["step"]["slowest"]
    assert row["images_per_second"] == pytest.approx(batch_size / row["step"]["median"])
    assert row["flops_per_step"] > 0 and row["bytes_per_step"] > 0
  for name in ("evaluation_images_per_second", "feature_images_per_second", "herding_images_per_second",
               "import_seconds", "first_step_seconds", "peak_host_bytes"):
    assert report[name] > 0
  flops = {name: row["flops_per_step"] for name, row in report["programs"].items()}
  # The teacher and the distillation are really left out: a third of a forward and backward pass.
  assert 1.15 < flops["task 2"] / flops["base task"] < 1.5
  # Nothing grows from task to task.
  assert flops.get("task 3", flops["task 2"]) == flops["task 2"]


def assert_parts(report):
  """What only the long form has."""
  assert {"augmentation", "teacher", "reweighting", "distillation and teacher"} < set(report["without"])
  assert set(report["shares"]) == set(report["without"])
  assert set(report["replicas"]) == {"one after another", "threads", "vectorised", "branches"}


def test_every_figure_is_there(measured):
  report, _ = measured
  assert set(report["programs"]) == {"base task", "task 2"}
  assert_figures(report, 8)


def test_parts_and_replicas_are_programs(monkeypatch):
  """The ablations and the forms of replicas are traced with their arguments, and neither compiled nor timed."""
  loaded = experiment.load(runs.short())
  bench = timings.Bench(loaded, pictures.load(loaded, "train", lambda items, **_: items), loaded.plans[1].stages[0],
                        calls=1, steps=1)
  traced = []

  def trace(self, run, arguments):
    traced.append(jax.eval_shape(run, *arguments))
    return timings.Timing(1.0, 1.0, 1.0)

  monkeypatch.setattr(timings.Bench, "time", trace)
  monkeypatch.setattr(timings.Bench, "arguments", functools.lru_cache(lambda self, teacher=True, of=(
      timings.Bench.arguments): of(self, teacher=teacher)))
  monkeypatch.setattr(timings.Bench, "__hash__", object.__hash__)
  monkeypatch.setattr(timings, "repeat", lambda call, calls: timings.Timing(1.0, 1.0, 1.0))
  report = timings._taken_apart(bench, {"median": 2.0})
  assert set(report["shares"].values()) == {0.5}
  assert_parts({**report, "replicas": timings.replica_forms(bench, 2)})
  # Those without a part, and two forms of replicas.
  assert len(traced) == len(report["without"]) + 2


@pytest.mark.slow
def test_every_figure_of_the_long_form(long, tmp_path, capsys):
  assert set(long["programs"]) == {"base task", "task 2", "task 3"}
  assert_figures(long, 32)
  assert_parts({**long, "replicas": {name: row for name, row in long["replicas"].items() if name != "count"}})
  benchmark.write(long, str(tmp_path / "report.json"))
  out = capsys.readouterr().out
  assert "| base task |" in out and "the method's own cost" in out and "2 replicas on one device" in out


def test_table_and_file(measured, tmp_path, capsys):
  report, _ = measured
  benchmark.write(report, str(tmp_path / "report.json"))
  assert "| base task |" in capsys.readouterr().out
  assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))


def test_the_flags_are_those_of_training(tmp_path):
  """An optional key can be unset, and what is wrong is answered before anything is timed."""
  done = runs.run("benchmark", "--config=configs/cifar100_lt.py", "--config.scenario.first_task_classes=None",
                  f"--config.data_dir={tmp_path}")
  assert done.returncode == 2 and "cifar100 is not prepared" in done.stderr
  done = runs.run("benchmark")
  assert done.returncode == 2 and "--config is missing" in done.stderr


def test_pictures_of_mixed_sizes_on_their_way(measured):
  report, folder = measured
  rows = report["pictures"]
  # Each class holds a tenth out.
  assert rows["decoded"] == 4 * 18 + 4 * 2
  assert rows["decoded_per_core"] == pytest.approx(80 / rows["cold_seconds"] / len(os.sched_getaffinity(0)))
  assert rows["pillow_per_core"] > 0 and rows["cached_per_second"] > 0
  assert rows["cache_bytes"] >= 72 * 37 * 37 * 3 + 8 * 32 * 32 * 3
  assert set(rows["paths"]) == {"resident", "prefetch", "stream"}
  assert all(value > 0 for row in rows["paths"].values() for value in row.values())
  # Which of them is longer, with so few pictures, depends on what else the machine does.
  assert rows["first_step_without_cache_seconds"] - report["first_step_seconds"] == pytest.approx(
      rows["cold_seconds"] - rows["warm_seconds"])
  text = table.markdown(json.loads(json.dumps(report)))
  assert "Pillow only" in text and "| stream |" in text and "step of task 2 without" not in text
  # Its own cache is gone, and nothing has been put into the user's.
  assert not list((folder / "gr_jax_cache").iterdir())
