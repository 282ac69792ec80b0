"""What start.json tells of the starts of a run."""

import json
import types

import pytest

from gr_jax import origin
from gr_jax.errors import UserError
from gr_jax.runs import workdir


@pytest.fixture
def start(tmp_path, monkeypatch):
  """A function that starts a run at a commit and returns start.json; from the second time on the run has begun."""
  device = types.SimpleNamespace(platform="cpu")
  experiment = types.SimpleNamespace(devices=[device], precision="float32")

  def at(commit):
    monkeypatch.setattr(origin, "describe", lambda devices: entry(commit, len(devices)))
    workdir._write_origin(tmp_path, experiment)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    return json.loads((tmp_path / workdir.START).read_text())

  return at


def entry(commit, devices=1):
  return {"date": "2026-11-22", "versions": {"commit": commit}, "devices": f"{devices} x cpu"}


def test_every_start_that_differs_is_recorded(start):
  assert start("a") == {"precision": "float32", "platform": "cpu", "starts": [entry("a")]}
  assert start("a")["starts"] == [entry("a")]
  assert start("b")["starts"] == [entry("a"), entry("b")]
  assert start("a")["starts"] == [entry("a"), entry("b"), entry("a")]


def test_a_start_that_trained_nothing_leaves_nothing(start, tmp_path):
  start("a")
  (tmp_path / "metrics.jsonl").unlink()
  assert start("b")["starts"] == [entry("b")]


def test_replicas_have_begun_where_one_has(start, tmp_path):
  start("a")
  (tmp_path / "metrics.jsonl").unlink()
  (tmp_path / "seed-1").mkdir()
  (tmp_path / "seed-1" / "metrics.jsonl").write_text("{}\n")
  assert start("b")["starts"] == [entry("a"), entry("b")]


def test_a_damaged_file_is_refused(start, tmp_path):
  start("a")
  (tmp_path / workdir.START).write_text(json.dumps({"precision": "float32", "starts": None}))
  with pytest.raises(UserError, match="starts that are no list.*restore"):
    start("b")


def test_runs_of_earlier_versions(start, tmp_path):
  start("a")
  earlier = {"precision": "bfloat16", "platform": "cpu", "versions": {"jax": "0.10"}}
  (tmp_path / workdir.START).write_text(json.dumps(earlier))
  assert start("b") == {**earlier, "starts": [entry("b")]}
  # What `auto` stood for is not known of a run that has none.
  (tmp_path / workdir.START).unlink()
  with pytest.raises(FileNotFoundError):
    start("c")
