"""Runs a command and ends it when its parent dies: python -m gr_jax.comparing.leash FD CORES MODULE FLAGS...

FD is the reading end of a pipe whose other end only the parent holds. When the parent closes it, or is gone, even by
SIGKILL, the command gets SIGTERM: it saves and exits, and frees its folder for the next start. CORES are those of the
CPU that it may use, such as 0,1, or "all". A `nice` value counts against other sessions, too.
"""

from __future__ import annotations

import os
import pathlib
import runpy
import signal
import sys
import threading
import time

ALL_CORES = "all"
# The scheduler's group of this session, where the kernel has such groups (Linux, CONFIG_SCHED_AUTOGROUP).
_GROUP = pathlib.Path("/proc/self/autogroup")
# Seconds in which a signal to all processes reaches this one, too.
_ARRIVAL = 1.0
# Seconds between two tries: the kernel accepts ten changes a second from users other than root.
_PAUSE, _TRIES = 0.15, 20


def _watch(reader: int) -> None:
  # Nothing is ever written: the read returns when the last writer is gone.
  os.read(reader, 1)
  # A service manager, or a shutdown, sends SIGTERM to all processes: a second one would end the run unsaved.
  time.sleep(_ARRIVAL)
  # Not imported, at least not wholly: the run has nothing to save yet.
  requested = getattr(sys.modules.get("gr_jax.runs.signals"), "requested", lambda: False)
  if not requested():
    os.kill(os.getpid(), signal.SIGTERM)


def _be_nice() -> None:
  # A run has a session of its own. Linux shares out the CPU between sessions first, and a process's nice value counts
  # only within its session: without this, a run under `nice -n 19` would take as much as all other work together.
  niceness = os.nice(0)
  if niceness <= 0 or not _GROUP.exists():
    return
  for _ in range(_TRIES):
    try:
      _GROUP.write_text(str(niceness))
      return
    except BlockingIOError:
      time.sleep(_PAUSE)
    except OSError as error:
      print(f"nice value {niceness} counts only within this run's session: {_GROUP}: {error}", file=sys.stderr)
      return
  print(f"nice value {niceness} counts only within this run's session: {_GROUP} was busy", file=sys.stderr)


if __name__ == "__main__":
  # Before any library starts its threads: they inherit it, and count the cores.
  if sys.argv[2] != ALL_CORES:
    os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
  threading.Thread(target=_watch, args=(int(sys.argv[1]),), daemon=True).start()
  _be_nice()
  module = sys.argv[3]
  del sys.argv[1:4]
  runpy.run_module(module, run_name="__main__", alter_sys=True)
