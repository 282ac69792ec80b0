"""Each method on digits: to the end, interrupted and resumed, killed, on one and two devices, and what it compiles."""

import contextlib
import dataclasses
import functools
import os
import re
import signal
import time
import types

import jax
import numpy as np
import pytest
import runs
import tiny
from references import icarl as icarl_reference

import gr_jax
from gr_jax import methods, models, train
from gr_jax.data.sources import digits
from gr_jax.errors import UserError
from gr_jax.methods import addons
from gr_jax.methods.base import Networks
from gr_jax.models import folding, frozen
from gr_jax.runs import console, loop, restored, signals
from gr_jax.runs import stage as running
from gr_jax.training import evaluation, pictures, programs
from gr_jax.training import experiment as experiments

# The smallest images, one chunk an epoch or two: enough to stop in every stage.
SETTINGS = {"epochs": 2, "milestones": (), "scenario.num_tasks": 2, "batch_size": 100, "steps_per_call": 2,
            "checkpoint_every_epochs": 1}
# BiC's rate is so small that rounding, which differs between numbers of devices, does not grow.
OPTIONS = {"bic": {"method_options.bias_epochs_share": 1.0, "learning_rate": 1e-4},
           "eeil": {"method_options.balanced_epochs_share": 1.0},
           "podnet": {"method_options.balanced_epochs_share": 1.0}, "ssil": {"batch_size": 96},
           "foster": {"method_options.compression_epochs_share": 1.0},
           "mafdrc": {"method_options.adaptation_epochs_share": 1.0, "method_options.fusion_epochs_share": 1.0}}
# Methods with parts and with add-ons.
OPTIONS |= {
    "parts": {"method": "lucir", "method_options.reweighting": "dgr", "method_options.prior": True},
    "lws": {"method": "lucir", "addons": "lws", "method_options.lws_epochs_share": 1.0},
    "gvalign": {"method": "lucir", "addons": "gvalign", "method_options.gvalign_steps": 12,
                "method_options.gvalign_statistics": "augmented"},
    "gpa": {"method": "gr", "addons": "gpa"},
    "cosine": {"method": "gr", "method_options.head": "cosine"},
    "lws,gvalign": {"method": "podnet", "addons": "lws,gvalign", "method_options.balanced_epochs_share": 1.0,
                    "method_options.lws_epochs_share": 1.0, "method_options.gvalign_steps": 12}}
COMBINED = tuple(name for name in OPTIONS if name not in methods.NAMES)
CASES = (*methods.NAMES, *COMBINED)


def settings_of(name):
  return {**SETTINGS, "method": name, **OPTIONS.get(name, {})}


def config_of(name, **changes):
  return runs.short(**{**settings_of(name), **changes})


@contextlib.contextmanager
def asking_after(calls):
  """In place of signals.listening: the run is asked to end at the look number `calls`."""
  looks = iter(range(1, 10**6))
  yield lambda: next(looks) > calls


def interrupted_and_resumed(name, folder, monkeypatch, afters):
  """Ends the run at each of these looks in turn, then lets it go to its end."""
  for after in afters:
    with monkeypatch.context() as patch:
      patch.setattr(signals, "listening", lambda after=after: asking_after(after))
      with pytest.raises(signals.Interrupted):
        train.train(config_of(name), folder)
  train.train(config_of(name), folder)


@pytest.fixture(scope="module")
def bic(tmp_path_factory):
  """A run of BiC on four devices."""
  folder = tmp_path_factory.mktemp("bic") / "whole"
  train.train(config_of("bic"), folder)
  return folder


def test_two_stages_resume_inside_each_and_between(bic, tmp_path, monkeypatch):
  """BiC has a stage for later tasks alone, held-out images, and a head with more than a kernel and a bias."""
  stages = {(row["task"], row["stage"]) for row in runs.rows(bic, "epoch")}
  assert stages == {(1, "train"), (2, "train"), (2, "correct_bias")}
  # It looks at the start of a task, after each chunk and between stages: in the second task's train (five looks of the
  # first task before it), then at the end of that stage, then in correct_bias.
  interrupted_and_resumed("bic", tmp_path / "cut", monkeypatch, (6, 2, 1))
  runs.assert_equal(bic, tmp_path / "cut")
  assert runs.results(bic)["tasks_done"] == 2


