"""Resident, prefetched and streamed pictures: the same rows, boxes and results; what is chosen, what is refused."""

import functools
import json
import os
import subprocess
import sys

import builders
import jax
import jax.numpy as jnp
import numpy as np
import photographs
import pytest
import runs
import tiny

from gr_jax import evaluate, methods, models, scenario, train
from gr_jax.data import feed, order
from gr_jax.data.arrays import Data
from gr_jax.data.sources import tfds_source
from gr_jax.devices import container, parallel
from gr_jax.errors import UserError
from gr_jax.scenario import plan
from gr_jax.training import experiment, programs

PATHS = ("resident", "prefetch", "stream")
SIDE = 37
WNIDS = tfds_source.imagenet_subset_wnids()
# Four classes in two tasks, an epoch each. At the protocol's rate of 0.1 the first steps blow a grey level of
# difference up.
TINY = {"image_size": 32, "stored_size": SIDE, "model": "resnet8", "epochs": 1, "milestones": (), "batch_size": 8,
        "learning_rate": 1e-3, "scenario.kind": "lt", "scenario.imbalance": 2.0, "scenario.num_tasks": 2,
        "scenario.first_task_classes": None, "memory.per_class": 2, "validation_fraction": 0.0, "evaluation_block": 8,
        "steps_per_call": 2, "worker_timeout": 120.0}


def folder_of_files(folder, *, classes, **numbers):
  photographs.write(folder, classes=classes, **numbers)
  return "folder_lt"


def prepared_by_tfds(folder, *, classes, **numbers):
  builders.imagenet2012(folder, wnids=sorted(WNIDS[:classes]), **numbers)
  return "imagenet1000_lt"


FORMS = pytest.mark.parametrize("write", [folder_of_files, prepared_by_tfds])


def losses(workdir):
  return [row["loss"] for row in runs.rows(workdir, "epoch")]


def assert_same_to_the_bit(one, other):
  assert losses(one) == losses(other)
  # Digests of every array of every checkpoint, and the exemplars.
  assert runs.records(one) == runs.records(other)
  assert runs.results(one)["accuracy_matrix"] == runs.results(other)["accuracy_matrix"]


# With TFDS's form, whose files are harder to read, in every run of the tests.
@pytest.mark.parametrize("write", [pytest.param(folder_of_files, marks=pytest.mark.slow), prepared_by_tfds])
def test_three_paths_learn_the_same(write, tmp_path, monkeypatch):
  """Every original has just the stored size, so that streamed views differ by Pillow's rounding alone."""
  monkeypatch.setattr(models, "make_backbone", lambda name, **options: tiny.PixelBackbone())
  name = write(tmp_path / "data", classes=4, per_class=16, test_per_class=3, sides=(SIDE, SIDE))
  for path in PATHS:
    train.train(runs.get_config(name, **TINY, data_dir=str(tmp_path / "data"), pictures=path), tmp_path / path)
  assert_same_to_the_bit(tmp_path / "prefetch", tmp_path / "resident")
  # The same boxes: other views would move the first epoch's loss by far more. Rounding may change an exemplar.
  streamed, resident = losses(tmp_path / "stream"), losses(tmp_path / "resident")
  np.testing.assert_allclose(streamed[0], resident[0], rtol=2e-3)
  np.testing.assert_allclose(streamed[1:], resident[1:], rtol=5e-2)
  for path in PATHS:
    results = runs.results(tmp_path / path)
    assert results["tasks_done"] == 2
    assert runs.timeless(evaluate.evaluate(tmp_path / path)) == runs.timeless(results)


