"""Runs a list of commands, one process at a time on each device or share of the CPU's cores."""

from __future__ import annotations

import itertools
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gr_jax.comparing import leash
from gr_jax.devices import processor
from gr_jax.errors import UserError
from gr_jax.runs import signals
from gr_jax.watching import lock

# Seconds between two looks at a process.
_INTERVAL = 0.2

# Share of a GPU's memory that its processes reserve together; JAX reserves 0.75 for a single one.
_GPU_MEMORY = 0.9
# A user who sets one of these shares out the memory.
_OF_MEMORY = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE",
              "XLA_PYTHON_CLIENT_ALLOCATOR")

_ENDS = {0: "done", signals.EXIT_CODE: "interrupted, and saved"}


class Job(NamedTuple):
  """One process of a list.

  Attributes:
    label: for messages, such as "wa, seed 0".
    folder: of the run; output goes to FOLDER.log.
    module, flags: python -m MODULE FLAGS.
    locks: folders that the run locks. It starts when they are free: runs of a killed list may still be saving.
  """
  label: str
  folder: pathlib.Path
  module: str
  flags: tuple[str, ...]
  locks: tuple[pathlib.Path, ...] = ()

  @property
  def log(self) -> pathlib.Path:
    return self.folder.with_name(f"{self.folder.name}.log")


class Place(NamedTuple):
  """Where one process at a time runs.

  Attributes:
    gpu: CUDA_VISIBLE_DEVICES; None leaves the environment as it is.
    cores: of the CPU; empty: all that this process may use.
    memory: share of the GPU's memory that the process reserves; None: JAX's default, or the user's.
  """
  gpu: str | None = None
  cores: tuple[int, ...] = ()
  memory: float | None = None

  def environment(self) -> dict[str, str]:
    """The environment of a process there."""
    given = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
    return {**os.environ, **given, **({} if self.memory is None else {_OF_MEMORY[0]: f"{self.memory:.3f}"})}


def run_all(jobs: Sequence[Job], places: Sequence[Place], look: Callable[[], None] = lambda: None
            ) -> dict[str, int]:
  """Runs a list; returns the exit code of each job that failed, by label.

  If this process is interrupted, or killed, its jobs save and exit. A job that cannot be started has failed, with code
  1, and the others run.

  Args:
    jobs: in starting order; labels are unique.
    places: one for each process at a time.
    look: called several times a second while jobs are running.
  """
  waiting, failed, stopping = queue.SimpleQueue(), {}, threading.Event()
  for job in jobs:
    waiting.put(job)
  errors: list[BaseException] = []

  def work(place: Place) -> None:
    try:
      work_off(place)
    except BaseException as error:
      # Raised below: a thread would only print it.
      errors.append(error)

  def work_off(place: Place) -> None:
    while not stopping.is_set():
      try:
        job = waiting.get_nowait()
      except queue.Empty:
        return
      try:
        code = _finish(job, place, stopping)
      except OSError as error:
        failed[job.label] = 1
        print(f"{job.label}: FAILED, it cannot be started ({error})", flush=True)
        continue
      if code is None:
        return
      if code:
        failed[job.label] = code
      failure = "stopped" if stopping.is_set() else f"FAILED with code {code}, see {job.log}"
      print(f"{job.label}: {_ENDS.get(code, failure)}", flush=True)

  workers = [threading.Thread(target=work, args=(place,)) for place in places]
  try:
    for worker in workers:
      worker.start()
    # Not join(): a signal that interrupts it makes Python 3.11 take the thread for finished.
    while any(worker.is_alive() for worker in workers):
      look()
      time.sleep(_INTERVAL)
  finally:
    stopping.set()
    for worker in workers:
      worker.join()
  if errors:
    raise errors[0]
  return failed


