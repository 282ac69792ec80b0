"""Processes that work for this one, and the bounded time within which a dead or a hanging one ends the run."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gr_jax.errors import UserError


def count() -> int:
  """One process for each core that this process may use."""
  return len(os.sched_getaffinity(0))


def results(function: Callable[[Any], Any], items: Iterable, *, initializer: Callable, initargs: tuple,
            timeout: float) -> Iterator[Any]:
  """`function` of each item in processes of their own, as they come, in any order.

  Args:
    function, initializer: of a module, so that a new process finds them.
    items: what to work on; each takes far less than `timeout` seconds.
    initargs: of `initializer`, which every process calls once.
    timeout: seconds without any result after which the processes count as hanging.

  Raises:
    UserError: a process died, or none answered in time; what `function` raises is raised here.
  """
  before = set(multiprocessing.active_children())
  # Not forked: the threads of JAX would be left behind holding their locks.
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
  """Ends this process when its parent is gone: a killed one tells its processes nothing, and they would wait for work
  for ever. To be called once in such a process."""
  def wait() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def hanging(timeout: float) -> str:
  """What is said of processes that do not answer."""
  return (f"the processes that read pictures have answered nothing for {timeout:g} s (worker_timeout); is the disk or "
          f"the network folder stuck? The same command again goes on")


def died() -> str:
  """What is said of a process that is gone."""
  return ("a process that reads pictures died, perhaps killed because memory ran out; the same command again goes "
          "on (a script of one's own begins its work under if __name__ == '__main__', since these processes import it)")


def end(before: set) -> None:
  """Kills the child processes that were not there `before`: a hanging one heeds no gentler word."""
  for process in set(multiprocessing.active_children()) - before:
    process.kill()
