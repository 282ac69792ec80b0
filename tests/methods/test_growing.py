"""Growing networks: a real train step of each stage against float64 NumPy, what happens between stages, a quick run."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import der as der_reference
from references import finetune as finetune_reference
from references import foster as foster_reference
from references import mafdrc as mafdrc_reference
from references import wa as wa_reference

from gr_jax import class_weights, methods, models, optimizer
from gr_jax.data.arrays import Data
from gr_jax.methods.base import Context, Networks, Outputs
from gr_jax.models import frozen, two_branch
from gr_jax.training import step as steps
from gr_jax.training.state import TrainState

OLD = np.arange(7) < 3
NEW = (np.arange(7) >= 3) & (np.arange(7) < 5)
SEEN = OLD | NEW
NOTHING = np.zeros(7, bool)
BATCH, WIDTH, TASKS, TASK = 12, 6, 4, 2
COUNTS = np.asarray([4, 4, 3, 50, 20, 0, 0], np.float32)
# What stands in columns of unseen classes must not matter.
RUBBISH = 1e30


class Shift(nn.Module):
  """Adds a parameter to its inputs, so that the gradient of features is that of the parameter."""
  num_features: int = WIDTH

  @nn.compact
  def __call__(self, x, *, train):
    return x + self.param("shift", nn.initializers.zeros, x.shape), ()


def context(task=TASK, **changes):
  fields = {"task": np.int32(task), "old": OLD, "new": NEW, "counts": COUNTS,
            "original": np.where(OLD, COUNTS + 30, COUNTS), "lost": np.where(OLD, 30, 0).astype(np.float32),
            "task_of_class": np.asarray([0, 0, 1, 2, 2, 3, 3], np.int32)}
  return Context(**{**fields, **changes})


FIRST = context(0, old=NOTHING, new=SEEN, lost=np.zeros(7, np.float32))


def drawn_head(method, rng):
  """Every entry random but for unseen columns and rows of blocks that no backbone fills."""
  head = {name: rng.normal(size=np.shape(leaf)).astype(np.float32)
          for name, leaf in method.head.init(WIDTH, 7, TASKS).items()}
  head["kernel"][:, ~SEEN] = RUBBISH
  return head


class Case:
  """A step at rate 1 without momentum and decay, so that before - after is the gradient.

  `self.stacked` [size, batch, features] are the features of the frozen backbones, self.x those of the trained one.
  """

  def __init__(self, method, name, *, around=None, labels=None, kept=None, change=None):
    self.method, self.context = method, around or context()
    self.stage = next(stage for stage in method.stages if stage.name == name)
    rng = np.random.default_rng(3)
    self.x = rng.normal(size=(BATCH, WIDTH)).astype(np.float32)
    self.stacked = rng.normal(size=(method.stack(TASKS), BATCH, WIDTH)).astype(np.float32)
    self.labels = (rng.integers(0, 5, BATCH) if labels is None else np.asarray(labels)).astype(np.int32)
    self.head = {**drawn_head(method, rng), **(change or {})}
    self.kept = {name: {**drawn_head(method, rng), **(kept or {})} for name in method.kept_heads}
    params = {"backbone": {"shift": jnp.zeros_like(self.x)}, "classifier": jax.tree.map(jnp.asarray, self.head)}
    tx = optimizer.sgd((1.0,), momentum=0.0, weight_decay=0.0)
    step = steps.make_train_step(model=Shift(), method=method, stage=self.stage, tx=tx)
    state = TrainState(jnp.int32(0), params, {}, tx.init(params), ())
    beside = {"carry": {"frozen": {"params": {"shift": self.stacked - self.x}, "batch_stats": {}}, "heads": self.kept}}
    data = Data(jnp.asarray(self.x), jnp.ones((BATCH, 2), jnp.int32), jnp.asarray(self.labels))
    after, metrics = jax.jit(step)(state, beside if self.stage.growth else None, self.context, data,
                                   steps.Batch(jnp.arange(BATCH), jax.random.key(0), jnp.int32(0)))
    self.loss = float(metrics.loss)
    self.gradient = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, after.params)

  def assert_gradients(self, features, loss, on_logits, *, trained=SEEN, shift):
    """The step's loss and gradients; `features` [batch, ...] of the head, `shift` that of the trained backbone's."""
    assert self.loss == pytest.approx(loss, rel=2e-5)
    close(self.gradient["backbone"]["shift"], shift)
    close(self.gradient["classifier"]["kernel"], np.where(trained, features.T @ on_logits, 0.0))
    close(self.gradient["classifier"]["bias"], np.where(trained, on_logits.sum(axis=0), 0.0))


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=4e-6)


def logits_of(features, head):
  """float64; 0 in unseen columns."""
  logits = np.zeros((BATCH, 7))
  logits[:, SEEN] = features.astype(np.float64) @ head["kernel"][:, SEEN] + head["bias"][SEEN]
  return logits


def seen_kernel(head, rows=slice(None)):
  return np.where(SEEN, head["kernel"], 0.0)[rows].astype(np.float64)


# ------------------------------------------------------------------------------------------------------------- DER


def der(**options):
  return methods.make("der", options, memory=20)


def test_der_step():
  case = Case(der(auxiliary_weight=0.7), "train")
  features = der_reference.super_feature([*case.stacked[:TASK], case.x], np.zeros((BATCH, WIDTH)))
  kernel, bias = case.head["auxiliary_kernel"], case.head["auxiliary_bias"]
  # The auxiliary head's columns in the reference's order: any old class, then the new ones.
  columns = [7, 3, 4]
  auxiliary = case.x.astype(np.float64) @ kernel[:, columns] + bias[columns]
  arguments = logits_of(features, case.head), auxiliary, case.labels, OLD, NEW, 0.7
  on_logits, on_auxiliary = der_reference.gradients(*arguments)
  new_block = slice(TASK * WIDTH, (TASK + 1) * WIDTH)
  case.assert_gradients(features, der_reference.loss(*arguments), on_logits,
                        shift=on_logits @ seen_kernel(case.head, new_block).T + on_auxiliary @ kernel[:, columns].T)
  expected = np.zeros((WIDTH, 8))
  expected[:, columns] = case.x.T @ on_auxiliary
  close(case.gradient["classifier"]["auxiliary_kernel"], expected)
  close(case.gradient["classifier"]["auxiliary_bias"][columns], on_auxiliary.sum(axis=0))


def test_der_with_one_task_is_finetuning():
  """The same columns are drawn, to the bit, and the same step is taken."""
  method, plain = der(), methods.make("finetune", {}, memory=20)
  key = jax.random.key(5)
  empty = Networks({"backbone": {}, "classifier": method.head.init(WIDTH, 7, 1)}, {},
                   {"frozen": {"params": {}, "batch_stats": {}}})
  begun = method.stages[0].begin(empty, FIRST, key).params["classifier"]
  expected = plain.head.renew(key, plain.head.init(WIDTH, 7, 1), SEEN)
  for name in ("kernel", "bias"):
    np.testing.assert_array_equal(begun[name], expected[name])
  case = Case(method, "train", around=FIRST)
  features = np.zeros((BATCH, TASKS * WIDTH))
  features[:, :WIDTH] = case.x
  logits = logits_of(features, case.head)
  on_logits = finetune_reference.gradient(logits, case.labels, NOTHING, SEEN)
  case.assert_gradients(features, finetune_reference.loss(logits, case.labels, NOTHING, SEEN), on_logits,
                        shift=on_logits @ seen_kernel(case.head, slice(WIDTH)).T)
  assert not case.gradient["classifier"]["auxiliary_kernel"].any()


@functools.cache
def before_and_after(name, stage, task=TASK, **options):
  """Networks before and after a stage's beginning, all entries of the backbone, statistics and stack random."""
  method = methods.make(name, options, memory=20)
  rng = np.random.default_rng(7)
  def draw(shape):
    return rng.normal(size=shape).astype(np.float32)
  head = drawn_head(method, rng)
  head["kernel"][:, ~SEEN] = 0.0
  before = Networks({"backbone": {"weight": draw((3, 2))}, "classifier": head}, {"mean": draw(2)}, {
      "frozen": {"params": {"weight": draw((method.stack(TASKS), 3, 2))},
                 "batch_stats": {"mean": draw((method.stack(TASKS), 2))}},
      **({"heads": {name: drawn_head(method, rng) for name in method.kept_heads}} if method.kept_heads else {})})
  begin = next(candidate for candidate in method.stages if candidate.name == stage).begin
  return before, jax.jit(begin)(before, context(task) if task else FIRST, jax.random.key(1))