@pytest.mark.slow
@FORMS
def test_resnet18_at_224_pixels_on_thousands_of_pictures(write, tmp_path):
  """From 3,200 files of mixed sizes to a result, as a user starts it, on one CPU device."""
  name = write(tmp_path / "data", classes=20, per_class=150, test_per_class=10, sides=(120, 400))
  for path in PATHS:
    done = runs.run(
        "main", f"--config=configs/{name}.py", f"--config.data_dir={tmp_path / 'data'}", f"--config.pictures={path}",
        f"--workdir={tmp_path / path}", "--config.scenario.kind=lt", "--config.scenario.imbalance=100",
        "--config.scenario.num_tasks=2", "--config.scenario.first_task_classes=None", "--config.epochs=1",
        "--config.milestones=1", "--config.batch_size=16", "--config.learning_rate=0.001",
        f"--config.cache_dir={tmp_path / 'cache'}", timeout=3000)
    assert done.returncode == 0 and f"pictures: {path}, as set in the config" in done.stdout, done.stderr
    assert "Warning" not in done.stderr, done.stderr
  assert_same_to_the_bit(tmp_path / "prefetch", tmp_path / "resident")
  np.testing.assert_allclose(losses(tmp_path / "stream"), losses(tmp_path / "resident"), rtol=2e-2)
  # Once for all three: training pictures, their sizes, and test pictures.
  assert len(list((tmp_path / "cache").glob("*/record.json"))) == 3
  for path in PATHS:
    done = runs.run("evaluate", f"--workdir={tmp_path / path}", timeout=1000)
    assert done.returncode == 0 and "per-class counts are equal to those of the run" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_host_memory_stays_flat_over_ten_tasks(path, tmp_path):
  photographs.write(tmp_path / "data", classes=20, per_class=40, test_per_class=4, sides=(60, 120))
  done = subprocess.run(
      [sys.executable, "tests/host_memory.py", "--config=configs/folder_lt.py",
       f"--config.data_dir={tmp_path / 'data'}", f"--config.pictures={path}", f"--workdir={tmp_path / 'run'}",
       "--config.model=resnet8", "--config.image_size=64", "--config.stored_size=92",
       "--config.scenario.num_tasks=10", "--config.epochs=2", "--config.milestones=1",
       "--config.batch_size=16", "--config.learning_rate=0.001"],
      # One arena of the allocator: several keep what threads have freed, which hides a leak of a few megabytes a task.
      cwd=runs.ROOT, env=runs.environment(MALLOC_ARENA_MAX="1"), text=True, capture_output=True, timeout=1200,
      check=True)
  anonymous = [json.loads(line)["RssAnon"] for line in done.stdout.splitlines() if line.startswith("{")]
  assert len(anonymous) == 10
  # The second task compiles the program with a teacher; from the third on everything is there. A batch on its way may
  # be in one of the readings.
  assert min(anonymous[-3:]) - anonymous[2] < 10 * 2**20, anonymous


def test_digits_prefetched_equal_resident_ones_to_the_bit(tmp_path):
  for path in ("resident", "prefetch"):
    train.train(runs.short(pictures=path, stop_after_task=1), tmp_path / path)
  assert runs.records(tmp_path / "prefetch") == runs.records(tmp_path / "resident")


def test_resident_where_the_pictures_fit():
  assert feed.choose("auto", 599, 1000)[0] == "resident"
  path, line = feed.choose("auto", 601 * 10**6, 10**9)
  assert path == "prefetch" and "0.60 GB of pictures, 1.00 GB free" in line
  assert feed.choose("stream", 1, 10)[0] == "stream"
  assert 0 < feed.free_bytes(jax.local_devices()[0]) < 2**50


class Cpu:
  """A device that tells nothing of its memory."""

  def memory_stats(self):
    return None


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """A machine without the files of Linux, with two CPU devices."""
  monkeypatch.setattr(feed, "MEMINFO", tmp_path / "meminfo")
  monkeypatch.setattr(container, "PROCESS", tmp_path / "self")
  monkeypatch.setattr(jax, "local_device_count", lambda: 2)
  return tmp_path


