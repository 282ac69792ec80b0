"""Precisions: what they are on each platform, and that only the backbone computes in bfloat16."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from gr_jax import models, train
from gr_jax.errors import UserError


def test_auto_by_platform():
  assert models.resolve_precision("auto", "cpu") == "float32"
  assert models.resolve_precision("auto", "gpu") == "tf32"
  for precision in ("float32", "bfloat16"):
    assert models.resolve_precision(precision, "cpu") == precision
  with pytest.raises(UserError, match="only NVIDIA GPUs support, but the devices are cpu"):
    models.make_backbone("resnet8", platform="cpu", precision="tf32")


def test_what_the_model_asks_of_xla():
  asked = {p: models.make_backbone("resnet8", platform="gpu", precision=p) for p in ("float32", "tf32", "bfloat16")}
  assert asked["float32"].precision == jax.lax.Precision.HIGHEST
  assert asked["tf32"].precision == jax.lax.Precision.DEFAULT
  assert [asked[p].dtype for p in asked] == [jnp.float32, jnp.float32, jnp.bfloat16]


def test_bfloat16_keeps_parameters_statistics_and_features_in_float32():
  x = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
  outputs = {}
  for precision in ("float32", "bfloat16"):
    model = models.make_backbone("resnet8", platform="cpu", precision=precision, maps=True)
    variables = model.init(jax.random.key(1), x, train=False)
    (features, maps), updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype("float32")}
    assert features.dtype == jnp.float32
    assert maps[0].dtype == (jnp.bfloat16 if precision == "bfloat16" else jnp.float32)
    outputs[precision] = np.asarray(features)
  error = np.linalg.norm(outputs["float32"] - outputs["bfloat16"]) / np.linalg.norm(outputs["float32"])
  assert 1e-4 < error < 5e-2


def test_a_bfloat16_run_is_saved_and_learns(tmp_path):
  results = train.train(runs.short(precision="bfloat16", stop_after_task=1), tmp_path / "run")
  assert results["precision"] == "bfloat16" and results["task_accuracies"][0] > 0.4
  digests = runs.newest(tmp_path / "run")[1]["digests"]
  assert digests["model"]


def test_what_auto_stood_for_is_saved_and_kept(tmp_path, monkeypatch):
  """A restart where "auto" stands for another precision is refused, naming both; the run's own precision is taken."""
  begun = train.train(runs.short(stop_after_task=1), tmp_path / "run")
  start = json.loads((tmp_path / "run" / "start.json").read_text())
  assert (start["precision"], start["platform"]) == ("float32", "cpu") == (begun["precision"], "cpu")
  assert start["versions"] == begun["versions"] and start["versions"]["convolutions"] in ("oneDNN", "XLA")
  monkeypatch.setitem(models.AUTO_PRECISION, "cpu", "bfloat16")
  with pytest.raises(UserError, match="another config:\n  precision: 'float32' -> 'bfloat16'\n"):
    train.train(runs.short(stop_after_task=2), tmp_path / "run")
  resumed = train.train(runs.short(stop_after_task=2, precision="float32"), tmp_path / "run")
  assert resumed["tasks_done"] == 2 and resumed["precision"] == "float32"