def assert_trees_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def backbone(networks):
  return {"params": networks.params["backbone"], "batch_stats": networks.batch_stats}


def test_der_freezes_the_backbone_and_grows_the_head():
  before, after = before_and_after("der", "train")
  assert_trees_equal(backbone(after), backbone(before))
  for place in range(TASKS):
    expected = backbone(before) if place == TASK - 1 else frozen.take(before.carry["frozen"], place)
    assert_trees_equal(frozen.take(after.carry["frozen"], place), expected)
  old, new = before.params["classifier"], after.params["classifier"]
  copied = np.zeros((TASKS * WIDTH, 7), bool)
  copied[:(TASK + 1) * WIDTH] = der_reference.is_copied(OLD, WIDTH, TASK + 1)
  drawn = np.zeros_like(copied)
  drawn[:(TASK + 1) * WIDTH] = SEEN & ~copied[:(TASK + 1) * WIDTH]
  np.testing.assert_array_equal(np.where(drawn, 0.0, new["kernel"]), np.where(drawn, 0.0, old["kernel"]))
  bound = der_reference.bound((TASK + 1) * WIDTH)
  drawn = np.asarray(new["kernel"])[drawn]
  assert np.abs(drawn).max() <= bound and np.abs(drawn).max() > 0.9 * bound and len(np.unique(drawn)) == drawn.size
  np.testing.assert_array_equal(new["bias"], np.where(NEW, 0.0, old["bias"]))
  assert not np.asarray(new["auxiliary_bias"]).any()
  np.testing.assert_array_equal(np.asarray(new["auxiliary_kernel"]).any(axis=0), [*NEW, True])


