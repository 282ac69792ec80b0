"""The train step (docs/method.md sections 4 to 6), independent of the method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gr_jax import mixing, seeding
from gr_jax.data.arrays import Data
from gr_jax.methods.base import Context, Loss, Method, Outputs, Stage, usual_mask
from gr_jax.models import Backbone, heads
from gr_jax.training import networks
from gr_jax.training.state import TrainState
from gr_jax.typing import AnyInteger

Augment = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Batch(NamedTuple):
  """What one step trains on.

  Attributes:
    rows: [local batch] int32, this device's rows of the data; a stage with a source does not use them.
    key: the step's key, equal on all devices.
    epoch: int32 scalar, of the stage.
  """
  rows: jax.Array
  key: jax.Array
  epoch: AnyInteger


class StepMetrics(NamedTuple):
  """Metrics of one step, or summed over `steps` steps; float32.

  Attributes:
    steps: scalar.
    losses: name -> scalar, for every term of the stage; 0 for a term that needs a teacher if there is none.
    reports: the method's reports by name: scalars or [classes].
  """
  steps: jax.Array
  losses: dict[str, jax.Array]
  reports: dict[str, jax.Array]

  @property
  def loss(self) -> Any:
    return sum(self.losses.values())


def make_train_step(
    *, model: Backbone, method: Method, stage: Stage, tx: optax.GradientTransformationExtraArgs,
    augment: Augment | None = None, axis_name: str | None = None, epochs: int = 1
    ) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Binds everything that is fixed for a stage; returns the pure step.

  Args:
    model: Linen backbone, called (images, train=bool) -> (features [batch, features], maps); batch norm in it must
      carry `axis_name`.
    method, stage: the method and the stage to train.
    tx: gradient -> update, learning rate included; called with `epoch`.
    augment: (keys [batch], images [batch, ...], sizes [batch, 2]) -> model inputs; None: the unchanged images as
      float32.
    axis_name: the pmap axis; None outside pmap.
    epochs: of the stage, for `Context.progress`.

  Returns:
    step(state, teacher, context, data, batch) -> (next state, metrics). `teacher` is {"params", "batch_stats"} of the
    previous task's model, preferably folded (folding.fold_teacher), or None; a stage with `growth` also takes "carry"
    in it, folded (frozen.fold_carry). In a stage with a source, `data` is the carry. All results are equal on all
    devices.
  """
  read, teach = stage.head or method.head, _make_teach(model, method, stage)

  def step(state: TrainState, teacher: Any, context: Context, data: Data, batch: Batch
           ) -> tuple[TrainState, StepMetrics]:
    context = context._replace(progress=batch.epoch / epochs)
    if stage.source is not None:
      x, (features, maps, labels) = None, _drawn(stage.source, batch.key, data, context)
      back_to_backbone, batch_stats, others = None, state.batch_stats, ()
    else:
      x, labels = _inputs(data, batch, augment, axis_name), {"clean": data.labels[batch.rows]}
      views = x
      if stage.mixing is not None:
        mixed, labels["mixed"] = _mixed(x, labels["clean"], batch.key, stage.mixing, context.old.shape[0], axis_name)
        views = jnp.concatenate([x, mixed])
      network = {"params": state.params["backbone"], "batch_stats": state.batch_stats}
      (features, maps), back_to_backbone, batch_stats = _encode(model, method, stage, network, views)
      others = networks.beside(model, stage.growth, teacher and teacher.get("carry"), views, context)
    student, back_to_head = jax.vjp(
        lambda head, features: networks.outputs(read, stage.growth, head, (features, maps), others, context),
        state.params["classifier"], features)
    target = teach(teacher, x, others, context)

    # All losses are functions of the outputs: their cotangents are added there, and one backward pass serves them all.
    values, pulls = {}, {}
    for name, loss in stage.losses.items():
      if loss.teacher and target is None:
        values[name] = jnp.zeros(())
      else:
        values[name], pulls[name] = jax.value_and_grad(_of_view(loss, stage))(
            student, target, labels[loss.view], context)
    together = _sum(list(pulls.values()))
    summed, on_features = back_to_head(together)
    # A rule needs the head's gradient of each loss.
    head_grads = {"sum": summed} if stage.rule is None else {
        name: back_to_head(pull)[0] for name, pull in pulls.items()}
    grads = {} if back_to_backbone is None else {"backbone": back_to_backbone((on_features, together.maps))}

    # Averaged once, before any norm: the norm of a mean is not the mean of the norms.
    if axis_name is not None:
      grads, head_grads, values = jax.lax.pmean((grads, head_grads, values), axis_name)
    total, rule_state = _sum(list(head_grads.values())), state.rule
    if stage.rule is not None:
      total, rule_state = stage.rule.update(
          total, state.rule, state.params["classifier"], gradients=head_grads, old=context.old, new=context.new,
          counts=context.original)
    tracked = state.tracked
    if stage.track is not None:
      tracked = stage.track.step(
          tracked, jax.lax.stop_gradient(_view(student, "clean", stage)), labels["clean"],
          lambda tree: tree if axis_name is None else jax.lax.psum(tree, axis_name))
    if stage.penalty is not None:
      penalty, pull = jax.value_and_grad(stage.penalty)(state.params["classifier"], tracked, context)
      values, total = {**values, "penalty": penalty}, _sum([total, pull])

    trained = {"classifier": heads.mask(state.params["classifier"], context.seen),
               **{name: state.params[name] for name in grads}}
    updates, opt_state = tx.update({**grads, "classifier": total}, state.opt_state, trained, epoch=batch.epoch)
    updates = _at_rates(updates, stage)
    params = {**state.params, **_updated({name: state.params[name] for name in trained}, updates)}
    params["classifier"] = _where_trained(params["classifier"], state.params["classifier"], stage, context)
    after = TrainState(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state,
                       rule=rule_state, tracked=tracked)
    return after, StepMetrics(jnp.ones(()), values, stage.report(rule_state))

  return step


