"""The check of a comparison's configs, in its own process: what cannot be run, and finished runs on other images."""

import json

import pytest
import runs

from gr_jax import config as configuration
from gr_jax.comparing import probe
from gr_jax.errors import UserError
from gr_jax.runs import workdir
from gr_jax.training import experiment as experiments

CONFIG = configuration.check(runs.short())


@pytest.fixture(scope="module")
def loaded():
  return experiments.load(CONFIG)


@pytest.fixture
def finished(loaded, tmp_path):
  """The folder of a run that has begun."""
  workdir.write_start(tmp_path, loaded)
  (tmp_path / "metrics.jsonl").write_text("{}\n")
  return tmp_path


def test_steps_and_platforms(finished, loaded):
  """Settings that were chosen are those of the folder, not of the command."""
  other = configuration.check(runs.short(validation_fraction=0.3))
  report = probe.probe({"gr, seed 0": CONFIG}, {"wa, seed 0": (finished, other)})
  assert report.steps == {"gr, seed 0": loaded.plans[-1].stop_step}
  assert set(report.platforms) == {"cpu"} and report.resident


@pytest.mark.parametrize("key", ["digest", "pictures_digest"])
def test_finished_runs_on_other_images_are_refused(finished, key):
  content = json.loads((finished / "scenario.json").read_text())
  (finished / "scenario.json").write_text(json.dumps({**content, key: "0" * 64}))
  with pytest.raises(UserError, match=rf"wa, seed 0: {finished} holds a run on other images \({key} 0000"):
    probe.probe({}, {"wa, seed 0": (finished, CONFIG)})


def test_a_config_that_cannot_be_run_is_named():
  large = configuration.check(runs.short(**{"scenario.num_tasks": 2, "scenario.first_task_classes": 30}))
  with pytest.raises(UserError, match="^gr, seed 0: .*30"):
    probe.probe({"gr, seed 0": large}, {})
