"""Checkpoints through Orbax, each array with a digest that is verified when it is restored.

A checkpoint is one folder, named by the global step, of several items: evaluation reads `model` alone.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from gr_jax.errors import UserError

# Raised when what a checkpoint holds changes its meaning.
FORMAT = 1


class Checkpoints:
  """The checkpoints of one run; a context manager that waits for the last one to be written."""

  def __init__(self, folder: pathlib.Path, *, keep: Sequence[int] = (), read_only: bool = False):
    """Args:
      folder: of the checkpoints.
      keep: global steps whose checkpoints are never deleted (the ends of tasks); of others the newest stays.
      read_only: nothing is created or cleaned.
    """
    self._folder = pathlib.Path(folder).absolute()
    policy = checkpoint_managers.AnyPreservationPolicy([
        checkpoint_managers.LatestN(1), checkpoint_managers.CustomSteps(list(keep))])
    if read_only:
      options = ocp.CheckpointManagerOptions(read_only=True, create=False)
    else:
      options = ocp.CheckpointManagerOptions(
          create=True, cleanup_tmp_directories=True, preservation_policy=policy)
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *exc_info) -> None:
    self._manager.close()

  def steps(self) -> list[int]:
    """Global steps of the checkpoints that are there, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, items: dict[str, Any], record: dict[str, Any]) -> None:
    """Saves pytrees of arrays, and a JSON record; returns once the arrays may be donated.

    Raises:
      OSError: the checkpoint could not be written.
    """
    host = jax.tree.map(np.asarray, items)
    record = {**record, "format": FORMAT, "digests": {name: _digests(tree) for name, tree in host.items()}}
    record["digest"] = _record_digest(record)
    args = {name: ocp.args.StandardSave(tree) for name, tree in host.items()}
    if not self._manager.save(step, args=ocp.args.Composite(record=ocp.args.JsonSave(record), **args)):
      raise OSError(f"Orbax refused to save step {step} in {self._folder} (newest there: "
                    f"{self._manager.latest_step()})")

  def record(self, step: int) -> dict[str, Any]:
    """The JSON record of a checkpoint.

    Raises:
      UserError: it cannot be read, or is of another format.
    """
    record = self._restore(step, record=ocp.args.JsonRestore())["record"]
    if record.get("format") != FORMAT:
      raise UserError(f"checkpoint {self._folder / str(step)} has format {record.get('format')}, this version "
                      f"of gr_jax reads {FORMAT}; use the version that wrote it")
    if record["digest"] != _record_digest(record):
      raise self._unreadable(step, "its record is not what was saved")
    return record

  def restore(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """Restores some items and verifies their digests.

    Args:
      step: of the checkpoint.
      targets: item name -> pytree of jax.ShapeDtypeStruct.

    Returns:
      item name -> pytree of NumPy arrays.

    Raises:
      UserError: the checkpoint cannot be read or is damaged; names it and the remedy.
    """
    digests = self.record(step)["digests"]
    args = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
    found = self._restore(step, **args)
    trees = {name: jax.tree.map(np.asarray, found[name]) for name in targets}
    for name, tree in trees.items():
      bad = [path for path, digest in _digests(tree).items() if digests[name].get(path) != digest]
      if bad:
        raise self._unreadable(step, f"{len(bad)} arrays are not what was saved, such as {name}{bad[0]}")
      self._check_shapes(step, name, tree, targets[name])
    return trees

  def _check_shapes(self, step: int, item: str, tree: Any, target: Any) -> None:
    """Orbax hands out arrays of other shapes and types than were asked for."""
    for (path, array), wanted in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(target)):
      if (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
        raise self._unreadable(step, f"{item}{jax.tree_util.keystr(path)} is {array.dtype}{array.shape}, the "
                                     f"model takes {wanted.dtype}{wanted.shape}")

  def _restore(self, step: int, **args) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**args))
    # Orbax and TensorStore raise all sorts here, bare Exception among them, for one and the same fault.
    except Exception as error:
      raise self._unreadable(step, str(error).split("\n")[0]) from error

  def _unreadable(self, step: int, reason: str) -> UserError:
    return UserError(f"checkpoint {self._folder / str(step)} cannot be read: {reason}; move that folder away, "
                     f"and the run goes on from the checkpoint before it, or start anew in another --workdir")


def _record_digest(record: dict[str, Any]) -> str:
  """SHA-256 of a JSON record without its own digest."""
  rest = {key: value for key, value in record.items() if key != "digest"}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digests(tree: Any) -> dict[str, str]:
  """SHA-256 of each array's type, shape and bytes, by its path."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(array.tobytes())
    found[jax.tree_util.keystr(path)] = digest.hexdigest()
  return found
