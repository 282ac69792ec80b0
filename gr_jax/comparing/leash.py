"""Runs a command and ends it when its parent dies: python -m gr_jax.comparing.leash FD CORES MODULE FLAGS...

FD is the reading end of a pipe whose other end only the parent holds. When the parent is gone, even by SIGKILL, the
command gets SIGTERM: it saves and exits, and frees its folder for the next start. CORES are those of the CPU that it
may use, such as 0,1, or "all".
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

ALL_CORES = "all"


def _watch(reader: int) -> None:
  # Nothing is ever written: the read returns when the last writer is gone.
  os.read(reader, 1)
  os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
  # Before any library starts its threads: they inherit it, and count the cores.
  if sys.argv[2] != ALL_CORES:
    os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
  threading.Thread(target=_watch, args=(int(sys.argv[1]),), daemon=True).start()
  module = sys.argv[3]
  del sys.argv[1:4]
  runpy.run_module(module, run_name="__main__", alter_sys=True)
