"""Precisions: what they are on each platform, and that only the backbone computes in bfloat16."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from gr_jax import evaluate, models, train
from gr_jax.devices import convolution_library, processor
from gr_jax.errors import UserError
from gr_jax.models import convolution
from gr_jax.runs import restored


@pytest.mark.parametrize("fast", [False, True])
def test_auto_by_platform(monkeypatch, fast):
  """On a CPU by its processor and convolution library."""
  monkeypatch.setattr(convolution_library, "fast_in_bfloat16", lambda: fast)
  assert models.resolve_precision("auto", "cpu") == ("mixed" if fast else "float32")
  assert models.resolve_precision("auto", "gpu") == "tf32"
  assert models.resolve_precision("auto", "tpu") == "float32"
  for precision in ("float32", "bfloat16", "mixed"):
    assert models.resolve_precision(precision, "cpu") == precision
  with pytest.raises(UserError, match="only NVIDIA GPUs support, but the devices are cpu"):
    models.make_backbone("resnet8", platform="cpu", precision="tf32")


def test_what_the_model_asks_of_xla():
  asked = {p: models.make_backbone("resnet8", platform="gpu", precision=p) for p in ("float32", "tf32", "bfloat16")}
  assert asked["float32"].precision == jax.lax.Precision.HIGHEST
  assert asked["tf32"].precision == jax.lax.Precision.DEFAULT
  assert [asked[p].dtype for p in asked] == [jnp.float32, jnp.float32, jnp.bfloat16]


@pytest.mark.parametrize("flags, library, expected", [
    ("fma avx2 amx_bf16", "oneDNN", True), ("avx512_bf16", "oneDNN", True), ("avx512_bf16", "XLA", False),
    ("avx512f avx512_bf", "oneDNN", False)])
def test_fast_in_bfloat16_by_processor_and_library(monkeypatch, tmp_path, flags, library, expected):
  (tmp_path / "cpuinfo").write_text(f"model name\t: A Processor\nflags\t\t: {flags}\n")
  monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
  monkeypatch.setattr(convolution_library, "in_use", lambda: library)
  convolution_library.fast_in_bfloat16.cache_clear()
  assert convolution_library.fast_in_bfloat16() == expected
  convolution_library.fast_in_bfloat16.cache_clear()
  monkeypatch.setattr(processor, "CPUINFO", tmp_path / "elsewhere")
  assert not convolution_library.fast_in_bfloat16()
  convolution_library.fast_in_bfloat16.cache_clear()


def test_bfloat16_keeps_parameters_statistics_and_features_in_float32():
  x = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
  outputs = {}
  for precision in ("float32", "bfloat16", "mixed"):
    model = models.make_backbone("resnet8", platform="cpu", precision=precision, maps=True)
    variables = model.init(jax.random.key(1), x, train=False)
    (features, maps), updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype("float32")}
    assert features.dtype == jnp.float32
    assert maps[0].dtype == (jnp.float32 if precision == "float32" else jnp.bfloat16)
    outputs[precision] = np.asarray(features)
  # Mixed differs in a gradient alone.
  np.testing.assert_array_equal(outputs["mixed"], outputs["bfloat16"])
  error = np.linalg.norm(outputs["float32"] - outputs["bfloat16"]) / np.linalg.norm(outputs["float32"])
  assert 1e-4 < error < 5e-2


def test_a_mixed_run_learns_and_goes_on_bit_equal(tmp_path):
  results = train.train(runs.short(precision="mixed", stop_after_task=2), tmp_path / "whole")
  assert results["precision"] == "mixed" and results["task_accuracies"][0] > 0.4
  for tasks in (1, 2):
    train.train(runs.short(precision="mixed", stop_after_task=tasks), tmp_path / "cut")
  digests = [runs.newest(tmp_path / name)[1]["digests"] for name in ("whole", "cut")]
  assert digests[0] == digests[1] and digests[0]["model"]


def test_mixed_alone_has_wide_gradients():
  """On a CPU; a GPU adds in float32 anyway."""
  of = lambda precision, platform: models.make_backbone("resnet8", platform=platform, precision=precision).convolution
  assert of("mixed", "cpu").func is convolution.canonical_convolution
  assert of("mixed", "cpu").keywords == {"wide_gradients": True}
  assert of("bfloat16", "cpu") is of("float32", "cpu") is convolution.canonical_convolution
  assert of("mixed", "gpu") is jax.lax.conv_general_dilated


@pytest.mark.parametrize("config, start, expected", [
    ("auto", "mixed", "mixed"), ("auto", "float32", "float32"), ("auto", None, "float32"), ("auto", "tf32", "float32"),
    ("bfloat16", "bfloat16", "bfloat16")])
@pytest.mark.parametrize("fast", [False, True])
def test_a_run_is_read_in_the_precision_of_its_training(tmp_path, monkeypatch, config, start, expected, fast):
  """Whatever "auto" means where it is read; TF32 is float32 without a GPU."""
  monkeypatch.setattr(convolution_library, "fast_in_bfloat16", lambda: fast)
  (tmp_path / "config.json").write_text(runs.short(precision=config).to_json())
  if start is not None:
    (tmp_path / "start.json").write_text(json.dumps({"precision": start}))
  assert restored.read_config(tmp_path).precision == expected


def test_what_auto_stood_for_is_saved_and_kept(tmp_path, monkeypatch):
  """A restart where "auto" stands for another precision is refused, naming both; the run's own precision is taken."""
  monkeypatch.setattr(convolution_library, "fast_in_bfloat16", lambda: False)
  begun = train.train(runs.short(stop_after_task=1, precision="auto"), tmp_path / "run")
  start = json.loads((tmp_path / "run" / "start.json").read_text())
  assert (start["precision"], start["platform"]) == ("float32", "cpu") == (begun["precision"], "cpu")
  first, = start["starts"]
  assert first["versions"] == begun["versions"] and first["versions"]["convolutions"] in ("oneDNN", "XLA")
  monkeypatch.setattr(convolution_library, "fast_in_bfloat16", lambda: True)
  # A finished run is left as it is.
  assert train.train(runs.short(stop_after_task=1, precision="auto"), tmp_path / "run")["precision"] == "float32"
  with pytest.raises(UserError, match="another config:\n  precision: 'float32' -> 'mixed'\n.*precision=float32$"):
    train.train(runs.short(stop_after_task=2, precision="auto"), tmp_path / "run")
  # And it is evaluated in the precision in which it was trained.
  assert evaluate.evaluate(tmp_path / "run")["precision"] == "float32"
  resumed = train.train(runs.short(stop_after_task=2, precision="float32"), tmp_path / "run")
  assert resumed["tasks_done"] == 2 and resumed["precision"] == "float32"
