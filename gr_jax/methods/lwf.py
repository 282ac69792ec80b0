"""Learning without Forgetting (Li & Hoiem, TPAMI 2018), as FACIL combines it with exemplars."""

from __future__ import annotations

import jax

from gr_jax import losses
from gr_jax.methods.base import Context, Loss, Method, Outputs, logits
from gr_jax.methods.finetune import plain_stage
from gr_jax.models import heads


def make(*, memory: int, weight: float, temperature: float) -> Method:
  """Builds the method: L = CE + weight KD_T, with KD over the old classes.

  Long-Tailed-CIL adds 1e-5 to the softened probabilities; this is left out.

  Args:
    memory: exemplars per class; 0 as in finetune.
    weight, temperature: of the distillation; no T^2.
  """
  def distil(student: Outputs, teacher: Outputs, labels: jax.Array, context: Context) -> jax.Array:
    return weight * losses.distillation(student.logits, teacher.logits, context.old, temperature)

  stage = plain_stage({"distillation": Loss(distil, teacher=True, kind="distillation")}, memory)
  return Method("lwf", (stage,), heads.linear(), {"logits": logits})
