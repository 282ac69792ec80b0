"""The PyTorch comparators compute what gr_jax computes: same weights and batches, float32."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from gr_jax import methods, models, optimizer, scenario
from gr_jax.data import augment
from gr_jax.data.arrays import Data
from gr_jax.models.heads import draw_columns, init
from gr_jax.scenario import plan
from gr_jax.training.state import TrainState
from gr_jax.training.step import Batch, make_train_step

torch = pytest.importorskip("torch")
torch_steps = importlib.import_module("torch_steps")

SIDE, BATCH, STEPS = 16, 16, 3
SPLITS = (3, 2, 2)
COUNTS = np.asarray([40, 9, 3, 30, 6, 2, 1])
# A larger rate would let the rounding of one step grow in the next.
SGD = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


@functools.cache
def case(number):
  """(task, initial params, batch stats, teacher or None, images, labels) of a task."""
  first = sum(SPLITS[:number])
  task = torch_steps.task_facts(COUNTS, first, first + SPLITS[number], per_class=4)
  model = models.make_backbone("resnet8", platform="cpu")
  empty = init(model.num_features, len(COUNTS))

  def draw(seed, columns):
    variables = model.init(jax.random.key(seed), jnp.zeros((1, SIDE, SIDE, 3)), train=False)
    head = draw_columns(jax.random.key(seed + 1), empty, columns)
    return {"backbone": variables["params"], "classifier": head}, variables["batch_stats"]

  params, batch_stats = draw(0, task.old | task.new)
  teacher = None
  if number:
    before, stats = draw(10, task.old)
    # Running statistics that are not the initial ones.
    stats = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.uniform(jax.random.key(20), leaf.shape), stats)
    teacher = {"params": before, "batch_stats": stats}
  rng = np.random.default_rng(number)
  images = rng.normal(size=(STEPS, BATCH, SIDE, SIDE, 3)).astype(np.float32)
  labels = rng.integers(0, first + SPLITS[number], (STEPS, BATCH)).astype(np.int32)
  if number == 2:
    # Hardly an image of the new classes, so that the ratio of old ones acts.
    labels[:, 1:] %= first
  return task, params, batch_stats, teacher, images, labels


@functools.cache
def expected(number):
  """(state, metrics) of gr_jax after each step."""
  _, params, batch_stats, teacher, images, labels = case(number)
  first = sum(SPLITS[:number])
  context = plan.make_context(COUNTS, scenario.Task(first, first + SPLITS[number]), number, per_class=4)
  method = methods.make("gr", {}, memory=4)
  stage, = method.stages
  tx = optimizer.sgd((SGD["learning_rate"],), momentum=SGD["momentum"], weight_decay=SGD["weight_decay"])
  run = jax.jit(make_train_step(
      model=models.make_backbone("resnet8", platform="cpu"), method=method, stage=stage, tx=tx))
  state = TrainState(jnp.int32(0), params, batch_stats, tx.init(params), stage.rule.init(params["classifier"]))
  data = jax.tree.map(jnp.asarray, Data(
      images.reshape(-1, SIDE, SIDE, 3), np.full((STEPS * BATCH, 2), SIDE, np.int32), labels.reshape(-1)))
  after_steps = []
  for i in range(STEPS):
    state, metrics = run(state, teacher, context, data,
                         Batch(i * BATCH + jnp.arange(BATCH), jax.random.key(0), jnp.int32(0)))
    after_steps.append(jax.device_get((state, metrics)))
  return after_steps


def backbone(params, batch_stats):
  return torch_steps.load_backbone(torch_steps.Backbone(8), params["backbone"], batch_stats)


def linear(params, first, stop):
  """Columns first..stop-1 of a classifier as a layer."""
  layer = torch.nn.Linear(64, stop - first)
  with torch.no_grad():
    layer.weight.copy_(torch.from_numpy(np.array(params["classifier"]["kernel"])[:, first:stop].T))
    layer.bias.copy_(torch.from_numpy(np.array(params["classifier"]["bias"])[first:stop]))
  return layer


def heads(params, tasks):
  edges = np.cumsum([0, *SPLITS])
  return [linear(params, edges[i], edges[i + 1]) for i in range(tasks)]


def released(number):
  task, params, batch_stats, teacher, _, _ = case(number)
  before = teacher and (backbone(**teacher), heads(teacher["params"], number))
  return torch_steps.ReleasedStep(backbone(params, batch_stats), heads(params, number + 1), task, before,
                                  **SGD)


def best(number, **options):
  task, params, batch_stats, teacher, _, _ = case(number)
  before = teacher and (backbone(**teacher), linear(teacher["params"], 0, len(COUNTS)))
  return torch_steps.BestStep(backbone(params, batch_stats), linear(params, 0, len(COUNTS)), task, before,
                              **SGD, **options)


def classifier_of(run):
  """(kernel [features, classes], bias [classes]) of either step."""
  layers = run.heads if isinstance(run, torch_steps.ReleasedStep) else [run.head]
  return (torch.cat([layer.weight for layer in layers]).detach().numpy().T,
          torch.cat([layer.bias for layer in layers]).detach().numpy())


def compare(run, number):
  _, _, _, _, images, labels = case(number)
  for i, (state, metrics) in enumerate(expected(number)):
    losses = run(torch.from_numpy(images[i].transpose(0, 3, 1, 2)),
                 torch.from_numpy(labels[i].astype(np.int64)))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6, err_msg=f"step {i}")
    close(losses.cross_entropy, metrics.losses["cross_entropy"])
    close(losses.distillation, metrics.losses["distillation"])
    seen = len(run.phi)
    close(np.asarray(run.phi), state.rule.phi[:seen])
    close(np.asarray(run.column), state.rule.ratios.column[:seen])
    kernel, bias = classifier_of(run)
    close(kernel, state.params["classifier"]["kernel"][:, :seen])
    close(bias, state.params["classifier"]["bias"][:seen])
    other = torch_steps.load_backbone(torch_steps.Backbone(8), state.params["backbone"], state.batch_stats)
    theirs = dict(run.backbone.named_buffers()) | dict(run.backbone.named_parameters())
    for name, values in (dict(other.named_buffers()) | dict(other.named_parameters())).items():
      # Flax keeps the biased running variance, PyTorch the unbiased one.
      if not name.endswith(("running_var", "num_batches_tracked")):
        close(theirs[name].detach().numpy(), values.detach().numpy(), err_msg=f"step {i}, {name}")


@pytest.mark.parametrize("make", [released, best])
@pytest.mark.parametrize("number", range(len(SPLITS)))
def test_step_is_that_of_gr_jax(make, number):
  compare(make(number), number)


def test_cases_act():
  """What the comparison rests on: the parts that could be forgotten are not 1 or 0 in these cases."""
  for number in range(len(SPLITS)):
    state, metrics = expected(number)[-1]
    seen = case(number)[0].old | case(number)[0].new
    assert np.ptp(state.rule.ratios.column[seen]) > 0.1
    assert (metrics.losses["distillation"] > 0.01) == (metrics.reports["beta"] > 0.01) == bool(number)
  assert all(metrics.reports["r_old"] == 1 and metrics.reports["r_new"] < 0.99 for _, metrics in expected(1))
  assert all(metrics.reports["r_old"] < 0.99 and metrics.reports["r_new"] < 0.99 for _, metrics in expected(2))


# A minute of compilation, in which PyTorch uses what it deprecates itself.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_step_is_that_of_gr_jax():
  compare(best(1, compile_mode="default"), 1)


@pytest.mark.parametrize("box", [(0, 0, 40, 40), (3, 7, 20, 17), (21, 30, 12, 10), (11, 0, 29, 33)])
@pytest.mark.parametrize("flip", [False, True])
def test_augmentations_agree(box, flip):
  """The same box out of the same picture: gr_jax, PyTorch by batch, Pillow one at a time."""
  image, pad = tiny.pictures(np.random.default_rng(0), 1, 32)[0], 4
  top, left, height, width = box
  rows, columns = (np.asarray(augment.resize_weights(np.float32(start), np.float32(length), 32 + 2 * pad, 32))
                   for start, length in ((top, height), (left, width)))
  ours = np.asarray(augment.crop_and_resize(
      image, rows[:, pad:-pad], columns[::-1, pad:-pad] if flip else columns[:, pad:-pad]))
  cropped = torch_steps.crop_flip(torch.from_numpy(image.transpose(2, 0, 1))[None],
                                  *torch.tensor([box], dtype=torch.float32).T, torch.tensor([flip]))
  np.testing.assert_allclose(cropped[0].numpy().transpose(1, 2, 0), ours, atol=1e-3)
  on_host = np.asarray(torch_steps.crop_flip_on_host(image, *box, flip), np.float32)
  # Pillow rounds after each axis.
  np.testing.assert_allclose(on_host, ours, atol=1.6)


def test_boxes_lie_in_the_picture_and_use_all_of_it():
  top, left, height, width = (values.numpy() for values in torch_steps.draw_boxes(2000, 40, "cpu"))
  for start, length in ((top, height), (left, width)):
    assert (start >= 0).all() and (start + length <= 40).all() and (start == start.round()).all()
    assert start.min() == 0 and (start + length).max() == 40 and length.min() < 12
  share = height * width / 1600
  assert share.min() >= 0.07 and 0.45 < share.mean() < 0.55
