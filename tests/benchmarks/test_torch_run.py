"""The whole run in PyTorch: its facts, options and herding are gr_jax's, and it learns."""

import importlib

import numpy as np
import pytest
import tiny

from configs import cifar100_lt
from gr_jax import losses, memory, methods, reweighting, scenario
from gr_jax.scenario import plan

torch = pytest.importorskip("torch")
torch_run = importlib.import_module("torch_run")
torch_steps = importlib.import_module("torch_steps")

SIDE = 16
TASKS = ((0, 2), (2, 4))


@pytest.mark.parametrize("first, stop", [(0, 3), (3, 5), (5, 7)])
def test_facts_are_those_of_gr_jax(first, stop):
  counts = np.asarray([40, 9, 3, 30, 6, 2, 1])
  context = plan.make_context(counts, scenario.Task(first, stop), 0, per_class=4)
  images = [context.original[group].sum() for group in (context.old, context.new)]
  ours = {"old": context.old, "new": context.new, "counts": context.counts, "lost": context.lost,
          "attenuation": reweighting.attenuation(*images), "distillation_weight": losses.distillation_weight(*images)}
  theirs = torch_steps.task_facts(counts, first, stop, per_class=4)
  assert set(ours) == set(theirs._fields)
  for name, expected in ours.items():
    np.testing.assert_allclose(getattr(theirs, name), expected, rtol=1e-6, err_msg=name)


def test_options_are_those_of_gr_jax():
  assert methods.resolve("gr", {}) == {**torch_run._FIXED_OPTIONS, **torch_run._OPTIONS}


@pytest.mark.parametrize("count, m", [(30, 20), (5, 20), (1, 1), (40, 0)])
def test_herding_is_that_of_gr_jax(count, m):
  features = np.random.default_rng(count).normal(size=(count, 7)).astype(np.float32)
  assert torch_run.herd(torch.from_numpy(features), m) == memory.herd(features, m).tolist()


def test_herding_breaks_ties_as_gr_jax_and_bears_zero_rows():
  rows = np.abs(np.random.default_rng(0).normal(size=(6, 4))).astype(np.float32)
  rows[2] = 0
  tied = np.concatenate([rows, rows, rows])
  assert torch_run.herd(torch.from_numpy(tied), 12) == memory.herd(tied, 12).tolist()


def small_config(**changes):
  config = cifar100_lt.get_config().unlock()
  config.model, config.epochs, config.milestones, config.batch_size = "resnet8", 6, (4,), 16
  config.memory.per_class = 5
  config.update(changes)
  return config


def small_data(counts, tests=10):
  """Pictures that tell their class by colour and brightness, so that a few epochs are enough."""
  rng = np.random.default_rng(0)
  colours = np.asarray([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 30]])

  def draw(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    pictures = tiny.pictures(rng, len(labels), SIDE).astype(int)
    return (0.2 * pictures + 0.8 * colours[labels][:, None, None]).astype(np.uint8), labels

  return {"train": draw(counts), "test": draw([tests] * len(counts)), "mean": (0.5,) * 3, "std": (0.25,) * 3}


def learn(workers=0, **changes):
  counts, clock = np.asarray([40, 20, 30, 15]), torch_run.Clock()
  accuracies = torch_run.task_accuracies(small_data(counts), counts, TASKS, small_config(**changes), workers=workers,
                                         device=torch.device("cpu"), clock=clock)
  return accuracies, clock


def test_small_run_learns_and_keeps_what_it_learnt():
  accuracies, clock = learn()
  assert len(accuracies) == 2 and accuracies[0] > 0.8 and accuracies[1] > 0.6
  assert set(clock.seconds) == {"training", "evaluation", "selection"} and min(clock.seconds.values()) > 0


def test_same_seed_same_accuracies():
  assert learn(epochs=1, milestones=())[0] == learn(epochs=1, milestones=())[0]


@pytest.mark.slow
def test_loader_workers():
  assert learn(workers=2, epochs=1, milestones=())[0]


def test_config_that_the_run_does_not_do_is_refused(tmp_path):
  path = tmp_path / "other.py"
  path.write_text("from configs import cifar100_lt\ndef get_config():\n  config = cifar100_lt.get_config().unlock()\n"
                  "  config.method_options.distillation = 'kd'\n  config.schedule = 'cosine'\n  return config\n")
  with pytest.raises(SystemExit, match="schedule = 'cosine', method_options.distillation = 'kd'"):
    torch_run.load_config(str(path))


def test_milestones():
  assert torch_run.milestones("") == () and torch_run.milestones("80,120") == (80, 120)
