"""The exemplars that a run keeps, by each rule and size, and what results.json says of its memory."""

import dataclasses

import jax
import numpy as np
import pytest
import runs

from gr_jax import memory
from gr_jax.errors import UserError
from gr_jax.runs import loop
from gr_jax.runs.footprint import footprint
from gr_jax.training import evaluation, pictures, programs
from gr_jax.training import experiment as experiments

TOTAL = {"memory.per_class": None, "memory.total": 23}


def test_a_fixed_total_and_logits(tmp_path, monkeypatch):
  """Exemplars a class after each task: floor(total / seen classes); those with the lowest own logits stay.

  Untrained, so that the train program need not be compiled.
  """
  calls, states, select = [], [], memory.select

  def watched(present, m, selection, *, features, logits, **others):
    kept = select(present, m, selection, features=features, logits=logits, **others)
    of_rows = features(np.concatenate(present))
    calls.append((present, m, of_rows, logits(of_rows), kept))
    return kept

  def untrained(experiment, programs, plan, rows, standing, saving):
    states.append(jax.tree.map(np.asarray, standing.state.params["classifier"]))
    return standing.state, standing.carry, standing.progress.after_stage({}, 0.0)

  monkeypatch.setattr(memory, "select", watched)
  monkeypatch.setattr(loop, "run_stage", untrained)
  experiment = dataclasses.replace(
      experiments.load(runs.short(method="finetune", **TOTAL, **{"memory.selection": "distance"})),
      devices=tuple(jax.devices()[:1]))
  train_pictures, tests = (pictures.load(experiment, split, lambda items, **_: items) for split in ("train", "test"))
  results = loop.learn(experiment, programs.make_programs(experiment, train_pictures),
                       evaluation.make_evaluator(experiment, tests), tmp_path, asked=lambda: False)
  counts = experiment.scenario.counts
  assert [row["exemplars"] for row in runs.rows(tmp_path, "task")] == [
      [min(23 // seen, count) for count in counts[:seen]] for seen in (4, 7, 10)]
  assert results["memory"]["exemplars"] == sum(runs.rows(tmp_path, "task")[-1]["exemplars"])
  assert [m for _, m, _, _, _ in calls] == [5, 3, 2]
  for (present, m, features, logits, kept), head, seen in zip(calls, states, (4, 7, 10)):
    expected = features @ head["kernel"][:, :seen] + head["bias"][:seen]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    of_class = np.split(logits, np.cumsum([len(rows) for rows in present])[:-1])
    for j, (rows, class_logits) in enumerate(zip(present, of_class)):
      assert kept[j].tolist() == rows[np.argsort(class_logits[:, j], kind="stable")[:m]].tolist()


def test_what_the_memory_of_a_run_holds():
  """8x8 grey digits and a ResNet-8: bytes of pictures and parameters by hand."""
  experiment = experiments.load(runs.short())
  kept = [list(range(5))] * 9 + [list(range(3))]
  size = footprint(experiment, 3, kept)
  state = experiment.abstract_state()
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert size["exemplars"] == 48 and size["image_megabytes"] == pytest.approx(48 * 64 / 1e6)
  assert size["parameters"] == parameters == size["teacher_parameters"]
  assert size["extra_parameters"] == 0 and size["megabytes"] == size["image_megabytes"]


def test_means_of_exemplars_held_out_images_and_all_images_count():
  icarl = experiments.load(runs.short(method="icarl"))
  size = footprint(icarl, 3, [[0]] * 10)
  # A mean of 64 features for each of ten classes, and whether it is known.
  assert size["extra_parameters"] == 10 * icarl.model.num_features + 10
  assert size["megabytes"] == pytest.approx((10 * 64 + 4 * size["extra_parameters"]) / 1e6)
  bic = experiments.load(runs.short(method="bic"))
  assert bic.method.held_out == 1 and footprint(bic, 1, [[0, 1, 2, 3]] * 4)["exemplars"] == 4 * 4 + 4
  joint = experiments.load(runs.short(method="joint"))
  assert footprint(joint, 2, [[]] * 7)["exemplars"] == joint.scenario.counts[:7].sum()
  assert footprint(joint, 2, [[]] * 7)["teacher_parameters"] == 0


def test_a_total_must_reach_every_class():
  def load(method, total):
    return experiments.load(runs.short(method=method, **{"memory.per_class": None, "memory.total": total}))

  with pytest.raises(UserError, match="memory.total is 9, too small for the 10 classes .*memory.total=10 or more"):
    load("gr", 9)
  with pytest.raises(UserError, match="memory.total is 29, .*'bic' needs 3 of each class; .*memory.total=30"):
    load("bic", 29)
  # A tenth of what a class has in the end, although it has more before.
  experiment = load("bic", 110)
  assert experiment.method.held_out == 2 and [experiment.exemplars_per_class(seen) for seen in (4, 10)] == [27, 11]
