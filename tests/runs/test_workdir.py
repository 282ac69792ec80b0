"""What start.json tells of the starts of a run."""

import json
import types

import pytest
import runs

from gr_jax import config as configuration
from gr_jax import origin
from gr_jax.errors import UserError
from gr_jax.runs import replicas, workdir


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


@pytest.fixture
def two_replicas(tmp_path):
  """A function that saves the config of a run of seeds 3 and 4, the second of which has begun with `changes`."""
  def save(**changes):
    member = replicas.member_folder(tmp_path, checked(replicas=2, seed=3), 1)
    member.mkdir()
    for folder, config in ((tmp_path, checked(replicas=2, seed=3)), (member, checked(seed=4, **changes))):
      (folder / "config.json").write_text(json.dumps(configuration.to_dict(config)))
      (folder / workdir.START).write_text(json.dumps({"precision": "float32"}))
    (member / "metrics.jsonl").write_text("{}\n")
  return save


def checked(**changes):
  return configuration.check(runs.short(**changes))


@pytest.mark.parametrize("changes, line", [
    ({"learning_rate": 0.5, "replicas": 2}, "learning_rate: 0.1 -> 0.5"),
    ({"method": "lwf", "replicas": 3}, "method: 'gr' -> 'lwf'"), ({"replicas": 1}, "replicas: 2 -> 1")])
def test_a_folder_of_replicas_belongs_to_their_config(two_replicas, tmp_path, changes, line):
  two_replicas()
  with pytest.raises(UserError, match=f"another config:(.|\n)*{line}"):
    replicas.check_configs(tmp_path, checked(seed=3, **changes))


def test_replicas_may_join_others(two_replicas, tmp_path):
  two_replicas()
  for seed, count in ((3, 2), (3, 4), (2, 3)):
    replicas.check_configs(tmp_path, checked(seed=seed, replicas=count))


def test_runs_that_were_alone_do_not_decide_for_replicas(two_replicas, tmp_path):
  """gr_jax.compare starts a seed alone, in another precision, and later ones together: without a start.json here."""
  two_replicas()
  (tmp_path / workdir.START).unlink()
  alone = tmp_path / "seed-0"
  alone.mkdir()
  (alone / "metrics.jsonl").write_text("{}\n")
  for precision in ("auto", "float32"):
    workdir.check_config(tmp_path, checked(seed=3, replicas=2, precision=precision))
  # None of those that config.json names has begun.
  (tmp_path / "seed-4" / "metrics.jsonl").unlink()
  workdir.check_config(tmp_path, checked(seed=3, replicas=2, learning_rate=0.5))


def test_one_replica_with_another_config_stops_all(two_replicas, tmp_path):
  two_replicas(weight_decay=0.5)
  with pytest.raises(UserError, match="seed-4 holds a run with another config:(.|\n)*weight_decay: 0.5 -> "):
    replicas.check_configs(tmp_path, checked(seed=3, replicas=2))


def test_gradient_reweighting_of_earlier_versions_had_a_linear_head(tmp_path):
  content = configuration.to_dict(checked())
  del content["method_options"]["head"]
  (tmp_path / "config.json").write_text(json.dumps(content))
  (tmp_path / "metrics.jsonl").write_text("{}\n")
  workdir.check_config(tmp_path, checked())
  with pytest.raises(UserError, match="method_options.head: 'linear' -> 'cosine'"):
    workdir.check_config(tmp_path, checked(**{"method_options.head": "cosine"}))


def test_runs_with_gvalign_of_earlier_versions_measured_plain_images(tmp_path):
  content = configuration.to_dict(checked(method="lucir", addons="gvalign"))
  del content["method_options"]["gvalign_statistics"]
  (tmp_path / "config.json").write_text(json.dumps(content))
  assert workdir.read_config(tmp_path)["method_options"]["gvalign_statistics"] == "plain"
  (tmp_path / "config.json").write_text(json.dumps(configuration.to_dict(checked(method="lucir"))))
  assert "gvalign_statistics" not in workdir.read_config(tmp_path)["method_options"]