def assert_predictions_equal_the_run(folder, results):
  """gr_jax.load on the test pictures gives the run's accuracies and temperatures, after every task."""
  test = digits.load().test
  for number, accuracy in enumerate(results["task_accuracies"]):
    model = gr_jax.load(folder, number + 1)
    rows = [row for row, label in enumerate(test.labels) if str(label) in model.classes]
    answer = model([test.image(row) for row in rows])
    assert np.mean([name == str(test.labels[row]) for row, name in zip(rows, answer.names)]) == pytest.approx(accuracy)
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert model.temperature == results["calibration"][number]["temperatures"]["one"]


def test_exemplar_means_outlive_a_task(tmp_path, monkeypatch):
  """iCaRL's means are in the checkpoint: an interrupted run and the evaluation command have them."""
  from gr_jax import evaluate
  monkeypatch.setattr(models, "make_backbone", lambda name, **options: tiny.PixelBackbone())
  whole = train.train(config_of("icarl"), tmp_path / "whole")
  interrupted_and_resumed("icarl", tmp_path / "cut", monkeypatch, (3,))
  runs.assert_equal(tmp_path / "whole", tmp_path / "cut")
  assert set(whole["scores"]) == {"nearest_mean", "logits"}
  assert whole["scores"]["nearest_mean"]["task_accuracies"] == whole["task_accuracies"]
  evaluated = evaluate.evaluate(tmp_path / "cut")
  assert evaluated["accuracy_matrix"] == whole["accuracy_matrix"] and evaluated["scores"] == whole["scores"]
  assert_predictions_equal_the_run(tmp_path / "cut", whole)