def test_der_freezes_nothing_in_the_first_task():
  before, after = before_and_after("der", "train", task=0)
  assert_trees_equal(after.carry, before.carry)


def test_der_aligns_new_columns_over_all_blocks():
  kernel = np.random.default_rng(0).normal(size=(TASKS * WIDTH, 7)).astype(np.float32) * np.where(NEW, 3, 1)
  head = {"kernel": jnp.asarray(kernel), "bias": jnp.ones(7)}
  aligned = der().stages[0].end(head, context())
  np.testing.assert_allclose(aligned["kernel"], wa_reference.aligned(kernel, OLD, NEW), rtol=1e-5)
  np.testing.assert_array_equal(aligned["bias"], head["bias"])
  assert der(aligned=False).stages[0].end is None


# ---------------------------------------------------------------------------------------------------------- FOSTER


def foster(**options):
  return methods.make("foster", options, memory=20)


@pytest.mark.parametrize("old_features", ["train", "zero"])
def test_foster_boosts(old_features):
  kept = {"kernel": np.vstack([np.random.default_rng(0).normal(size=(WIDTH, 7)), np.zeros((WIDTH, 7))])}
  case = Case(foster(distillation_weight=0.6, temperature=3.0, boosting_beta=0.9, old_features=old_features), "boost",
              kept={name: leaf.astype(np.float32) for name, leaf in kept.items()})
  features = np.concatenate([case.stacked[0], case.x], axis=1).astype(np.float64)
  kernel, bias = case.head["auxiliary_kernel"], case.head["auxiliary_bias"]
  new_features = np.where(SEEN, case.x.astype(np.float64) @ kernel + bias, 0.0)
  arguments = (logits_of(features, case.head), new_features, logits_of(features, case.kept["old"]), case.labels, OLD,
               NEW, COUNTS, 0.9, 0.6, 3.0)
  on_logits, on_new = foster_reference.boosting_gradients(*arguments)
  trained = np.tile(SEEN, (2 * WIDTH, 1))
  if old_features == "zero":
    trained[:WIDTH, NEW] = False
  assert case.loss == pytest.approx(foster_reference.boosting_loss(*arguments), rel=2e-5)
  close(case.gradient["classifier"]["kernel"], np.where(trained, features.T @ on_logits, 0.0))
  close(case.gradient["classifier"]["bias"], on_logits.sum(axis=0))
  close(case.gradient["classifier"]["auxiliary_kernel"], case.x.T @ on_new)
  close(case.gradient["backbone"]["shift"],
        on_logits @ seen_kernel(case.head, slice(WIDTH, None)).T + on_new @ np.where(SEEN, kernel, 0).T)


