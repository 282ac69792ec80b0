"""SIGTERM and Ctrl-C: the first asks the run to save and exit, a second one exits immediately."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

# EX_TEMPFAIL of sysexits.h: saved; rerun the command to resume.
EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Set when this process is asked to exit.
_ASKED = threading.Event()


class Interrupted(Exception):
  """The run was asked to exit and has saved its progress."""


def requested() -> bool:
  """Whether this process has been asked to exit since it began to listen; False before."""
  return _ASKED.is_set()


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
  """Inside this context, the first signal is only recorded; yields a function that tells whether one has come.

  A second signal exits immediately with code 128 + its number. Only the main thread can handle signals: in other
  threads nothing changes, and the function always returns False.
  """
  if threading.current_thread() is not threading.main_thread():
    yield lambda: False
    return
  _ASKED.clear()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)

  # A thread that reads a pipe: signal handlers only run once the main thread has left a compilation or a device
  # call, which may take a minute.
  def watch() -> None:
    while number := os.read(reader, 1):
      if number[0] not in _SIGNALS:
        continue
      if _ASKED.is_set():
        os._exit(128 + number[0])
      _ASKED.set()
      print(f"{signal.Signals(number[0]).name}: will save and exit after this device call; a second signal exits "
            f"immediately", file=sys.stderr, flush=True)

  before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
  pipe_before = signal.set_wakeup_fd(writer)
  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()
  try:
    yield _ASKED.is_set
  finally:
    signal.set_wakeup_fd(pipe_before)
    for number, handler in before.items():
      signal.signal(number, handler)
    os.close(writer)
    watcher.join()
    os.close(reader)
