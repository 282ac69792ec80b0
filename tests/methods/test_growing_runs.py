"""Runs of the growing methods on a tiny network: resumed in every stage, evaluated after any task, traced once."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
import runs
from methods.test_runs import (
  CASES,
  assert_devices_agree,
  assert_predictions_equal_the_run,
  config_of,
  programs_of,
  signature,
)

import gr_jax
from gr_jax import evaluate, models, train
from gr_jax.models.resnet import ResNet
from gr_jax.runs import journal, loop, signals
from gr_jax.runs.footprint import footprint
from gr_jax.serving import exported
from gr_jax.training import evaluation, networks, pictures, program, programs
from gr_jax.training import experiment as experiments

GROWING = ("der", "foster", "mafdrc")
NEVER = lambda: False  # noqa: E731


def tiny(name, *, axis_name, standardised, maps=False, **rest):
  """In place of models.make_backbone: one block of four channels, whatever the config says."""
  return ResNet(stages=(1,), filters=4, stem="cifar", axis_name=axis_name, standardised=standardised, maps=maps)


class Made:
  """A method's programs, compiled once for all its runs here.

  Attributes:
    traced: counts the traces of each stage's step.
    called: (stage, signature) of every different call of a train program; each is compiled.
  """

  def __init__(self, name, patch, **changes):
    self.traced, self.called = collections.Counter(), set()
    make_program = program.make_program

    def counting(step, **rest):
      def counted(*args):
        self.traced[rest["stage"].name] += 1
        return step(*args)
      run = make_program(counted, **rest)
      def called(*args):
        self.called.add((rest["stage"].name, signature(args)))
        return run(*args)
      return called

    patch.setattr(models, "make_backbone", tiny)
    patch.setattr(program, "make_program", counting)
    self.experiment = dataclasses.replace(
        experiments.load(config_of(name, batch_size=208, **changes)), devices=tuple(jax.devices()[:1]))
    train_pictures, tests = (
        pictures.load(self.experiment, split, lambda items, **_: items) for split in ("train", "test"))
    self.programs = programs.make_programs(self.experiment, train_pictures)
    self.evaluate = evaluation.make_evaluator(self.experiment, tests)

  def learn(self, folder, asked=NEVER, **changes):
    folder.mkdir(exist_ok=True)
    config = dataclasses.replace(self.experiment.config, **changes)
    results = loop.learn(dataclasses.replace(self.experiment, config=config), self.programs, self.evaluate, folder,
                         asked=asked)
    journal.write_json(folder / "results.json", results)
    return results


def asking_after(calls):
  looks = iter(range(1, 10**6))
  return lambda: next(looks) > calls


@pytest.mark.parametrize("name", [
    "der", pytest.param("foster", marks=pytest.mark.slow), pytest.param("mafdrc", marks=pytest.mark.slow)])
def test_resumed_anywhere_and_no_task_traces_anew(name, tmp_path, monkeypatch):
  """Three tasks: ended at every look, one after another; the third task traces nothing that the second has not."""
  made = Made(name, monkeypatch, **{"scenario.num_tasks": 3})
  made.learn(tmp_path / "whole", stop_after_task=2)
  traced = dict(made.traced)
  whole = made.learn(tmp_path / "whole")
  assert dict(made.traced) == traced and set(traced) == {stage.name for stage in made.experiment.method.stages}
  assert whole["tasks_done"] == 3 and len(set(traced.values())) == 1
  assert len(made.called) == programs_of(name)
  starts = 0
  while True:
    starts += 1
    try:
      # The second look is after a call or at the next task: one step further at each start.
      resumed = made.learn(tmp_path / "cut", asking_after(1))
      break
    except signals.Interrupted:
      assert starts < 100
  assert starts >= 2 * sum(len(plan.stages) for plan in made.experiment.plans)
  runs.assert_equal(tmp_path / "whole", tmp_path / "cut")
  assert runs.timeless(resumed) == runs.timeless(whole)


def test_evaluation_of_any_task(tmp_path, monkeypatch):
  """A run of the command alone; DER's checkpoints hold the whole stack, FOSTER's both scores."""
  monkeypatch.setattr(models, "make_backbone", tiny)
  whole = train.train(config_of("foster", epochs=1, batch_size=200), tmp_path)
  assert list(whole["scores"]) == ["compressed", "dual", "nearest_mean"]
  for task in (1, 2):
    evaluated = evaluate.evaluate(tmp_path, task)
    for name in whole["scores"]:
      assert evaluated["scores"][name]["accuracy_matrix"][:task] == whole["scores"][name]["accuracy_matrix"][:task]
  assert_predictions_equal_the_run(tmp_path, whole)
  # Exported, too: the stack of backbones with a batch of any size.
  model, views = gr_jax.load(tmp_path), np.zeros((3, 8, 8, 1), np.uint8)
  np.testing.assert_allclose(exported.exported(model).call(views), model(views).probabilities, atol=1e-5)


@pytest.mark.parametrize("name", GROWING)
def test_memory_of_further_backbones(name, monkeypatch):
  monkeypatch.setattr(models, "make_backbone", tiny)
  experiment = experiments.load(config_of(name, **{"scenario.num_tasks": 5}))
  backbone = experiment.abstract_state().params["backbone"]
  size = 4 * sum(leaf.size for leaf in jax.tree.leaves(backbone))
  extra = [networks.extra_bytes(experiment.method, backbone, tasks) for tasks in range(1, 6)]
  assert extra == [task * size if name == "der" else 0 for task in range(5)]
  sizes = [footprint(experiment, tasks, [[0]] * 10) for tasks in range(1, 6)]
  assert [part["extra_parameters"] for part in sizes] == [part // 4 for part in extra]
  assert all((part["teacher_parameters"] > 2 * size / 4) == (name != "der") for part in sizes)
  stack = jax.eval_shape(experiment.init_carry)["frozen"]["params"]
  kept = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(stack)) * 4
  assert networks.stack_bytes(experiment.method, backbone, 5) == kept == {"der": 5}.get(name, 2) * size


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ten_tasks_trace_what_two_do(name, tmp_path, monkeypatch):
  """Every method, not only the growing ones."""
  counts = {}
  for tasks in (2, 10):
    with monkeypatch.context() as patch:
      made = Made(name, patch, epochs=1, **{"scenario.num_tasks": tasks})
      results = made.learn(tmp_path / str(tasks))
    assert results["tasks_done"] == tasks
    counts[tasks] = dict(made.traced)
    assert len(made.called) == programs_of(name)
    # All methods' programs together need more mappings than a process has (tests/conftest.py).
    jax.clear_caches()
  assert counts[2] == counts[10]


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWING)
def test_two_devices_equal_one(name, tmp_path, monkeypatch):
  monkeypatch.setattr(models, "make_backbone", tiny)
  assert_devices_agree(name, tmp_path)