def test_foster_compresses():
  case = Case(foster(compression_beta=0.8, temperature=3.0), "compress")
  features = np.concatenate([case.x, np.zeros((BATCH, WIDTH))], axis=1).astype(np.float64)
  both = np.concatenate(list(case.stacked), axis=1)
  arguments = logits_of(features, case.head), logits_of(both, case.kept["boosted"]), SEEN, COUNTS, 0.8, 3.0
  on_logits = foster_reference.compression_gradient(*arguments)
  case.assert_gradients(features, foster_reference.compression_loss(*arguments), on_logits,
                        shift=on_logits @ seen_kernel(case.head, slice(WIDTH)).T)
  assert not case.gradient["classifier"]["auxiliary_kernel"].any()


def test_foster_first_task_is_finetuning():
  case = Case(foster(), "train", around=FIRST)
  features = np.concatenate([case.x, np.zeros((BATCH, WIDTH))], axis=1).astype(np.float64)
  logits = logits_of(features, case.head)
  on_logits = finetune_reference.gradient(logits, case.labels, NOTHING, SEEN)
  case.assert_gradients(features, finetune_reference.loss(logits, case.labels, NOTHING, SEEN), on_logits,
                        shift=on_logits @ seen_kernel(case.head, slice(WIDTH)).T)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.96, 0.9999])
def test_class_weights(beta):
  weights = class_weights.effective_number(jnp.asarray(COUNTS), SEEN, beta)
  np.testing.assert_allclose(weights, foster_reference.class_weights(COUNTS, SEEN, beta), rtol=2e-3)
  assert float(weights[SEEN].sum()) == pytest.approx(SEEN.sum(), rel=1e-6)


def test_foster_with_weights_one_trains_plain_logits():
  """beta 0, or equal counts: the loss is cross-entropy of the logits themselves."""
  np.testing.assert_array_equal(class_weights.effective_number(COUNTS, SEEN, 0.0), np.ones(7))
  np.testing.assert_allclose(class_weights.effective_number(np.full(7, 30.0), SEEN, 0.96), np.ones(7), rtol=1e-6)
  losses = foster(boosting_beta=0.0, compression_beta=0.0).stages[1].losses
  rng = np.random.default_rng(2)
  logits, labels = jnp.asarray(rng.normal(size=(BATCH, 7)), jnp.float32), jnp.asarray(rng.integers(0, 5, BATCH))
  outputs = Outputs(logits, logits, jnp.zeros((BATCH, 1)), (), {"auxiliary": logits})
  loss = losses["cross_entropy"].value(outputs, None, labels, jax.tree.map(jnp.asarray, context()))
  assert float(loss) == pytest.approx(finetune_reference.loss(np.asarray(logits), labels, OLD, NEW), rel=1e-6)


