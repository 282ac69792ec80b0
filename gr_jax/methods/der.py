"""DER: a backbone for each task (Yan et al., "DER: Dynamically Expandable Representation", CVPR 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax import alignment, losses
from gr_jax.methods.base import Context, Growth, HeadParams, Loss, Method, Networks, Outputs, Stage, logits
from gr_jax.models import blocks, frozen


def make(*, auxiliary_weight: float, aligned: bool) -> Method:
  """Builds the method, in PyCIL's form: the paper's channel masks and its second classifier training are left out.

  Each task trains a backbone that starts as a copy of the one before; those of earlier tasks are frozen. The head sees
  the features of all. L = CE + auxiliary_weight CE_aux, where the auxiliary head sees the new backbone alone and knows
  the new classes and "any old class". After the task, new columns are scaled as in WA. The first task is finetuning.

  Args:
    auxiliary_weight: lambda_a; 1 in the paper.
    aligned: whether new columns are scaled to the mean norm of the old ones.
  """
  def columns(context: Context) -> jax.Array:
    # The column after the last class stands for all old ones.
    return jnp.append(context.new, jnp.any(context.old))

  def begin(networks: Networks, context: Context, key: jax.Array) -> Networks:
    params, carry = networks.params, networks.carry
    before = {"params": params["backbone"], "batch_stats": networks.batch_stats}
    stack = frozen.put(carry["frozen"], before, jnp.maximum(context.task - 1, 0), when=jnp.asarray(context.task > 0))
    head = blocks.grow(key, params["classifier"], context, block=context.task, columns=columns(context))
    return networks._replace(params={**params, "classifier": head}, carry={**carry, "frozen": stack})

  def cross_entropy(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    return losses.cross_entropy(student.logits, labels, context.seen)

  def auxiliary(student: Outputs, teacher: None, labels: jax.Array, context: Context) -> jax.Array:
    loss = losses.cross_entropy(student.branches["auxiliary"],
                                jnp.where(context.old[labels], context.old.size, labels), columns(context))
    return auxiliary_weight * jnp.where(jnp.any(context.old), loss, 0.0)

  def end(head: HeadParams, context: Context) -> HeadParams:
    return {**head, "kernel": alignment.align(head["kernel"], context.old, context.new)}

  growth = Growth(lambda context: context.task,
                  lambda features, others, context: blocks.place(features, others, context.task))
  terms = {"cross_entropy": Loss(cross_entropy), "auxiliary": Loss(auxiliary)}
  stage = Stage("train", terms, begin=begin, growth=growth, end=end if aligned else None)
  head = blocks.linear(lambda tasks: tasks, blocks.Auxiliary(lambda context: context.task, columns, extra=1))
  return Method("der", (stage,), head, {"logits": logits}, stack=lambda tasks: tasks, blocks=lambda tasks: tasks,
                growth=growth, backbones=lambda tasks: tasks)
