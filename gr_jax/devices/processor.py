"""The CPU: its name, instructions and cores, as Linux tells them."""

from __future__ import annotations

import os
import pathlib
import platform
import re

CPUINFO = pathlib.Path("/proc/cpuinfo")
TOPOLOGY = pathlib.Path("/sys/devices/system/cpu")

# Instructions that decide how fast a step is (docs/speed.md).
_NAMED = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def instructions() -> set[str]:
  """Flags of the processor; empty elsewhere than on Linux."""
  line = _line("flags")
  return set(line.split()) if line else set()


def cores() -> list[int]:
  """Numbers of the cores that this process may use; threads of one physical core are neighbours."""
  return sorted(os.sched_getaffinity(0), key=_place)


def describe() -> str:
  """Name, instructions that matter here, and the number of cores that this process may use."""
  name = _line("model name") or platform.processor() or platform.machine()
  known = [flag for flag in _NAMED if flag in instructions()]
  return f"{name}{f' ({chr(32).join(known)})' if known else ''}, {len(cores())} cores"


def _line(key: str) -> str | None:
  """What /proc/cpuinfo says of the first core; None if it does not have the key."""
  if not CPUINFO.exists():
    return None
  match = re.search(rf"^{key}[ \t]*:[ \t]*(\S.*)$", CPUINFO.read_text(), re.MULTILINE)
  return match[1].strip() if match else None


def _place(core: int) -> tuple[int, int, int]:
  """(package, physical core in it, number); virtual machines do not always tell the first two."""
  folder = TOPOLOGY / f"cpu{core}" / "topology"
  try:
    package, physical = (int((folder / name).read_text()) for name in ("physical_package_id", "core_id"))
  except (OSError, ValueError):
    package, physical = 0, core
  return package, physical, core
