"""Worker processes; one that dies or hangs ends the run within a bounded time."""

from __future__ import annotations

import concurrent.futures
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any

from gr_jax.devices import container, processor
from gr_jax.errors import UserError


def count() -> int:
  """Number of worker processes: the cores that this process may use, or the container's limit, rounded up, if fewer."""
  usable, limit = len(processor.usable_cores()), container.cores()
  return usable if limit is None else min(usable, math.ceil(limit))


def results(function: Callable[[Any], Any], items: Iterable, *, initializer: Callable, initargs: tuple,
            timeout: float) -> Generator[Any, None, None]:
  """Applies `function` to each item in worker processes; yields results as they complete, in any order.

  Args:
    function, initializer: defined at module level, so that a new process can import them.
    items: arguments of `function`; each must take far less than `timeout` seconds.
    initargs: arguments of `initializer`, which every process calls once.
    timeout: seconds without a result after which the processes count as hanging.

  Raises:
    UserError: a process died or none responded in time. Exceptions of `function` are raised too.
  """
  before = set(multiprocessing.active_children())
  # Not forked: a forked child lacks JAX's threads but inherits the locks they hold.
  with concurrent.futures.ProcessPoolExecutor(
      count(), mp_context=multiprocessing.get_context("spawn"), initializer=_begin,
      initargs=(initializer, *initargs)) as pool:
    waiting = {pool.submit(function, item) for item in items}
    try:
      while waiting:
        done, waiting = concurrent.futures.wait(
            waiting, timeout, return_when=concurrent.futures.FIRST_COMPLETED)
        if not done:
          raise UserError(hanging(timeout))
        for future in done:
          yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise UserError(died()) from error
    finally:
      if waiting:
        pool.shutdown(wait=False, cancel_futures=True)
        end(before)


def _begin(initializer: Callable, *initargs: Any) -> None:
  leave_with_the_parent()
  initializer(*initargs)


def leave_with_the_parent() -> None:
  """Exits this process when its parent is gone: the workers of a killed parent would wait for work and never exit.

  Call it once in each worker.
  """
  parent = multiprocessing.parent_process()
  if parent is None:
    return

  def wait() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def hanging(timeout: float) -> str:
  """The message for worker processes that do not respond."""
  return (f"the processes that read pictures have not responded for {timeout:g} s (worker_timeout); check the disk or "
          f"network folder, then rerun the command to resume")


def died() -> str:
  """The message for a worker process that died."""
  return ("a process that reads pictures died, perhaps because memory ran out; rerun the command to resume (your own "
          "script must start its work under if __name__ == '__main__', because these processes import it)")


def end(before: set) -> None:
  """Kills the child processes started since `before`; a hanging one ignores milder signals."""
  for process in set(multiprocessing.active_children()) - before:
    process.kill()
