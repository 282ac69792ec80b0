"""The CPU: its name, instructions and cores, as far as the system tells them."""

from __future__ import annotations

import os
import pathlib
import platform
import re

from gr_jax.devices import container

CPUINFO = pathlib.Path("/proc/cpuinfo")
TOPOLOGY = pathlib.Path("/sys/devices/system/cpu")

# Instructions that decide how fast a step is (docs/speed.md).
_NAMED = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def instructions() -> set[str]:
  """Flags of the processor; empty elsewhere than on Linux."""
  return set((_line("flags") or "").split())


def usable_cores() -> list[int]:
  """Numbers of the cores that this process may use, hyperthreads included."""
  # macOS and Windows cannot restrict a process.
  return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def physical_cores() -> list[tuple[int, ...]]:
  """The usable cores, those of one physical core together.

  Where the system does not tell which share one, each is a physical core.
  """
  groups: dict[str, list[int]] = {}
  for core in usable_cores():
    path = TOPOLOGY / f"cpu{core}" / "topology" / "thread_siblings_list"
    groups.setdefault(path.read_text().strip() if path.exists() else str(core), []).append(core)
  return [tuple(group) for group in groups.values()]


def describe() -> str:
  """Name, instructions that matter here, the number of usable cores, and a container's limit if it is below that."""
  name = _line("model name") or platform.processor() or platform.machine()
  known, usable, limit = instructions(), len(usable_cores()), container.cores()
  named = " ".join(flag for flag in _NAMED if flag in known)
  limited = f", limited to {limit:g} by the container" if limit is not None and limit < usable else ""
  return f"{name}{f' ({named})' if named else ''}, {usable} core{'s' if usable > 1 else ''}{limited}"


def _line(key: str) -> str | None:
  """What /proc/cpuinfo says of the first core; None if it does not have the key."""
  if not CPUINFO.exists():
    return None
  match = re.search(rf"^{key}[ \t]*:[ \t]*(\S.*)$", CPUINFO.read_text(), re.MULTILINE)
  return match[1].strip() if match else None
