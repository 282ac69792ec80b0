"""Several processes as one run: joining, agreeing, failing together, leaving.

With one process, nothing here costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

import gr_jax
from gr_jax.errors import UserError

T = TypeVar("T")

OFF, AUTO = "off", "auto"

# Strings are exchanged in arrays of a multiple of this many bytes, so that few programs are compiled.
_BLOCK = 4096


class Place(NamedTuple):
  """A process's index (from 0) among `count` processes, and "host:port" of process 0."""
  coordinator: str
  # They hide two methods of a tuple, which nobody misses here.
  count: int  # pyright: ignore[reportIncompatibleMethodOverride]
  index: int  # pyright: ignore[reportIncompatibleMethodOverride]


def parse(spec: str) -> Place | None:
  """Parses the config key `distributed`; None for "off" and "auto".

  Raises:
    UserError: it is not "off", "auto" or "HOST:PORT,COUNT,INDEX".
  """
  if spec in (OFF, AUTO):
    return None
  parts = spec.split(",")
  host, _, port = parts[0].rpartition(":")
  if len(parts) == 3 and host and all(text.isdecimal() for text in (port, *parts[1:])):
    place = Place(parts[0], int(parts[1]), int(parts[2]))
    if place.index < place.count and 0 < int(port) < 2**16:
      return place
  raise UserError(f"distributed is {spec!r}; it can be 'off', 'auto' (Slurm, Kubernetes, Cloud TPU, Open MPI), or "
                  f"HOST:PORT,COUNT,INDEX: the address of process 0, the number of processes and the index of this "
                  f"one (from 0), such as 10.0.0.1:9876,2,0")


@contextlib.contextmanager
def joined(spec: str, *, join_timeout: int, heartbeat_timeout: int) -> Iterator[None]:
  """Joins this process to the others for the duration of the context. Enter it before any use of a device.

  If a process dies, hangs or leaves early, the others exit with a non-zero code within `heartbeat_timeout`.

  Args:
    spec: config key `distributed`, see `parse`.
    join_timeout: seconds that the processes wait for each other at the start.
    heartbeat_timeout: seconds after which a process that does not respond counts as dead.

  Raises:
    UserError: "auto" finds no cluster, or the other processes cannot be reached.
  """
  if spec == OFF:
    yield
    return
  place = parse(spec)
  # Its handler would intercept SIGTERM, which runs/signals.py handles.
  jax.config.update("jax_enable_preemption_service", False)
  named = {} if place is None else {"coordinator_address": place.coordinator, "num_processes": place.count,
                                    "process_id": place.index, "cluster_detection_method": "deactivate"}
  try:
    jax.distributed.initialize(
        **named, initialization_timeout=join_timeout, heartbeat_timeout_seconds=heartbeat_timeout,
        shutdown_timeout_seconds=heartbeat_timeout)
  except ValueError as error:
    if place is not None:
      raise
    raise UserError(f"distributed is 'auto', but no cluster was found ({error}); {_hint()}") from error
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f"the processes did not connect within {join_timeout} s (distributed is {spec!r}): "
                    f"{str(error).splitlines()[0]}; check that all of them run, that every machine can reach the "
                    f"address of process 0 and that its port is free") from error
  try:
    yield
  finally:
    jax.distributed.shutdown()


def _hint() -> str:
  """What to do if no cluster was detected."""
  if "SLURM_JOB_ID" in os.environ:
    return "inside a Slurm job, start the program with srun"
  if "KUBERNETES_SERVICE_HOST" in os.environ:
    return "on Kubernetes, pip install 'jax[k8s]' and run an indexed Job or a JobSet"
  return "on one machine, set it to 'off'; otherwise use HOST:PORT,COUNT,INDEX"


def primary() -> bool:
  """Whether this is process 0, which prints and writes for all."""
  return jax.process_index() == 0


def exchange(text: str) -> list[str]:
  """Gathers a string from each process, in process order. A collective: all must call it, in the same order."""
  if jax.process_count() == 1:
    return [text]
  encoded = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(encoded.size))
  padded = np.zeros(-(-max(int(lengths.max()), 1) // _BLOCK) * _BLOCK, np.uint8)
  padded[:encoded.size] = encoded
  rows = multihost_utils.process_allgather(padded)
  return [row[:length].tobytes().decode() for row, length in zip(rows, lengths)]


def any_process(flag: bool) -> bool:
  """True on all processes if it is True on any; with several processes, waits for the devices."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def together(action: Callable[[], T]) -> T:
  """Runs `action` in every process; if one raises UserError, all do, so that no process hangs.

  Raises:
    UserError: `action` raised it here or in another process, which the message names.
  """
  try:
    result = action()
  except UserError as error:
    exchange(str(error))
    raise
  troubles = exchange("")
  for index, trouble in enumerate(troubles):
    if trouble:
      raise UserError(f"process {index} of {len(troubles)} cannot continue: {trouble}")
  return result


def agree(values: Mapping[str, Any]) -> None:
  """Checks that all processes have the same values.

  Args:
    values: name -> value, compared as strings.

  Raises:
    UserError: on all processes; gives every name with different values, the values and the process.
  """
  rows = [json.loads(text) for text in exchange(json.dumps({name: str(value) for name, value in values.items()}))]
  lines = [f"{name}: {rows[0].get(name)} in process 0, {row.get(name)} in process {index}"
           for index, row in enumerate(rows) for name in {**rows[0], **row} if rows[0].get(name) != row.get(name)]
  if lines:
    raise UserError("the processes of this run do not agree:\n  " + "\n  ".join(lines) +
                    "\nstart the same command, with the same code and data, in all of them")


def code_version() -> str:
  """The package's version and a digest of its source files."""
  folder, digest = pathlib.Path(gr_jax.__file__).parent, hashlib.sha256()
  for path in sorted(folder.rglob("*.py")):
    digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size} ".encode())
    digest.update(path.read_bytes())
  return f"{gr_jax.__version__} {digest.hexdigest()[:16]}"
