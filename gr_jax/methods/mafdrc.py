"""MAFDRC (Chen & Chang, "Dynamic Residual Classifier for Class Incremental Learning", ICCV 2023)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gr_jax import device_axis, losses
from gr_jax.methods.base import Context, Growth, HeadMask, HeadParams, Loss, Method, Networks, Outputs, Stage, logits
from gr_jax.models import frozen
from gr_jax.models.two_branch import merge, two_branch

# Added to the power of a class's share before its logarithm.
_SHARE_OFFSET = 1e-12


def make(*, adaptation_epochs_share: float, fusion_epochs_share: float, branch_weight: float, old_weight: float,
         new_weight: float, prior_power: float, temperature: float) -> Method:
  """Builds the method: a residual classifier of two branches; model adaptation, then model fusion.

  When a later task begins, the branches are merged into the old one, which is then frozen. Adaptation: cross-entropy
  among the new classes, on their images alone. Fusion, on all images present, with eta = z + log(pi^prior_power) and
  without weight decay: L = branch_weight L_ice + (1 - branch_weight) CE(eta) + old_weight KD_T(eta, previous model)
  over the old classes + new_weight KD_T(eta, adapted model) over the new ones. L_ice is the cross-entropy of each
  branch, the old one's on images of old classes only. As in the released code, the teachers' logits have no prior.

  Three accidents of the released code are left out: the prior is assigned to classes in the order in which a loader
  meets them; weight decay shrinks the old columns during adaptation; the fusion restarts the running statistics. Its
  term over stage maps for a large first task is commented out there, and left out here.

  Args:
    adaptation_epochs_share, fusion_epochs_share: epochs over those of the first task; 70 and 130 of 200.
    branch_weight, old_weight, new_weight: alpha, beta_1 and beta_2.
    prior_power: of the classes' shares pi.
    temperature: T of both distillations; no T^2.
  """
  head = two_branch()

  def begin_adaptation(networks: Networks, context: Context, key: jax.Array) -> Networks:
    networks = _keep(networks, 0, "previous")
    return networks._replace(params={**networks.params, "classifier": merge(networks.params["classifier"])})

  def begin_fusion(networks: Networks, context: Context, key: jax.Array) -> Networks:
    return _keep(networks, 1, "adapted")

  def teach(carry: dict[str, Any], others: jax.Array, context: Context) -> dict[str, jax.Array]:
    return {name: head.apply(carry["heads"][name], features, context)[0]
            for name, features in zip(("previous", "adapted"), jnp.split(others, 2, axis=1))}

  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.seen)

  def among_new(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.new)

  def adjusted(student: Outputs, context: Context) -> jax.Array:
    share = jnp.where(context.seen, context.counts / jnp.sum(context.counts), 1.0)
    return student.logits + jnp.log(share ** prior_power + _SHARE_OFFSET)[None, :]

  def full(student: Outputs, teacher: Any, labels: jax.Array, context: Context) -> jax.Array:
    return (1.0 - branch_weight) * losses.cross_entropy(adjusted(student, context), labels, context.seen)

  def branches(student: Outputs, teacher: Any, labels: jax.Array, context: Context) -> jax.Array:
    old, new = (losses.cross_entropies(student.branches[name], labels, context.seen) for name in ("old", "new"))
    is_old = jnp.asarray(context.old)[labels].astype(jnp.float32)
    # Divided by the number of terms in the global batch.
    return branch_weight * jnp.mean(is_old * old + new) / (device_axis.mean(jnp.mean(is_old)) + 1.0)

  def from_previous(student: Outputs, teacher: Any, labels: jax.Array, context: Context) -> jax.Array:
    return old_weight * losses.distillation(adjusted(student, context), teacher["previous"], context.old, temperature)

  def from_adapted(student: Outputs, teacher: Any, labels: jax.Array, context: Context) -> jax.Array:
    return new_weight * losses.distillation(adjusted(student, context), teacher["adapted"], context.new, temperature)

  stages = (
      Stage("train", {"cross_entropy": Loss(cross_entropy)}, tasks="first", trainable=_new_branch),
      Stage("adapt", {"cross_entropy": Loss(among_new)}, tasks="later", rows="new", begin=begin_adaptation,
            epochs_share=adaptation_epochs_share, trainable=_new_classes),
      Stage("fuse", {"cross_entropy": Loss(full), "branches": Loss(branches), "old_distillation": Loss(from_previous),
                     "new_distillation": Loss(from_adapted)}, tasks="later", begin=begin_fusion, teach=teach,
            epochs_share=fusion_epochs_share, weight_decay=False, trainable=_new_branch,
            growth=Growth(lambda context: 2, lambda features, others, context: features)))
  return Method("mafdrc", stages, head, {"logits": logits}, standardised_features=True, min_memory=1,
                stack=lambda tasks: 2, kept_heads=("previous", "adapted"))


def _keep(networks: Networks, place: int, name: str) -> Networks:
  """Keeps a copy of the network: its backbone in the stack, its head by name."""
  params, carry = networks.params, networks.carry
  one = {"params": params["backbone"], "batch_stats": networks.batch_stats}
  return networks._replace(carry={**carry, "frozen": frozen.put(carry["frozen"], one, place),
                                  "heads": {**carry["heads"], name: params["classifier"]}})


def _new_branch(head: HeadParams, context: Context) -> HeadMask:
  never = jnp.zeros((), bool)
  return {"kernel": context.seen, "bias": context.seen, "old_scale": never, "old_shift": never, "old_branch": never}


def _new_classes(head: HeadParams, context: Context) -> HeadMask:
  return {**_new_branch(head, context), "kernel": context.new, "bias": context.new}
