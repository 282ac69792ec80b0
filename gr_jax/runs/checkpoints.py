"""Checkpoints through Orbax; every array has a digest, which is verified when it is restored.

A checkpoint is one folder, named after the global step, with several items. Evaluation reads only `model`.
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

# Increased when the content of a checkpoint changes its meaning.
FORMAT = 4

# Formats that can still be evaluated -> the last commit that can resume them.
OLDER = {2: "c3bf204", 3: "cc0290b"}

# How many of the newest are kept: one to resume from, and one more in case it is damaged.
_NEWEST = 2


# Orbax numbers its operations per process: two managers that write or read at the same time wait for each other's
# signals and may deadlock. So the managers of replicas take turns, and each waits for its own background work.
_TURN = threading.RLock()


class DamagedCheckpoint(UserError):
  """A checkpoint that is incomplete or differs from what was saved.

  Attributes:
    reason: what is wrong, in a few words.
  """

  def __init__(self, folder: pathlib.Path, step: int, reason: str):
    super().__init__(f"checkpoint {folder / str(step)} cannot be read: {reason}; rerun the training command: it "
                     f"quarantines this checkpoint and resumes from the previous one")
    self.reason = reason


class Checkpoints:
  """The checkpoints of one run; a context manager that waits on exit until the last one is written."""

  def __init__(self, folder: pathlib.Path, *, keep: Sequence[int] = (), read_only: bool = False, alone: bool = True):
    """Args:
      folder: of the checkpoints.
      keep: global steps whose checkpoints are never deleted (the ends of tasks); of the others, the two newest are
        kept.
      read_only: nothing is created or deleted.
      alone: whether no other run uses checkpoints in this process; then writing may happen in the background.
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
        # A kill during a deletion may have left half a checkpoint.
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
    # Report the error that is being raised, not a later one from writing the checkpoint.
    with contextlib.suppress(UserError), self._writing("the last checkpoint"):
      self._manager.close()

  def steps(self) -> list[int]:
    """Global steps of the existing checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, items: dict[str, Any], record: dict[str, Any]) -> None:
    """Saves pytrees of arrays and a JSON record.

    Returns as soon as the arrays may be donated; if not `alone`, when everything is on disk.

    Raises:
      FloatingPointError: an array contains infinity or NaN; nothing is saved.
      UserError: this checkpoint, or the previous one, could not be written.
    """
    host = jax.tree.map(np.asarray, items)
    bad = finite.non_finite(host)
    if bad:
      raise FloatingPointError(f"non-finite arrays after step {step}: {finite.named(bad)}; they were not saved and "
                               f"the previous checkpoint is kept; lower learning_rate or check the data")
    record = {**record, "format": FORMAT, "shapes": {name: _shapes(tree) for name, tree in host.items()},
              "digests": {name: _digests(tree) for name, tree in host.items()}}
    record["digest"] = _record_digest(record)
    args = {name: ocp.args.StandardSave(tree) for name, tree in host.items()}
    with self._writing(f"checkpoint {step} or the previous one"):
      if not self._manager.save(step, args=ocp.args.Composite(record=ocp.args.JsonSave(record), **args)):
        raise OSError(f"refused by Orbax; the newest checkpoint is {self._manager.latest_step()}")
      if not self._alone:
        self._manager.wait_until_finished()

  def wait(self) -> None:
    """Waits until everything saved is on disk; raises as `save`."""
    with self._writing("the last checkpoint"):
      self._manager.wait_until_finished()

  def record(self, step: int) -> dict[str, Any]:
    """The JSON record of a checkpoint.

    Raises:
      DamagedCheckpoint: it cannot be read, or differs from what was saved.
      UserError: it has another format, or reading is not permitted.
    """
    record = self._restore(step, record=ocp.args.JsonRestore())["record"]
    # Checked before the format: a single flipped bit can turn one format into another. Every format has this digest.
    if not isinstance(record, dict) or record.get("digest") != _record_digest(record):
      raise DamagedCheckpoint(self._folder, step, "its record differs from what was saved")
    saved_format = record["format"]
    if saved_format in OLDER and not self._read_only:
      raise UserError(f"checkpoint {self._folder / str(step)} has format {saved_format}, but this version of gr_jax "
                      f"resumes only format {FORMAT}; commit {OLDER[saved_format]} is the last one that can resume it; "
                      f"gr_jax.evaluate can still read it")
    if saved_format not in (FORMAT, *OLDER):
      raise UserError(f"checkpoint {self._folder / str(step)} has format {saved_format}, but this version "
                      f"of gr_jax reads {FORMAT}; use the version that wrote it")
    return record

  def restore_newest(self, targets: Callable[[dict[str, Any]], dict[str, Any]], warn: Callable[[str], None]
                     ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """Restores the newest intact checkpoint; newer, damaged ones are moved to the folder `damaged`.

    Args:
      targets: record -> what to restore; see `restore`.
      warn: receives a line for each quarantined checkpoint.

    Returns:
      (step, record, items); None if there is no intact checkpoint.

    Raises:
      UserError: see `restore`.
    """
    for step in reversed(self.steps()):
      restored, reason = None, ""
      try:
        record = self.record(step)
        restored = step, record, self.restore(step, targets(record))
      except DamagedCheckpoint as error:
        reason = error.reason
      # If one process cannot read a checkpoint, none may use it.
      reasons = [reason for reason in processes.exchange(reason) if reason]
      if not reasons:
        return restored
      warn(f"checkpoint {step} is damaged ({reasons[0]}); quarantined as {self._set_aside(step)}")
    return None

  def _set_aside(self, step: int) -> pathlib.Path:
    """Moves a checkpoint away: Orbax would take it for the latest one and refuse to save that step again."""
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
      DamagedCheckpoint: it cannot be read, or differs from what was saved.
      UserError: it contains other arrays, or reading is not permitted.
    """
    record = self.record(step)
    self._check_shapes(step, record["shapes"], targets)
    digests = record["digests"]
    args = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
    items = self._restore(step, **args)
    trees = {name: jax.tree.map(np.asarray, items[name]) for name in targets}
    for name, tree in trees.items():
      bad = [path for path, digest in _digests(tree).items() if digests[name].get(path) != digest]
      if bad:
        raise DamagedCheckpoint(
            self._folder, step, f"{len(bad)} arrays differ from what was saved, such as {name}{bad[0]}")
    return trees

  def _check_shapes(self, step: int, shapes: dict[str, dict[str, str]], targets: dict[str, Any]) -> None:
    """Raises UserError if the saved shapes or dtypes differ from the targets.

    Checked before reading: Orbax returns arrays of other dtypes than requested, and a checkpoint of another model
    must not count as damaged.
    """
    for name, target in targets.items():
      saved, wanted = shapes.get(name, {}), _shapes(target)
      for path in {**saved, **wanted}:
        if saved.get(path) != wanted.get(path):
          raise UserError(
              f"checkpoint {self._folder / str(step)} cannot be read: {name}{path} is {saved.get(path, 'missing')}, "
              f"but the model takes {wanted.get(path, 'no such array')}; another version of the model wrote it: use "
              f"that version, or choose another --workdir")

  def _restore(self, step: int, **args) -> Any:
    try:
      with _TURN:
        return self._manager.restore(step, args=ocp.args.Composite(**args))
    except (PermissionError, MemoryError) as error:
      raise UserError(f"checkpoint {self._folder / str(step)} cannot be read: permission denied or out of memory "
                      f"({type(error).__name__}: {error}); fix that, then rerun the command") from error
    # Orbax and TensorStore raise many types for the same fault, even a bare Exception.
    except Exception as error:
      raise DamagedCheckpoint(self._folder, step, _first_line(error)) from error

  @contextlib.contextmanager
  def _writing(self, what: str) -> Iterator[None]:
    try:
      with _TURN:
        yield
    # As above. Orbax writes in the background, so the error may come from the previous checkpoint.
    except Exception as error:
      raise UserError(f"{what} could not be written to {self._folder} ({_first_line(error)}); earlier checkpoints are "
                      f"kept; free disk space or fix permissions, then rerun the command to resume") from error


def _first_line(error: Exception) -> str:
  """The first line of a message, shortened: TensorStore puts the place first, the reason last and repeats itself."""
  line = next(iter(str(error).strip().splitlines()), "")
  return f"{type(error).__name__}: " + (line if len(line) < 300 else f"{line[:120]} ... {line[-150:]}")


def _shapes(tree: Any) -> dict[str, str]:
  """Dtype and shape of each array, by path."""
  return {jax.tree_util.keystr(path): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _record_digest(record: dict[str, Any]) -> str:
  """SHA-256 of a JSON record without its digest."""
  rest = {key: value for key, value in record.items() if key != "digest"}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digests(tree: Any) -> dict[str, str]:
  """SHA-256 of each array's dtype, shape and bytes, by path."""
  digests = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(array.tobytes())
    digests[jax.tree_util.keystr(path)] = digest.hexdigest()
  return digests
