"""Add-ons: steps against float64 NumPy (tests/references), the properties that define them, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import differences, gpa, gvalign, lucir, lws, notation
from test_steps import BATCH, FEATURES, NEW, OLD, RUBBISH, SEEN, TASKS, Case, close, context

from gr_jax import class_statistics, methods, mixing, optimizer, seeding
from gr_jax.data.arrays import Data
from gr_jax.errors import UserError
from gr_jax.methods import addons
from gr_jax.methods.addons import gpa as gpa_addon
from gr_jax.methods.base import Networks, Outputs
from gr_jax.training import step as steps
from gr_jax.training.state import TrainState


def make(name, chosen, **options):
  return methods.make(name, options, memory=20, chosen=addons.names(chosen))


class Ones:
  """A backbone without parameters: features are the images."""
  num_features = FEATURES

  def apply(self, variables, x, *, train, mutable=None):
    del variables, train
    return (x, ()) if mutable is None else ((x, ()), {})


def one_step(method, index, head, x, labels, *, data=None, rate=1.0, weight_decay=0.0, seed=0):
  """(state after one step of a stage, metrics) from a head, with features x [batch, features] and no teacher."""
  stage, params = method.stages[index], {"backbone": {}, "classifier": jax.tree.map(jnp.asarray, head)}
  tx = optimizer.sgd((rate,), momentum=0.9, weight_decay=weight_decay)
  step = steps.make_train_step(model=Ones(), method=method, stage=stage, tx=tx)
  state = TrainState(jnp.int32(0), params, {}, tx.init(steps.trained_params(params, stage)),
                     () if stage.rule is None else stage.rule.init(params["classifier"]),
                     () if stage.track is None else stage.track.init(params["classifier"]))
  given = Data(jnp.asarray(x), jnp.ones((len(x), 2), jnp.int32), jnp.asarray(labels, jnp.int32))
  return jax.jit(step)(state, None, context(), given if data is None else data,
                       steps.Batch(jnp.arange(len(x)), jax.random.key(seed), jnp.int32(0)))


def drawn_case(seed=0, *, cosine=True, scale=None):
  """(head with rubbish in unseen columns, features, labels)."""
  rng = np.random.default_rng(seed)
  kernel = rng.normal(size=(FEATURES, 7)).astype(np.float32)
  kernel[:, ~SEEN] = RUBBISH
  head = {"kernel": kernel, "scale": np.float32(1.7)} if cosine else {
      "kernel": kernel, "bias": rng.normal(size=7).astype(np.float32)}
  if scale is not None:
    head["class_scale"] = np.where(SEEN, scale, RUBBISH).astype(np.float32)
  return head, rng.normal(size=(BATCH, FEATURES)).astype(np.float32), rng.integers(0, 5, BATCH).astype(np.int32)


# ---------------------------------------------------------------------------------------------------------------- LWS


@pytest.mark.parametrize("name", ["gr", "lucir"])
def test_scales_of_one_are_the_identity(name):
  plain, scaled = methods.make(name, {}, memory=20).head, make(name, "lws").head
  params = scaled.renew(jax.random.key(0), scaled.init(FEATURES, 7, TASKS), SEEN)
  plain_head = plain.renew(jax.random.key(0), plain.init(FEATURES, 7, TASKS), SEEN)
  assert set(params) == {*plain_head, "class_scale"}
  features = jax.random.normal(jax.random.key(1), (4, FEATURES))
  for ours, expected in zip(scaled.apply(params, features, context()), plain.apply(plain_head, features, context())):
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("name", ["lwf", "lucir"])
def test_first_stage_and_its_teacher_ignore_the_scales(name):
  """With weight decay too, which would otherwise shrink them."""
  plain = Case(methods.make(name, {}, memory=20))
  scaled = Case(make(name, "lws"), scale=[2.0, 0.5, 3.0, 1.0, 7.0, 1.0, 1.0])
  assert scaled.loss == plain.loss
  for part in plain.gradient["classifier"]:
    np.testing.assert_array_equal(scaled.gradient["classifier"][part], plain.gradient["classifier"][part])
  assert not scaled.gradient["classifier"]["class_scale"].any()
  head, x, labels = drawn_case(cosine=name == "lucir", scale=2.0)
  after, _ = one_step(make(name, "lws"), 0, head, x, labels, weight_decay=0.1)
  np.testing.assert_array_equal(after.params["classifier"]["class_scale"], head["class_scale"])


@pytest.mark.parametrize("name", ["finetune", "lucir"])
def test_second_stage_trains_new_columns_and_all_scales(name):
  scale = np.asarray([0.5, 1.2, 0.7, 1.0, 2.0, 1.0, 1.0])
  head, x, labels = drawn_case(cosine=name == "lucir", scale=scale)
  after, metrics = one_step(make(name, "lws", lws_scale_rate=0.25), 1, head, x, labels)
  kernel = np.where(SEEN, head["kernel"], 1.0).astype(np.float64)
  if name == "lucir":
    logits = lambda kernel: lucir.logits(x, kernel, 1.7, SEEN)
  else:
    logits = lambda kernel: x.astype(np.float64) @ kernel + np.where(SEEN, head["bias"], 0.0)
  assert float(metrics.loss) == pytest.approx(lws.loss(logits(kernel), scale, labels, SEEN), rel=1e-5)
  moved = {part: np.asarray(head[part]) - np.asarray(after.params["classifier"][part]) for part in head}
  expected = differences.numeric_gradient(lambda kernel: lws.loss(logits(kernel), scale, labels, SEEN), kernel)
  close(moved["kernel"], np.where(NEW, expected, 0.0))
  _, on_scale = lws.gradients(logits(kernel), scale, labels, SEEN, NEW)
  close(moved["class_scale"][SEEN], 0.25 * on_scale[SEEN])
  assert not moved["class_scale"][~SEEN].any() and not moved["kernel"][:, ~NEW].any()


def test_second_stage_has_thirty_of_160_epochs_and_half_a_cosine():
  stage = make("lucir", "lws").stages[1]
  assert [stage.epochs(epochs) for epochs in (160, 16, 10, 1)] == [30, 3, 2, 1]
  rates = optimizer.learning_rates(schedule=stage.schedule, base=stage.learning_rate, epochs=30, milestones=(), decay=1)
  np.testing.assert_allclose(rates, [lws.rate(epoch) for epoch in range(30)], rtol=1e-12)
  assert stage.weight_decay and stage.rates == {"class_scale": 0.1} and stage.rows == "present"
  assert make("joint", "lws").stages[1].rows == "all" and make("joint", "lws").min_memory == 0


# ------------------------------------------------------------------------------------------------------------ GVAlign


@pytest.mark.parametrize("name, options, trained", [
    ("lucir", {}, NEW),
    ("gr", {"head": "cosine", "reweighting": "none", "prior": False, "distillation": "none"}, SEEN)])
def test_mixed_view_adds_its_cross_entropy_and_leaves_the_clean_losses(name, options, trained):
  """Also where a gradient rule, here the plain sum, was made before the add-on added the term."""
  method, (head, x, labels) = make(name, "gvalign", **options), drawn_case()
  after, metrics = one_step(method, 0, head, x, labels, seed=3)
  for_share, for_partners = jax.random.split(seeding.of_mixing(jax.random.key(3)))
  share = float(mixing.draw_share(for_share, 1.0))
  partners = np.asarray(jax.random.permutation(for_partners, BATCH))
  mixed = share * x.astype(np.float64) + (1 - share) * x[partners]
  kernel = np.where(SEEN, head["kernel"], 1.0).astype(np.float64)

  def both(kernel):
    return (notation.cross_entropy(lucir.logits(x, kernel, 1.7, SEEN), labels, SEEN)
            + gvalign.mixed_loss(mixed, kernel, 1.7, labels, labels[partners], share, SEEN))

  clean = notation.cross_entropy(lucir.logits(x, kernel, 1.7, SEEN), labels, SEEN)
  assert float(metrics.losses["cross_entropy"]) == pytest.approx(clean, rel=1e-5)
  assert float(metrics.losses["mixed_cross_entropy"]) == pytest.approx(both(kernel) - clean, rel=1e-5)
  moved = head["kernel"] - np.asarray(after.params["classifier"]["kernel"])
  close(moved, np.where(trained, differences.numeric_gradient(both, kernel), 0.0))
  assert sorted(partners) == list(range(BATCH)) and 0 < share < 1


@pytest.mark.slow
@pytest.mark.parametrize("concentration", [0.4, 1.0, 3.0])
def test_shares_are_drawn_from_a_beta_distribution(concentration):
  """Mean 1 / 2, variance 1 / (4 (2 alpha + 1))."""
  shares = np.asarray(jax.vmap(lambda key: mixing.draw_share(key, concentration))(
      jax.random.split(jax.random.key(0), 4000)))
  assert shares.mean() == pytest.approx(0.5, abs=0.02) and ((shares >= 0) & (shares <= 1)).all()
  assert shares.var() == pytest.approx(1 / (4 * (2 * concentration + 1)), rel=0.06)


def measured(method, index, features, labels, carry, around):
  """The carry after a stage's measurement, in two blocks of which the second has an invalid row."""
  boundary, half = method.stages[index].before, len(features) // 2
  padded = np.concatenate([features, features[:1]])
  rows = (padded, np.r_[labels, labels[:1]], np.arange(len(padded)) < len(features))
  parts = [jax.jit(boundary.measure)(Outputs(None, None, block, ()), block_labels, valid, around)
           for block, block_labels, valid in zip(*(np.split(part, [half]) for part in rows))]
  return jax.jit(boundary.keep)(carry, jax.tree.map(np.add, *parts), around)