def test_nearest_mean_is_recorded_beside_the_methods_own_score(tmp_path, monkeypatch):
  """Of finetuning: the accuracies equal an exhaustive search in float64, from the checkpoint after each task."""
  monkeypatch.setattr(models, "make_backbone", lambda name, **options: tiny.PixelBackbone())
  done = train.train(config_of("finetune"), tmp_path)
  assert list(done["scores"]) == ["logits", "nearest_mean"]
  assert done["scores"]["logits"]["accuracy_matrix"] == done["accuracy_matrix"]
  # The means are no part of what the method keeps.
  assert done["memory"]["extra_parameters"] == 0
  experiment, source = experiments.load(config_of("finetune")), digits.load()

  def features(network, split, rows):
    dense = network["params"]["backbone"]["Dense_0"]
    images = np.stack([split.image(row) for row in rows]).astype(np.float64).reshape(len(rows), -1)
    inputs = (images / 255 - np.asarray(source.mean)) / np.asarray(source.std)
    return np.maximum(inputs @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"], np.float64), 0)

  place = np.argsort(experiment.scenario.class_order)
  for number, plan in enumerate(experiment.plans):
    saved = restored.after_task(tmp_path, experiment, number + 1)
    kept = saved.record["exemplars"]
    rows = np.concatenate(experiment.scenario.train)[np.concatenate(kept)]
    means, present = icarl_reference.exemplar_means(
        features(saved.network, source.train, rows), np.repeat(np.arange(plan.task.stop), list(map(len, kept))), 10)
    assert present.sum() == plan.task.stop
    np.testing.assert_allclose(saved.network["carry"]["exemplar_means"], means, atol=1e-5)
    tests = [row for row, label in enumerate(source.test.labels) if place[label] < plan.task.stop]
    predicted = icarl_reference.nearest_mean(features(saved.network, source.test, tests), means, present)
    accuracy = np.mean(predicted == place[source.test.labels[tests]])
    assert done["scores"]["nearest_mean"]["task_accuracies"][number] == pytest.approx(accuracy, abs=1e-9)
    row = runs.rows(tmp_path, "task")[number]
    assert row["scores"] == {name: of["task_accuracies"][number] for name, of in done["scores"].items()}


def test_nearest_mean_of_every_method_with_a_memory():
  """The method's own score comes first."""
  first = {"icarl": "nearest_mean", "simplecil": "nearest_mean", "foster": "compressed", "il2m": "rectified"}
  for name in methods.NAMES:
    method = methods.make(name, {}, memory=20)
    assert list(method.scores)[0] == first.get(name, "logits")
    assert method.exemplar_means == (name not in ("joint", "simplecil")), "these two keep no exemplars"
    assert ("exemplar_means" in method.init_carry(6, 7)) == method.exemplar_means
    assert "nearest_mean" in method.scores or name == "joint"
  assert list(methods.make("finetune", {}, memory=0).scores) == ["logits"]


@pytest.mark.parametrize("name", CASES)
def test_no_stage_loses_what_another_part_carries(name, monkeypatch):
  """Else a run killed inside the stage could not be resumed: its checkpoint would lack arrays."""
  monkeypatch.setattr(models, "make_backbone", lambda name, **options: tiny.PixelBackbone())
  experiment = experiments.load(config_of(name))
  carry, key = jax.eval_shape(experiment.init_carry), jax.eval_shape(jax.random.key, 0)
  assert ("exemplar_means" in carry) == (experiment.method.replays)
  for plan in experiment.plans:
    for planned in plan.stages:
      stage, state = experiment.method.stages[planned.index], experiment.abstract_state(planned.index)
      networks = Networks(state.params, state.batch_stats, carry, state.rule)
      if stage.begin is not None:
        assert jax.eval_shape(stage.begin, networks, planned.context, key).carry == carry
      if stage.remember is not None:
        assert jax.eval_shape(stage.remember, networks.rule, carry) == carry


def test_a_carry_that_loses_an_array_is_refused():
  carry = {"exemplar_means": np.zeros((3, 2), np.float32), "steps": np.int32(0)}
  assert programs.whole_carry(carry, {**carry, "steps": np.int32(4)}, "begin")["steps"] == 4
  with pytest.raises(ValueError, match=r"begin of stage 'b' .*\['exemplar_means'\] is missing and was float32\[3, 2\].*"
                                       r"\['more'\] is int32\[\] and was not there.*start from"):
    programs.whole_carry(carry, {"steps": np.int32(0), "more": np.int32(1)}, "begin of stage 'b'")
  with pytest.raises(ValueError, match=r"\['steps'\] is float32\[\] and was int32\[\]"):
    programs.whole_carry(carry, {**carry, "steps": np.float32(0)}, "remember of stage 'b'")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_in_every_stage_and_between(tmp_path, name):
  """SIGKILL once each stage has a checkpoint inside it and once it is over; the rerun command ends bit-equal."""
  settings = {**settings_of(name), "epochs": 6, "steps_per_call": 1}
  flags = ("--config=configs/digits_lt.py", "--config.evaluation_block=50",
           *(f"--config.{key}={value}" for key, value in settings.items()))
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  done = runs.run("main", *flags, f"--workdir={whole}")
  assert done.returncode == 0, done.stderr
  epochs = [(row["task"], row["stage"], row["epoch"]) for row in runs.rows(whole, "epoch")]
  last = {place[:2]: place[2] for place in epochs}
  places = [place for place in epochs if place[2] in (3, last[place[:2]])]
  for place in places:
    process = runs.start("main", *flags, f"--workdir={cut}")
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
      seen = [(row["task"], row["stage"], row["epoch"]) for row in runs.rows(cut, "epoch")] if (
          cut / "metrics.jsonl").exists() else []
      if place in seen:
        os.kill(process.pid, signal.SIGKILL)
        break
      time.sleep(0.02)
    process.wait(timeout=240)
  done = runs.run("main", *flags, f"--workdir={cut}")
  assert done.returncode == 0, done.stderr
  runs.assert_equal(whole, cut)


def learn_on(config, devices, folder):
  """Trains on so many devices of this process."""
  experiment = dataclasses.replace(experiments.load(config), devices=tuple(jax.devices()[:devices]))
  train_pictures, tests = (pictures.load(experiment, split, lambda items, **_: items) for split in ("train", "test"))
  folder.mkdir()
  loop.learn(experiment, programs.make_programs(experiment, train_pictures),
             evaluation.make_evaluator(experiment, tests), folder, asked=lambda: False)


def assert_first_epochs_agree(folder, other):
  """The losses of the first epoch of each stage."""
  one, two = ({(row["task"], row["stage"]): row["loss"] for row in runs.rows(each, "epoch") if row["epoch"] == 1}
              for each in (folder, other))
  assert one.keys() == two.keys()
  for place in one:
    assert two[place] == pytest.approx(one[place], rel=1e-5), place


def test_four_devices_equal_one_in_every_stage(bic, tmp_path):
  learn_on(config_of("bic"), 1, tmp_path / "one")
  assert_first_epochs_agree(tmp_path / "one", bic)


def assert_devices_agree(name, folder):
  """One and two, at a small rate so that rounding does not grow."""
  for devices in (1, 2):
    learn_on(config_of(name, epochs=1, learning_rate=1e-4), devices, folder / str(devices))
  assert_first_epochs_agree(folder / "1", folder / "2")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_devices_agree_for_every_method(tmp_path, name):
  assert_devices_agree(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_method_learns_digits(tmp_path, name):
  """Above chance: two of ten classes are new at the end."""
  results = train.train(runs.get_config("digits_lt", **{"method": name, **(OPTIONS[name] if name in COMBINED else {})}),
                        tmp_path / "run")
  assert results["tasks_done"] == 5 and results["average_incremental_accuracy"] > 0.5
  assert all(np.isfinite(row["loss"]) for row in runs.rows(tmp_path / "run", "epoch"))


@pytest.mark.slow
def test_joint_training_is_above_finetuning_and_that_above_finetuning_without_a_memory(tmp_path):
  accuracies = [
      train.train(runs.get_config("digits_lt", **changes), tmp_path / str(place))["average_incremental_accuracy"]
      for place, changes in enumerate(({"method": "finetune", "memory.per_class": 0}, {"method": "finetune"},
                                       {"method": "joint"}))]
  assert accuracies[0] + 0.2 < accuracies[1] < accuracies[2]


METHODS_PAGE = (runs.ROOT / "gr_jax" / "docs" / "methods.md").read_text()


def programs_on_the_page():
  """method -> train programs, and add-on -> those that it adds, as docs/methods.md has them."""
  text = METHODS_PAGE[METHODS_PAGE.index("## What a run compiles"):METHODS_PAGE.index("## A method is a value")]
  numbers = {}
  for names, number in re.findall(r"^\| (`.*`) \| (\d+)\b", text, re.MULTILINE):
    for name in re.findall(r"`(\w+)`", names):
      assert name not in numbers, name
      numbers[name] = int(number)
  adding, = re.findall(r"^((?:`\w+`(?:, | and | ))+)add one each\.", text, re.MULTILINE)
  return numbers, {name: int(f"`{name}`" in adding) for name in addons.ADDONS}


def programs_of(name):
  """How many train programs the page gives to a case."""
  (numbers, added), config = programs_on_the_page(), config_of(name)
  return numbers[config.method] + sum(added[addon] for addon in addons.names(config.addons))


def signature(arguments):
  """What decides whether a compiled program serves a call: the arguments' tree, shapes and dtypes."""
  return jax.tree.structure(arguments), tuple(
      (np.shape(leaf), getattr(leaf, "dtype", None)) for leaf in jax.tree.leaves(arguments))


def calls_of(experiment):
  """(stage, signature) of every different call of a train program in a run; nothing is computed."""
  folding_shapes = types.SimpleNamespace(fold_teacher=functools.partial(jax.eval_shape, folding.fold_teacher),
                                         fold_carry=functools.partial(jax.eval_shape, frozen.fold_carry))
  states = [experiment.abstract_state(index) for index in range(len(experiment.method.stages))]
  carry, calls = jax.eval_shape(experiment.init_carry), set()
  for plan in (stage for task in experiment.plans for stage in task.stages):
    stage, state = experiment.method.stages[plan.index], states[plan.index]
    teacher = running._folded(stage, folding_shapes, plan, {"params": state.params, "batch_stats": state.batch_stats},
                              carry)
    calls.add((plan.index, signature((state, teacher, plan.context))))
  return calls


def test_the_page_gives_every_method_its_programs():
  assert sorted(programs_on_the_page()[0]) == sorted(methods.NAMES)


@pytest.mark.parametrize("name", CASES)
def test_programs_are_those_of_the_page(name):
  """As many in two tasks as in ten: the page's number, that of --dry_run, and as many as are called differently."""
  for tasks in (2, 10):
    experiment = experiments.load(config_of(name, **{"scenario.num_tasks": tasks}))
    assert programs_of(name) == len(console.stage_programs(experiment)) == len(calls_of(experiment))


def test_a_batch_that_cannot_be_divided_is_refused():
  """SS-IL: four new images for each exemplar, on each of four devices."""
  with pytest.raises(UserError, match="batch_size is 40, but method 'ssil' on 4 devices needs a multiple of 4 x 4"):
    experiments.load(config_of("ssil", batch_size=40))
  assert experiments.load(config_of("ssil", batch_size=48)).plans[1].stages[0].batch_size == 60


def test_a_backbone_without_maps_is_refused(monkeypatch):
  monkeypatch.setattr(models, "make_backbone", lambda name, **options: tiny.TinyBackbone(4))
  with pytest.raises(UserError, match="method 'podnet' compares the maps.*model 'resnet8' has none"):
    experiments.load(config_of("podnet"))
