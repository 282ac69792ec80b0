"""SIGTERM and Ctrl-C: the first asks the run to save and to end, a second one ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

# EX_TEMPFAIL of sysexits.h: saved; the same command again goes on.
EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
  """The run was asked to end, and has saved what it has done."""


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
  """While it lasts, signals ask instead of ending the process; gives a function that says whether one has come.

  The second signal ends the process at once, with 128 + its number as exit code. Outside the main thread, which
  alone may handle signals, nothing is changed and nobody ever asks.
  """
  if threading.current_thread() is not threading.main_thread():
    yield lambda: False
    return
  asked = threading.Event()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)

  # A thread behind a pipe, not the handlers: these wait until the main thread leaves a compilation, or a call on
  # the device, which may take a minute.
  def watch() -> None:
    while number := os.read(reader, 1):
      if number[0] not in _SIGNALS:
        continue
      if asked.is_set():
        os._exit(128 + number[0])
      asked.set()
      print(f"{signal.Signals(number[0]).name}: saving after the current call, then ending; a second one ends at once",
            file=sys.stderr, flush=True)

  before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
  pipe_before = signal.set_wakeup_fd(writer)
  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()
  try:
    yield asked.is_set
  finally:
    signal.set_wakeup_fd(pipe_before)
    for number, handler in before.items():
      signal.signal(number, handler)
    os.close(writer)
    watcher.join()
    os.close(reader)