def test_statistics_are_means_and_numpys_covariance():
  method, rng = make("lucir", "gvalign"), np.random.default_rng(0)
  features, labels = rng.normal(size=(40, FEATURES)).astype(np.float32) + 1, np.repeat([0, 1, 2], [5, 25, 10])
  around = context(task=np.int32(0), counts=np.bincount(labels, minlength=7).astype(np.float32))
  carry = measured(method, 1, features, labels, method.init_carry(FEATURES, 7), around)
  np.testing.assert_allclose(carry["gvalign_means"], gvalign.prototypes(features, labels, 7), atol=1e-6)
  root = np.asarray(carry["gvalign_root"], np.float64)
  np.testing.assert_allclose(root @ root, gvalign.variance(features, labels) + 1e-6 * np.eye(FEATURES), atol=1e-6)
  later = measured(method, 1, 3 * features[:20], labels[:20], carry, context(counts=around.counts))
  # The covariance is that of the first task; means are measured in every task.
  np.testing.assert_array_equal(later["gvalign_root"], carry["gvalign_root"])
  assert not np.allclose(later["gvalign_means"], carry["gvalign_means"])


def test_statistics_are_of_plain_or_of_augmented_images():
  def augmented(**options):
    return make("lucir", "gvalign", **options).stages[1].before.augmented

  assert not augmented() and augmented(gvalign_statistics="augmented")