def test_foster_begins_boosting_with_a_copy_of_the_old_network():
  before, after = before_and_after("foster", "boost")
  assert_trees_equal(backbone(after), backbone(before))
  assert_trees_equal(frozen.take(after.carry["frozen"], 0), backbone(before))
  assert_trees_equal(after.carry["heads"]["old"], before.params["classifier"])
  old, new = (np.asarray(networks.params["classifier"]["kernel"]) for networks in (before, after))
  np.testing.assert_array_equal(new[:WIDTH, OLD], old[:WIDTH, OLD])
  drawn = np.concatenate([new[:WIDTH, NEW].ravel(), new[WIDTH:, SEEN].ravel()])
  assert 0.9 < np.abs(drawn).max() / der_reference.bound(2 * WIDTH) <= 1
  assert not (new[WIDTH:, SEEN] == old[WIDTH:, SEEN]).any()


def test_foster_without_old_features_for_new_classes():
  _, after = before_and_after("foster", "boost", old_features="zero")
  kernel = np.asarray(after.params["classifier"]["kernel"])
  assert not kernel[:WIDTH, NEW].any() and kernel[WIDTH:, NEW].all() and kernel[:, OLD].all()


@pytest.mark.parametrize("align", ["none", "teacher", "student", "both"])
def test_foster_begins_compression_with_the_old_network(align):
  before, after = before_and_after("foster", "compress", align=align, align_base=0.8)
  assert_trees_equal(backbone(after), frozen.take(before.carry["frozen"], 0))
  assert_trees_equal(frozen.take(after.carry["frozen"], 1), backbone(before))
  boosted, kept = before.params["classifier"], after.carry["heads"]
  expected = foster_reference.aligned(boosted["kernel"], OLD, NEW, 0.8) if align in (
      "teacher", "both") else boosted["kernel"]
  np.testing.assert_allclose(kept["boosted"]["kernel"][:, SEEN], expected[:, SEEN], rtol=1e-5)
  kernel, old = np.asarray(after.params["classifier"]["kernel"]), before.carry["heads"]["old"]["kernel"]
  np.testing.assert_array_equal(kernel[:WIDTH, OLD], old[:WIDTH, OLD])
  np.testing.assert_array_equal(kernel[WIDTH:], old[WIDTH:])
  assert 0.8 < np.abs(kernel[:WIDTH, NEW]).max() / der_reference.bound(WIDTH) <= 1
  end = foster(align=align, align_base=0.8).stages[2].end
  assert (end is None) == (align in ("none", "teacher"))
  if end is not None:
    np.testing.assert_allclose(end({"kernel": boosted["kernel"]}, context())["kernel"],
                               foster_reference.aligned(boosted["kernel"], OLD, NEW, 0.8), rtol=1e-5)