def trained_params(params: dict, stage: Stage) -> dict:
  """The parameters that a stage's optimizer updates."""
  return params if stage.backbone == "train" else {"classifier": params["classifier"]}


def metrics_like(stage: Stage, rule_state: Any) -> StepMetrics:
  """Zeros in the form of a stage's metrics."""
  names = [*stage.losses, *(["penalty"] if stage.penalty is not None else [])]
  return StepMetrics(jnp.zeros(()), {name: jnp.zeros(()) for name in names},
                     jax.tree.map(jnp.zeros_like, stage.report(rule_state)))


def _inputs(data: Data, batch: Batch, augment: Augment | None, axis_name: str | None) -> jax.Array:
  images, count = data.images[batch.rows], batch.rows.size
  if augment is None:
    return images.astype(jnp.float32)
  # One key per place in the global batch, so that the number of devices does not matter.
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
  keys = jax.vmap(jax.random.fold_in, (None, 0))(batch.key, first + jnp.arange(count))
  return augment(keys, images, data.sizes[batch.rows])


def _mixed(x: jax.Array, labels: jax.Array, key: jax.Array, concentration: float, num_classes: int,
           axis_name: str | None) -> tuple[jax.Array, jax.Array]:
  """This device's images mixed with partners from the global batch, and their targets [batch, classes]."""
  def gather(array: jax.Array) -> jax.Array:
    return array if axis_name is None else jax.lax.all_gather(array, axis_name, tiled=True)

  # Drawn for the global batch, so that the number of devices does not matter.
  for_share, for_partners = jax.random.split(seeding.of_mixing(key))
  share = mixing.draw_share(for_share, concentration)
  everyone, every_label = gather(x), gather(labels)
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * len(x)
  partners = jax.random.permutation(for_partners, len(everyone))[first + jnp.arange(len(x))]
  targets, partner_targets = (jax.nn.one_hot(classes, num_classes) for classes in (labels, every_label[partners]))
  return mixing.mix(x, everyone[partners], share), mixing.mix(targets, partner_targets, share)