def test_covariance_of_few_images_has_a_root():
  rows = np.random.default_rng(1).normal(size=(3, FEATURES)).astype(np.float32)
  for count in (1, 2, 3):
    moments = class_statistics.moments(jnp.asarray(rows), np.arange(3) < count)
    expected = np.cov(rows[:count], rowvar=False) if count > 1 else np.zeros((FEATURES, FEATURES))
    covariance = np.asarray(class_statistics.covariance(moments))
    np.testing.assert_allclose(covariance, expected, atol=1e-6)
    root = np.asarray(class_statistics.root(covariance), np.float64)
    np.testing.assert_allclose(root @ root, expected + 1e-6 * np.eye(FEATURES), atol=2e-6)


def test_alignment_trains_the_whole_head_on_one_drawn_feature_of_each_class():
  method, (head, x, labels) = make("lucir", "gvalign"), drawn_case()
  rng = np.random.default_rng(2)
  carry = {"gvalign_means": rng.normal(size=(7, FEATURES)).astype(np.float32),
           "gvalign_root": 0.1 * rng.normal(size=(FEATURES, FEATURES)).astype(np.float32)}
  after, metrics = one_step(method, 1, head, x, labels, data=jax.tree.map(jnp.asarray, carry), seed=5)
  noise = np.asarray(jax.random.normal(jax.random.key(5), (7, FEATURES)), np.float64)
  drawn = carry["gvalign_means"] + noise @ carry["gvalign_root"].T
  kernel = np.where(SEEN, head["kernel"], 1.0).astype(np.float64)
  assert float(metrics.loss) == pytest.approx(gvalign.alignment_loss(drawn, kernel, 1.7, SEEN), rel=1e-5)
  moved = {part: np.asarray(head[part]) - np.asarray(after.params["classifier"][part]) for part in head}
  close(moved["kernel"], differences.numeric_gradient(
      lambda kernel: gvalign.alignment_loss(drawn, kernel, 1.7, SEEN), kernel) * SEEN)
  close(moved["scale"], differences.numeric_gradient(
      lambda eta: gvalign.alignment_loss(drawn, kernel, eta, SEEN), 1.7))
  # Old columns are trained too, those of unseen classes are not.
  assert np.abs(moved["kernel"][:, OLD]).max() > 1e-4 and not moved["kernel"][:, ~SEEN].any()


