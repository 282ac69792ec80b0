"""What an add-on needs of the method that it wraps."""

from __future__ import annotations

from gr_jax.errors import UserError
from gr_jax.methods.base import Method


def head(method: Method, addon: str, kinds: tuple[str, ...]) -> None:
  """Raises UserError unless the method's head is of one of these kinds (models.heads.Head.kind)."""
  if method.head.kind not in kinds:
    raise _refusal(method, addon, f"it needs a head of kind {' or '.join(map(repr, kinds))}, and this one is "
                                  f"{method.head.kind!r}")


def prediction_by_logits(method: Method, addon: str) -> None:
  """Raises UserError if the method's first score is not its logits."""
  first = next(iter(method.scores))
  if first != "logits":
    raise _refusal(method, addon, f"it changes only the classifier, and this method predicts by {first!r}")


def training_in_every_task(method: Method, addon: str) -> None:
  """Raises UserError unless a stage of the method trains the backbone in every task."""
  if not any(stage.backbone == "train" and stage.tasks == "all" for stage in method.stages):
    raise _refusal(method, addon, "it needs a stage that trains the backbone in every task")


def nothing_before(method: Method, addon: str) -> None:
  """Raises UserError if a stage that trains the backbone measures images before it, or tracks a state."""
  if any(stage.backbone == "train" and (stage.before is not None or stage.track is not None)
         for stage in method.stages):
    raise _refusal(method, addon, "its stages measure images or track a state already")


def no_mixed_view(method: Method, addon: str) -> None:
  """Raises UserError if the method mixes images already."""
  if any(stage.mixing is not None for stage in method.stages):
    raise _refusal(method, addon, "it mixes images already")


def _refusal(method: Method, addon: str, reason: str) -> UserError:
  return UserError(f"the add-on {addon!r} cannot wrap method {method.name!r}: {reason}; remove the add-on, or choose "
                   f"another method")