def _finish(job: Job, place: Place, stopping: threading.Event) -> int | None:
  """Runs a job to its end; returns its exit code, or None if it was not started any more."""
  job.folder.parent.mkdir(parents=True, exist_ok=True)
  announced = False
  while any(lock.state(folder / ".lock").held for folder in job.locks):
    if not announced:
      print(f"{job.label}: waiting, because another process is using {job.folder}", flush=True)
      announced = True
    if stopping.wait(_INTERVAL):
      return None
  cores = ",".join(map(str, place.cores)) or leash.ALL_CORES
  reader, writer = os.pipe()
  try:
    with (open(writer, "wb") as held, open(job.log, "a") as log,
          # A new session, so that Ctrl-C reaches the run only through this process and not also from the terminal.
          subprocess.Popen(
              [sys.executable, "-m", "gr_jax.comparing.leash", str(reader), cores, job.module, *job.flags],
              env=place.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
              pass_fds=[reader]) as process):
      while process.poll() is None:
        # When the list ends, so do its runs: the next start needs their folders unlocked.
        if stopping.wait(_INTERVAL):
          # The leash asks the run to save, unless it has been asked: a second signal would end it at once.
          held.close()
          process.wait()
      return process.returncode
  finally:
    os.close(reader)


def places(jobs_per_device: int, platforms: Sequence[str]) -> list[Place]:
  """Where jobs run: so many at a time on each GPU, whose memory they share out; without a GPU, each on its share of the
  CPU's cores.

  Args:
    jobs_per_device: processes at a time on each GPU, or on the CPU.
    platforms: of the devices that a process of this environment sees, such as ("gpu", "gpu").

  Raises:
    UserError: more processes than cores, or more than one on TPUs.
  """
  if gpus := platforms.count("gpu"):
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",") if given else [str(i) for i in range(gpus)]
    share = None if jobs_per_device == 1 or any(name in os.environ for name in _OF_MEMORY) else \
        _GPU_MEMORY / jobs_per_device
    return [Place(gpu=name, memory=share) for name in names[:gpus] for _ in range(jobs_per_device)]
  if jobs_per_device == 1:
    return [Place()]
  if "tpu" in platforms:
    # A process holds all TPUs that it sees.
    raise UserError(f"--jobs_per_device is {jobs_per_device}, but on TPUs one process runs at a time; leave it out")
  physical = processor.physical_cores()
  cores = list(itertools.chain(*physical))
  if jobs_per_device > len(cores):
    raise UserError(f"--jobs_per_device is {jobs_per_device}, but there is no GPU, and this process may use "
                    f"{len(cores)} CPU cores; use at most {len(cores)}")
  # Threads of one physical core stay together, as long as there is one for each job.
  shares = physical if jobs_per_device <= len(physical) else [(core,) for core in cores]
  bounds = [len(shares) * number // jobs_per_device for number in range(jobs_per_device + 1)]
  return [Place(cores=tuple(itertools.chain(*shares[low:high]))) for low, high in itertools.pairwise(bounds)]


def platforms() -> list[str]:
  """Of the devices that JAX sees. Asked in a separate process: this one must not occupy a GPU.

  Raises:
    UserError: JAX cannot start there.
  """
  code = "import jax; print(*[device.platform for device in jax.local_devices()])"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  if done.returncode:
    # Exceptions are not indented; some have no message.
    words = [line for line in done.stderr.splitlines() if line.strip() and not line[0].isspace()]
    given = ", ".join(f"{name} is {os.environ.get(name, '')!r}" for name in ("JAX_PLATFORMS", "XLA_FLAGS"))
    raise UserError(f"JAX cannot use its devices (exit code {done.returncode}{f': {words[-1]}' if words else ''}); "
                    f"{given}: correct them, or free the device")
  return done.stdout.splitlines()[-1].split()


def leave_on_signals() -> None:
  """From now on SIGTERM and Ctrl-C end this process with exit code 75, after its runs have saved."""
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _leave)


def _leave(number: int, frame: Any) -> None:
  del frame
  raise signals.Interrupted(f"{signal.Signals(number).name} received, and every run was asked to save; rerun the "
                            f"command to resume")