def test_a_class_without_a_mean_is_not_drawn():
  stage = make("lucir", "gvalign").stages[1]
  means = np.where(np.arange(7)[:, None] == 1, 0.0, 1.0).astype(np.float32) * np.ones((7, FEATURES), np.float32)
  _, targets = stage.source(jax.random.key(0), {"gvalign_means": jnp.asarray(means),
                                                "gvalign_root": jnp.zeros((FEATURES, FEATURES))}, context())
  np.testing.assert_array_equal(targets, np.diag(SEEN & (np.arange(7) != 1)).astype(np.float32))


# ---------------------------------------------------------------------------------------------------------------- GPA


@pytest.mark.parametrize("name", ["gr", "lucir"])
@pytest.mark.parametrize("variant", gpa_addon.VARIANTS)
def test_imprinted_columns_have_unit_norm(name, variant):
  method, (head, _, _) = make(name, "gpa", gpa_variant=variant), drawn_case(cosine=name == "lucir")
  means = np.random.default_rng(3).normal(size=(7, FEATURES)).astype(np.float32)
  def begun(at):
    return method.stages[0].begin(
        Networks({"classifier": head}, {}, {"gpa_means": jnp.asarray(means)}), at, None).params["classifier"]

  imprinted = begun(context())
  np.testing.assert_allclose(np.linalg.norm(np.asarray(imprinted["kernel"])[:, NEW], axis=0), 1.0, rtol=1e-6)
  np.testing.assert_allclose(np.asarray(imprinted["kernel"])[:, NEW], gpa.columns(means)[:, NEW], atol=1e-6)
  np.testing.assert_array_equal(np.asarray(imprinted["kernel"])[:, ~NEW], head["kernel"][:, ~NEW])
  if name == "gr":
    expected = gpa.bias(context().counts, NEW, 1e-6) if variant == "published" else np.zeros(7)
    np.testing.assert_allclose(np.asarray(imprinted["bias"])[NEW], expected[NEW], rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(imprinted["bias"])[~NEW], head["bias"][~NEW])
  nothing = np.zeros(7, bool)
  first = begun(context(old=nothing, new=SEEN))
  np.testing.assert_array_equal(first["kernel"], head["kernel"])


def test_anchor_pulls_new_columns_to_the_centroids_and_old_ones_are_frozen():
  method, (head, x, labels) = make("finetune", "gpa", gpa_weight=0.3, gpa_momentum=0.8), drawn_case(cosine=False)
  plain, (after, metrics) = one_step(methods.make("finetune", {}, memory=20), 0, head, x, labels)[0], one_step(
      method, 0, head, x, labels)
  centroids = gpa.centroids(np.zeros((7, FEATURES)), x, labels, 0.8)
  np.testing.assert_allclose(after.tracked, centroids, atol=1e-6)
  assert float(metrics.losses["penalty"]) == pytest.approx(gpa.anchor(head["kernel"], centroids, NEW, 0.3), rel=1e-5)
  moved = head["kernel"] - np.asarray(after.params["classifier"]["kernel"])
  without = head["kernel"] - np.asarray(plain.params["classifier"]["kernel"])
  close(moved, np.where(NEW, without + gpa.anchor_gradient(head["kernel"], centroids, NEW, 0.3), 0.0))
  assert np.abs(without[:, OLD]).max() > 1e-3
  again = gpa.centroids(centroids, x, labels, 0.8)
  outputs = Outputs(None, None, jnp.asarray(x), ())
  stepped = method.stages[0].track.step(after.tracked, outputs, labels, lambda tree: tree)
  np.testing.assert_allclose(stepped, again, atol=1e-6)


def test_the_robust_variant_trains_what_the_method_trains():
  stage, plain = make("lwf", "gpa", gpa_variant="robust").stages[0], methods.make("lwf", {}, memory=20).stages[0]
  assert stage._replace(before=None, begin=None, losses={}) == plain._replace(losses={})


# -------------------------------------------------------------------------------------------------------- All of them


