"""The limits of this process's control groups: a container may have less of the CPU and of memory than the machine.

Batch systems and services set the same limits. Linux alone has them, in two versions: in version 1 each controller
(cpu, memory) has a tree of groups of its own, in version 2 one tree serves all.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

# Has `cgroup`, the groups of this process, and `mountinfo`, where their trees are mounted.
PROCESS = pathlib.Path("/proc/self")

# Files of a group, by version: limit, usage, and the entry of memory.stat for the file cache that is dropped first. All
# of them include the groups below.
_MEMORY = (("memory.max", "memory.current", "inactive_file"),
           ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
# Version 1 has a number of about this size, not a word, where memory is not limited.
_UNLIMITED = 2**60


def cores() -> float | None:
  """Cores' worth of CPU time that this process may use, such as 1.5; None where it is not limited."""
  quotas = []
  for group in _groups("cpu"):
    # Microseconds in each period: one file in version 2, two in version 1. No limit is "max" or -1.
    words = _words(group / "cpu.max") or [
        *_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
    numbers = [int(word) for word in words if word.isdecimal() and int(word)]
    if len(numbers) == 2:
      quotas.append(numbers[0] / numbers[1])
  return min(quotas, default=None)


def free_memory() -> int | None:
  """Bytes that this process may still take, inactive file cache included; None where memory is not limited."""
  free = []
  for group in _groups("memory"):
    for of_limit, of_usage, of_cache in _MEMORY:
      numbers = [int(word) for name in (of_limit, of_usage) for word in _words(group / name) if word.isdecimal()]
      if len(numbers) == 2 and numbers[0] < _UNLIMITED:
        words = _words(group / "memory.stat")
        cache = int(dict(zip(words[::2], words[1::2], strict=False)).get(of_cache, 0))
        # Usage is above the limit for a moment when the limit is lowered.
        free.append(max(0, numbers[0] - max(0, numbers[1] - cache)))
  return min(free, default=None)


def _groups(controller: str) -> Iterator[pathlib.Path]:
  """Folders of this process's group and of those above it, as far as they can be seen: their limits count as well.

  Some may not exist, or not have the controller's files.
  """
  for line in _text(PROCESS / "cgroup").splitlines():
    _, controllers, group = line.split(":", 2)
    # Version 2 names no controller.
    if controllers and controller not in controllers.split(","):
      continue
    for mount in _text(PROCESS / "mountinfo").splitlines():
      place, _, about = mount.partition(" - ")
      kind, *_, options = about.split()
      if kind == "cgroup" and controllers and controller in options.split(",") or (
          kind == "cgroup2" and not controllers):
        yield from _upwards(group, *place.split()[3:5])


def _upwards(group: str, root: str, folder: str) -> Iterator[pathlib.Path]:
  """Folders of a group and of those above it in a tree of which `root` and what is below it is mounted at `folder`."""
  path = pathlib.PurePosixPath(group)
  below = path.relative_to(root) if path.is_relative_to(root) else pathlib.PurePosixPath()
  # The group is outside of what is mounted. The top of that is the nearest group that can be seen.
  if ".." in below.parts:
    below = pathlib.PurePosixPath()
  for part in (below, *below.parents):
    yield pathlib.Path(folder, part)


def _words(path: pathlib.Path) -> list[str]:
  return _text(path).split()


def _text(path: pathlib.Path) -> str:
  """Content of a file of the system; empty if it does not exist or this process may not read it."""
  try:
    return os.fsdecode(path.read_bytes())
  except OSError:
    return ""