def _drawn(source: Callable[..., tuple[jax.Array, jax.Array]], key: jax.Array, carry: Any, context: Context
           ) -> tuple[jax.Array, tuple, dict[str, jax.Array]]:
  """Features, maps and labels of a stage that sees no images."""
  features, targets = source(key, carry, context)
  return features, (), {"clean": targets}


def _view(outputs: Outputs, view: str, stage: Stage) -> Outputs:
  """Outputs of one view: the batch is the clean images and, with mixing, the mixed ones after them."""
  if stage.mixing is None:
    return outputs
  half = len(outputs.logits) // 2
  return jax.tree.map(lambda leaf: leaf[:half] if view == "clean" else leaf[half:], outputs)


def _of_view(loss: Loss, stage: Stage) -> Callable[..., jax.Array]:
  """A loss as a function of the outputs of all views."""
  def value(student: Outputs, teacher: Any, labels: jax.Array, context: Context) -> jax.Array:
    return loss.value(_view(student, loss.view, stage), teacher, labels, context)

  return value


def _encode(model: Backbone, method: Method, stage: Stage, network: dict, x: jax.Array
            ) -> tuple[tuple[jax.Array, tuple], Callable[[Any], Any] | None, Any]:
  """((features, maps), their cotangent -> gradient of the backbone, or None if it is frozen, batch_stats)."""
  if stage.backbone == "frozen":
    features, maps = jax.lax.stop_gradient(model.apply(network, x, train=False))
    return (features, maps if method.uses_maps else ()), None, network["batch_stats"]

  def backbone(params):
    (features, maps), updated = model.apply({**network, "params": params}, x, train=True, mutable=["batch_stats"])
    return (features, maps if method.uses_maps else ()), updated.get("batch_stats", {})

  encoded, backward, batch_stats = jax.vjp(backbone, network["params"], has_aux=True)
  return encoded, lambda pull: backward(pull)[0], batch_stats


def _make_teach(model: Backbone, method: Method, stage: Stage) -> Callable[..., Any]:
  """(teacher, x, others, context) -> what losses get as teacher, without gradient; None if there is none."""
  def teach(teacher: Any, x: Any, others: jax.Array | tuple[()], context: Context) -> Any:
    if stage.teach is not None:
      assert isinstance(others, jax.Array)
      # With mixed views, the clean ones come first.
      return jax.lax.stop_gradient(stage.teach(teacher["carry"], others[:len(x)], context))
    if teacher is None or "params" not in teacher:
      return None
    variables = {"params": teacher["params"]["backbone"], "batch_stats": teacher["batch_stats"]}
    features, maps = model.apply(variables, x, train=False)
    logits_and_scores = (stage.head or method.head).apply(teacher["params"]["classifier"], features, context)
    return jax.lax.stop_gradient(Outputs(*logits_and_scores, features, maps if method.uses_maps else ()))

  return teach


def _at_rates(updates: Any, stage: Stage) -> Any:
  """The updates with those of the head's parameters at the stage's rates for them."""
  if not stage.rates:
    return updates
  return {**updates, "classifier": {
      name: stage.rates.get(name, 1.0) * update for name, update in updates["classifier"].items()}}


def _updated(params: dict, updates: Any) -> Any:
  """Of the form of `params`, which optax's annotation does not say."""
  return optax.apply_updates(params, updates)


def _sum(trees: list[Any]) -> Any:
  return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)


def _where_trained(after: dict, before: dict, stage: Stage, context: Context) -> dict:
  """The updated head where the stage trains it, else the old one; stages without a mask train the seen columns."""
  masks = (usual_mask if stage.trainable is None else stage.trainable)(before, context)
  return {name: jnp.where(masks[name], after[name], before[name]) if name in masks else after[name] for name in after}