def test_add_ons_wrap_in_the_order_given():
  """LWS leaves the stages before it without scales; GVAlign after it aligns the scaled classifier."""
  names = lambda method: [stage.name for stage in method.stages]
  inner, outer = make("lucir", "lws,gvalign"), make("lucir", "gvalign, lws")
  assert names(inner) == ["train", "scale_classes", "align"] and names(outer) == ["train", "align", "scale_classes"]
  assert [stage.head is None for stage in inner.stages] == [False, True, True]
  assert [stage.head is None for stage in outer.stages] == [False, False, True]
  assert set(make("lucir", "gvalign,gpa").init_carry(FEATURES, 7)) == {
      "gvalign_means", "gvalign_root", "gpa_means", "exemplar_means", "has_mean"}


@pytest.mark.parametrize("name, options", [
    pytest.param("gr", {}, marks=pytest.mark.slow), ("lucir", {"reweighting": "dgr"})])
def test_add_ons_and_parts_together(name, options):
  """The rule of Gradient Reweighting sees neither the scales nor eta, on a method's own rule and on a combined one."""
  method = make(name, "gpa,lws", **options)
  head, x, labels = drawn_case(cosine=name == "lucir", scale=2.0)
  after, metrics = one_step(method, 0, head, x, labels)
  plain_head = {part: values for part, values in head.items() if part != "class_scale"}
  alone, _ = one_step(make(name, "gpa", **options), 0, plain_head, x, labels)
  assert np.isfinite(float(metrics.loss)) and after.rule.phi.shape == (7,)
  np.testing.assert_array_equal(after.params["classifier"]["kernel"], alone.params["classifier"]["kernel"])


def test_gvalign_needs_an_exemplar_of_each_class():
  with pytest.raises(UserError, match="gr with gvalign needs 1 or more exemplars"):
    methods.make("gr", {"head": "cosine"}, memory=0, chosen=("gvalign",))


@pytest.mark.parametrize("name, chosen, options, words", [
    ("lucir", "lvs", {}, "'lvs' is no add-on; it can be 'lws', 'gvalign', 'gpa'; did you mean 'lws'"),
    ("lucir", "lws,gpa,lws", {}, "addons is 'lws,gpa,lws', which names 'lws' twice"),
    ("bic", "lws", {}, "'lws' cannot wrap method 'bic': it needs a head of kind 'linear' or 'cosine' or .*is 'other'"),
    ("gr", "gvalign", {}, "'gvalign' cannot wrap method 'gr': it needs a head of kind 'cosine' .* is 'linear'"),
    ("icarl", "lws", {}, "'lws' cannot wrap method 'icarl': it changes only .*predicts by 'nearest_mean'"),
    ("simplecil", "gpa", {}, "'gpa' cannot wrap method 'simplecil': it needs a stage that trains the backbone"),
    ("lucir", "", {"lws_epochs_share": 0.5}, "of the add-on 'lws', which is not chosen; add --config.addons=lws"),
    ("lucir", "lws", {"lws_epochs": 3}, "did you mean method_options.lws_epochs_share"),
    ("lucir", "lws", {"lws_epochs_share": 0.0}, "lws_epochs_share is 0.0; it must be above 0"),
    ("lucir", "gvalign", {"gvalign_steps": 0}, "gvalign_steps is 0; it must be 1 or more"),
    ("lucir", "gpa", {"gpa_variant": "strong"}, "gpa_variant is 'strong'; it can be 'published', 'robust'"),
    ("lucir", "gpa", {"gpa_momentum": 1.0}, "gpa_momentum is 1.0; it must be below 1")])
def test_what_cannot_be_wrapped_is_refused(name, chosen, options, words):
  with pytest.raises(UserError, match=words):
    make(name, chosen, **options)


def test_an_add_on_may_need_exemplars():
  with pytest.raises(UserError, match="memory.per_class is 0, but finetune with lws needs 1 or more"):
    methods.make("finetune", {}, memory=0, chosen=("lws",))


def test_rates_of_parameters_multiply_the_update():
  """Momentum and decay included, as an optimizer with a group of its own would."""
  method, (head, x, labels) = make("finetune", "lws", lws_scale_rate=0.0), drawn_case(cosine=False, scale=2.0)
  after, _ = one_step(method, 1, head, x, labels, weight_decay=0.1)
  np.testing.assert_array_equal(after.params["classifier"]["class_scale"], head["class_scale"])