def test_foster_scores():
  """The compressed network predicts, the dual one stands beside it; after the first task they are one."""
  method, rng = foster(), np.random.default_rng(4)
  assert list(method.scores) == ["compressed", "dual", "nearest_mean"]
  head, features = drawn_head(method, rng), rng.normal(size=(BATCH, 2 * WIDTH)).astype(np.float32)
  logits = jnp.asarray(rng.normal(size=(BATCH, 7)), jnp.float32)
  outputs = Outputs(logits, logits, jnp.zeros((BATCH, 1)), (), {}, jnp.asarray(features))
  for around, expected in ((context(), logits_of(features, head)), (FIRST, np.asarray(logits))):
    scores = {name: np.asarray(method.scores[name](outputs, {"heads": {"boosted": head}}, around))
              for name in ("compressed", "dual")}
    np.testing.assert_array_equal(scores["compressed"], logits)
    np.testing.assert_allclose(scores["dual"][:, SEEN], expected[:, SEEN], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- MAFDRC


def mafdrc(**options):
  return methods.make("mafdrc", options, memory=20)


def branch_logits(head, name, features):
  """z of a branch over standardised features, float64; 0 in unseen columns."""
  return logits_of(head[f"{name}_scale"].astype(np.float64) * features + head[f"{name}_shift"], head)


MERGED = {"old_branch": np.float32(1)}


def assert_two_branches(case, on_old, on_new, *, trained=SEEN, features):
  """Gradients of the head and of the backbone from those of z_O and z_N."""
  kernel, head, gradient = seen_kernel(case.head), case.head, case.gradient["classifier"]
  old, new = (head[f"{name}_scale"] * features + head[f"{name}_shift"] for name in ("old", "new"))
  close(gradient["kernel"], np.where(trained, old.T @ on_old + new.T @ on_new, 0.0))
  close(gradient["bias"], np.where(trained, (on_old + on_new).sum(axis=0), 0.0))
  close(gradient["new_scale"], (features * (on_new @ kernel.T)).sum(axis=0))
  close(gradient["new_shift"], (on_new @ kernel.T).sum(axis=0))
  for name in ("old_scale", "old_shift", "old_branch"):
    assert not gradient[name].any()
  close(case.gradient["backbone"]["shift"],
        (on_old @ kernel.T) * head["old_scale"] + (on_new @ kernel.T) * head["new_scale"])


def test_mafdrc_first_task_trains_the_new_branch():
  case = Case(mafdrc(), "train", around=FIRST, change={"old_branch": np.float32(0)})
  logits = branch_logits(case.head, "new", case.x)
  assert case.loss == pytest.approx(finetune_reference.loss(logits, case.labels, NOTHING, SEEN), rel=2e-5)
  on_logits = finetune_reference.gradient(logits, case.labels, NOTHING, SEEN)
  assert_two_branches(case, 0 * on_logits, on_logits, features=case.x.astype(np.float64))


def test_mafdrc_adapts_to_the_new_classes():
  labels = np.asarray([3, 4] * 6)
  case = Case(mafdrc(), "adapt", labels=labels, change=MERGED)
  logits = branch_logits(case.head, "old", case.x) + branch_logits(case.head, "new", case.x)
  assert case.loss == pytest.approx(mafdrc_reference.adaptation_loss(logits, labels, NEW), rel=2e-5)
  on_logits = mafdrc_reference.adaptation_gradient(logits, labels, NEW)
  assert_two_branches(case, on_logits, on_logits, trained=NEW, features=case.x.astype(np.float64))


def test_mafdrc_fuses_as_the_page_says():
  options = {"branch_weight": 0.3, "old_weight": 2.5, "new_weight": 0.8, "prior_power": 1.5, "temperature": 3.0}
  case = Case(mafdrc(**options), "fuse", change=MERGED)
  previous, adapted = (
      branch_logits(case.kept[name], "new", features) + case.kept[name]["old_branch"] * branch_logits(
          case.kept[name], "old", features) for name, features in zip(("previous", "adapted"), case.stacked))
  arguments = (branch_logits(case.head, "old", case.x), branch_logits(case.head, "new", case.x), previous, adapted,
               case.labels, OLD, NEW, COUNTS)
  named = {"alpha": 0.3, "beta1": 2.5, "beta2": 0.8, "power": 1.5, "temperature": 3.0}
  assert case.loss == pytest.approx(mafdrc_reference.fusion_loss(*arguments, **named), rel=2e-5)
  assert_two_branches(case, *mafdrc_reference.fusion_gradients(*arguments, **named),
                      features=case.x.astype(np.float64))


@pytest.mark.parametrize("task", [1, 2])
def test_mafdrc_merges_its_branches(task):
  rng = np.random.default_rng(0)
  head = {name: rng.normal(size=np.shape(leaf)).astype(np.float32)
          for name, leaf in mafdrc().head.init(WIDTH, 7, TASKS).items()}
  head["old_branch"] = np.float32(task > 1)
  merged = two_branch.merge(head)
  for name in ("scale", "shift"):
    np.testing.assert_allclose(
        merged[f"old_{name}"], mafdrc_reference.merged(head[f"old_{name}"], head[f"new_{name}"], task), rtol=1e-6)
    np.testing.assert_array_equal(merged[f"new_{name}"], head[f"new_{name}"])
  assert merged["old_branch"] == 1


def test_mafdrc_keeps_the_previous_and_the_adapted_network():
  before, after = before_and_after("mafdrc", "adapt")
  assert_trees_equal(backbone(after), backbone(before))
  assert_trees_equal(frozen.take(after.carry["frozen"], 0), backbone(before))
  assert_trees_equal(after.carry["heads"]["previous"], before.params["classifier"])
  assert_trees_equal(after.params["classifier"], two_branch.merge(before.params["classifier"]))
  before, after = before_and_after("mafdrc", "fuse")
  assert_trees_equal(after.params, before.params)
  assert_trees_equal(frozen.take(after.carry["frozen"], 1), backbone(before))
  assert_trees_equal(frozen.take(after.carry["frozen"], 0), frozen.take(before.carry["frozen"], 0))
  assert_trees_equal(after.carry["heads"]["adapted"], before.params["classifier"])


@pytest.mark.parametrize("train", [True, False])
def test_a_branch_is_a_batch_norm_of_the_last_map(train):
  """Through a real backbone: standardised features and the head are BN, pooling and the shared layer."""
  plain, standardised = (models.make_backbone("resnet8", platform="cpu", standardised=flag, maps=True)
                         for flag in (False, True))
  images = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))
  variables = jax.jit(functools.partial(standardised.init, train=False))(jax.random.key(1), images)
  variables["batch_stats"]["Standardise_0"] = {"mean": 0.1 + jnp.arange(64) / 64, "var": 0.5 + jnp.arange(64) / 50}
  run = {"mutable": ["batch_stats"]} if train else {}
  (features, _), updated = (lambda applied: applied if train else (applied, None))(
      jax.jit(lambda v: standardised.apply(v, images, train=train, **run))(variables))
  rest = {"params": variables["params"], "batch_stats": {
      name: leaf for name, leaf in variables["batch_stats"].items() if name != "Standardise_0"}}
  plain_outputs = jax.jit(lambda v: plain.apply(v, images, train=train, **run))(rest)
  # Maps are returned before the last ReLU.
  maps = np.maximum((plain_outputs[0] if train else plain_outputs)[1][-1], 0)
  rng = np.random.default_rng(0)
  head = {name: rng.normal(size=np.shape(leaf)).astype(np.float32)
          for name, leaf in mafdrc().head.init(64, 7, 2).items()} | MERGED
  expected = {}
  running = variables["batch_stats"]["Standardise_0"]
  statistics = {} if train else {"mean": np.asarray(running["mean"]), "variance": np.asarray(running["var"])}
  for name in ("old", "new"):
    expected[name] = mafdrc_reference.branch(maps, head[f"{name}_scale"], head[f"{name}_shift"], head["kernel"],
                                             head["bias"], **statistics)
  everything = context(old=np.arange(7) < 3, new=np.arange(7) >= 3)
  branches = mafdrc().head.branches(head, features, everything)
  total, _ = mafdrc().head.apply(head, features, everything)
  for name in ("old", "new"):
    np.testing.assert_allclose(branches[name], expected[name], rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(total, expected["old"] + expected["new"], rtol=1e-3, atol=1e-3)
  if train:
    moved = updated["batch_stats"]["Standardise_0"]
    np.testing.assert_allclose(moved["mean"], 0.9 * running["mean"] + 0.1 * maps.mean(axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(moved["var"], 0.9 * running["var"] + 0.1 * maps.var(axis=(0, 1, 2)), rtol=1e-3)
