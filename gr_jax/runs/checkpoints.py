"""Checkpoints through Orbax, each array with a digest that is verified when it is restored.

A checkpoint is one folder, named by the global step, of several items: evaluation reads `model` alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from gr_jax.devices import processes
from gr_jax.errors import UserError
from gr_jax.training import finite

# Raised when what a checkpoint holds changes its meaning.
FORMAT = 3

# Formats whose models can still be evaluated, and the last commit that can resume their runs.
OLDER = {2: "c3bf204"}

# The newest ones that stay: one to go on from, and one before it in case that one is damaged.
_NEWEST = 2


# Orbax numbers its operations once for the whole process: two managers that write or read at once wait for each
# other's signals, some for ever. So those of replicas take turns, and each waits for its own background work.
_TURN = threading.RLock()


class DamagedCheckpoint(UserError):
  """A checkpoint that is not what was saved, or not all of it.

  Attributes:
    reason: what is wrong with it, in a few words.
  """

  def __init__(self, folder: pathlib.Path, step: int, reason: str):
    super().__init__(f"checkpoint {folder / str(step)} cannot be read: {reason}; training sets it aside by itself and "
                     f"goes on from the one before it")
    self.reason = reason


class Checkpoints:
  """The checkpoints of one run; a context manager that waits for the last one to be written."""

  def __init__(self, folder: pathlib.Path, *, keep: Sequence[int] = (), read_only: bool = False, alone: bool = True):
    """Args:
      folder: of the checkpoints.
      keep: global steps whose checkpoints are never deleted (the ends of tasks); of others the two newest stay.
      read_only: nothing is created or cleaned.
      alone: whether this is the only one at work in the process, which may then write in the background.
    """
    self._folder, self._alone, self._read_only = pathlib.Path(folder).absolute(), alone, read_only
    policy = checkpoint_managers.AnyPreservationPolicy([
        checkpoint_managers.LatestN(_NEWEST), checkpoint_managers.CustomSteps(list(keep))])
    if read_only:
      options = ocp.CheckpointManagerOptions(read_only=True, create=False)
    else:
      options = ocp.CheckpointManagerOptions(
          create=True, cleanup_tmp_directories=True, preservation_policy=policy)
    with _TURN:
      self._manager = ocp.CheckpointManager(self._folder, options=options)
      if not read_only:
        # A kill may have fallen into the deletion of one, and left half of it.
        for step in self.steps()[:-_NEWEST]:
          if step not in keep:
            self._manager.delete(step)

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
    if error is None:
      with self._writing("the last checkpoint"):
        self._manager.close()
      return
    # What ends the run is the error that is on its way, not what the disk says of a checkpoint afterwards.
    with contextlib.suppress(UserError), self._writing("the last checkpoint"):
      self._manager.close()

  def steps(self) -> list[int]:
    """Global steps of the checkpoints that are there, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, items: dict[str, Any], record: dict[str, Any]) -> None:
    """Saves pytrees of arrays, and a JSON record; returns once the arrays may be donated, or, where it is not alone,
    once all is on the disk.

    Raises:
      FloatingPointError: an array holds an infinity or a NaN; nothing is saved.
      UserError: this checkpoint, or the one before it, could not be written.
    """
    host = jax.tree.map(np.asarray, items)
    spoilt = finite.non_finite(host)
    if spoilt:
      raise FloatingPointError(f"after step {step} these are not finite: {finite.named(spoilt)}; that is not saved, "
                               f"the checkpoint before it is kept: lower learning_rate, or look at the data")
    record = {**record, "format": FORMAT, "shapes": {name: _shapes(tree) for name, tree in host.items()},
              "digests": {name: _digests(tree) for name, tree in host.items()}}
    record["digest"] = _record_digest(record)
    args = {name: ocp.args.StandardSave(tree) for name, tree in host.items()}
    with self._writing(f"checkpoint {step}, or the one before it,"):
      if not self._manager.save(step, args=ocp.args.Composite(record=ocp.args.JsonSave(record), **args)):
        raise OSError(f"Orbax refused it (newest there: {self._manager.latest_step()})")
      if not self._alone:
        self._manager.wait_until_finished()

  def wait(self) -> None:
    """Returns once all that was saved is on the disk; raises as `save`."""
    with self._writing("the last checkpoint"):
      self._manager.wait_until_finished()

  def record(self, step: int) -> dict[str, Any]:
    """The JSON record of a checkpoint.

    Raises:
      DamagedCheckpoint: it cannot be read, or is not what was saved.
      UserError: it is of another format, or may not be read.
    """
    record = self._restore(step, record=ocp.args.JsonRestore())["record"]
    # Before the format, which is one flipped bit away from another one. Every format has this digest.
    if not isinstance(record, dict) or record.get("digest") != _record_digest(record):
      raise DamagedCheckpoint(self._folder, step, "its record is not what was saved")
    found = record["format"]
    if found in OLDER and not self._read_only:
      raise UserError(f"checkpoint {self._folder / str(step)} has format {found}, and this version of gr_jax resumes "
                      f"format {FORMAT} alone; commit {OLDER[found]} is the last one that resumes it, and "
                      f"gr_jax.evaluate reads it here too")
    if found not in (FORMAT, *OLDER):
      raise UserError(f"checkpoint {self._folder / str(step)} has format {found}, this version "
                      f"of gr_jax reads {FORMAT}; use the version that wrote it")
    return record

  def restore_newest(self, targets: Callable[[dict[str, Any]], dict[str, Any]], warn: Callable[[str], None]
                     ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """Restores from the newest checkpoint that is whole; damaged ones before it are moved to the folder `damaged`.

    Args:
      targets: record -> what to restore; see `restore`.
      warn: takes a line for each checkpoint that is set aside.

    Returns:
      (step, record, items), or None where no whole checkpoint is left.

    Raises:
      UserError: see `restore`.
    """
    for step in reversed(self.steps()):
      found, reason = None, ""
      try:
        record = self.record(step)
        found = step, record, self.restore(step, targets(record))
      except DamagedCheckpoint as error:
        reason = error.reason
      # What one process cannot read is of no use to the others.
      reasons = [reason for reason in processes.exchange(reason) if reason]
      if not reasons:
        return found
      warn(f"checkpoint {step} is damaged ({reasons[0]}); set aside as {self._set_aside(step)}")
    return None

  def _set_aside(self, step: int) -> pathlib.Path:
    """Out of Orbax's way, which would take it for the latest and refuse to save that step again."""
    folder = self._folder.with_name("damaged")
    folder.mkdir(exist_ok=True)
    place = next(place for number in range(1, 2**31)
                 if not (place := folder / (str(step) if number == 1 else f"{step}-{number}")).exists())
    processes.exchange("")
    if processes.primary():
      os.rename(self._folder / str(step), place)
    processes.exchange("")
    self._manager.reload()
    return place

  def restore(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """Restores some items and verifies their digests.

    Args:
      step: of the checkpoint.
      targets: item name -> pytree of jax.ShapeDtypeStruct.

    Returns:
      item name -> pytree of NumPy arrays.

    Raises:
      DamagedCheckpoint: it cannot be read, or is not what was saved.
      UserError: it holds other arrays, or may not be read.
    """
    record = self.record(step)
    self._check_shapes(step, record["shapes"], targets)
    digests = record["digests"]
    args = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
    found = self._restore(step, **args)
    trees = {name: jax.tree.map(np.asarray, found[name]) for name in targets}
    for name, tree in trees.items():
      bad = [path for path, digest in _digests(tree).items() if digests[name].get(path) != digest]
      if bad:
        raise DamagedCheckpoint(
            self._folder, step, f"{len(bad)} arrays are not what was saved, such as {name}{bad[0]}")
    return trees

  def _check_shapes(self, step: int, shapes: dict[str, dict[str, str]], targets: dict[str, Any]) -> None:
    """Before anything is read: Orbax hands out arrays of other types than were asked for, and a checkpoint of another
    model is not a damaged one."""
    for name, target in targets.items():
      saved, wanted = shapes.get(name, {}), _shapes(target)
      for path in {**saved, **wanted}:
        if saved.get(path) != wanted.get(path):
          raise UserError(
              f"checkpoint {self._folder / str(step)} cannot be read: {name}{path} is {saved.get(path, 'not there')}, "
              f"the model takes {wanted.get(path, 'no such array')}; it was made by another version of the model, so "
              f"use that one, or another --workdir")

  def _restore(self, step: int, **args) -> Any:
    try:
      with _TURN:
        return self._manager.restore(step, args=ocp.args.Composite(**args))
    except (PermissionError, MemoryError) as error:
      raise UserError(f"checkpoint {self._folder / str(step)} may not be read, or there is no room for it "
                      f"({type(error).__name__}: {error})") from error
    # Orbax and TensorStore raise all sorts here, bare Exception among them, for one and the same fault.
    except Exception as error:
      raise DamagedCheckpoint(self._folder, step, _first_line(error)) from error

  @contextlib.contextmanager
  def _writing(self, what: str) -> Iterator[None]:
    try:
      with _TURN:
        yield
    # As above. Orbax writes in the background: what is raised may be of the checkpoint before.
    except Exception as error:
      raise UserError(f"{what} could not be written to {self._folder} ({_first_line(error)}); the checkpoints before "
                      f"it stay: mend that (room, rights, quota), and the same command again goes on") from error


def _first_line(error: Exception) -> str:
  """TensorStore says where first and why last, and in between everything twice."""
  line = next(iter(str(error).strip().splitlines()), "")
  return f"{type(error).__name__}: " + (line if len(line) < 300 else f"{line[:120]} ... {line[-150:]}")


def _shapes(tree: Any) -> dict[str, str]:
  """Type and shape of each array, by its path."""
  return {jax.tree_util.keystr(path): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


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