@pytest.mark.parametrize("limit, free", [(None, 4096000), (10**9, 4096000), (600, 300), (0, 0)])
def test_memory_that_the_container_leaves(machine, monkeypatch, limit, free):
  (machine / "meminfo").write_text("MemTotal:      16000 kB\nMemFree:         100 kB\nMemAvailable:    8000 kB\n")
  monkeypatch.setattr(container, "free_memory", lambda: limit)
  assert feed.free_bytes(Cpu()) == free


@pytest.mark.parametrize("content", [None, "MemTotal:      16000 kB\n"])
def test_half_of_the_memory_where_only_the_whole_is_known(machine, monkeypatch, content):
  """As on macOS."""
  if content is not None:
    (machine / "meminfo").write_text(content)
  monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
  assert feed.free_bytes(Cpu()) == 1000 * 4096 // 2 // 2
  monkeypatch.setattr(container, "free_memory", lambda: 600)
  assert feed.free_bytes(Cpu()) == 300


def no_such_name(name):
  raise ValueError("unrecognized configuration name")


@pytest.mark.parametrize("sysconf", [None, no_such_name, lambda name: -1])
def test_prefetched_where_no_memory_is_known(machine, monkeypatch, sysconf):
  """Without sysconf as on Windows, or with one that does not tell."""
  if sysconf is None:
    monkeypatch.delattr(os, "sysconf")
  else:
    monkeypatch.setattr(os, "sysconf", sysconf)
  free = feed.free_bytes(Cpu())
  assert free == feed.UNKNOWN
  path, line = feed.choose("auto", 10**9, free)
  assert path == "prefetch" and "1.00 GB of pictures, free memory not known; " in line
  assert feed.choose("resident", 10**9, free)[0] == "resident"


def test_calls_are_short_where_pictures_travel():
  assert feed.steps_together(100, 2**27) == 4
  assert feed.steps_together(3, 2**27) == 3
  assert feed.steps_together(100, 2**40) == 1


@pytest.mark.parametrize("changes, words", [
    ({"pictures": "stream"}, "pictures is 'stream', but the pictures of digits are small and all of one size"),
    ({"pictures": "prefetch", "replicas": 2}, "pictures is 'prefetch', but 2 replicas")])
def test_refusals(changes, words):
  with pytest.raises(UserError, match=words):
    experiment.load(runs.short(**changes))


def test_transferred_pictures_are_those_that_the_sampler_picks():
  """SS-IL's batches, over two devices and two epochs; the label of a picture is its row."""
  counts, devices, root = np.asarray([3, 2, 20, 7]), jax.devices()[:2], jax.random.key(5)
  method = methods.make("ssil", {}, memory=20)
  stage = plan.make_plans(counts, (scenario.Task(0, 2), scenario.Task(2, 4)), method, epochs=2, batch_size=8,
                          per_class=2)[1].stages[0]
  rows = np.r_[0, 2, 3, 4, 5:32]
  data = Data(np.zeros((32, 1, 1, 1), np.uint8), np.ones((32, 2), np.int32), np.arange(32, dtype=np.int32))
  pool = programs.pool(rows, 40)
  fed = feed.travelling(feed.gather(data, functools.partial(parallel.shares, devices)), steps=3, devices=devices,
                        samplers=[stage.sampler for stage in method.stages])
  sampler, taken = method.stages[1].sampler, []
  for chunk, inputs in fed(stage, pool, root, plan.chunks(stage, steps_per_call=3)):
    steps = chunk.stop - chunk.first
    epoch = order.epoch_of(sampler, pool, root, stage.context, stage.index, chunk.epoch)
    expected = sampler.pick(epoch, jnp.arange(chunk.first * 10, chunk.stop * 10)).reshape(steps, 2, 5)
    transferred = np.asarray(inputs.data.labels)[:, :5 * steps].reshape(2, steps, 5).swapaxes(0, 1)
    np.testing.assert_array_equal(transferred, expected)
    # Each device has four new images and one exemplar.
    assert ((transferred < 5).sum(axis=-1) == 1).all()
    taken += transferred.reshape(-1).tolist()
  assert set(taken) == set(rows)
