"""Where a number comes from: packages, commit, processor and date."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import pathlib
import platform
import re
import subprocess

from gr_jax.data import workers
from gr_jax.devices import convolution_library

_PACKAGES = ("gr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")
# Seconds for one call of git; a slow file system must not hold up a run.
_PATIENCE = 10


def versions(kind: str) -> dict[str, str]:
  """Of the packages; the commit, if it is known; on a CPU (`kind` "cpu") the library that computes convolutions."""
  known = {name: importlib.metadata.version(name) for name in _PACKAGES}
  if (head := commit()) is not None:
    known["commit"] = head
  return {**known, "convolutions": convolution_library.in_use()} if kind == "cpu" else known


@functools.cache
def commit(file: pathlib.Path = pathlib.Path(__file__)) -> str | None:
  """The commit of the checkout that has a source file, followed by "with changes" if a tracked file has any.

  None if git does not track the file, as in an installed package, even inside the checkout of another project.
  """
  def git(*arguments: str) -> str:
    # Without optional locks, a user's own git command at the same time does not fail.
    return subprocess.run(["git", "--no-optional-locks", "-C", str(file.parent), *arguments], check=True,
                          capture_output=True, text=True, timeout=_PATIENCE).stdout.strip()

  try:
    git("ls-files", "--error-unmatch", file.name)
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + (" with changes" if changed else "")
  except (OSError, subprocess.SubprocessError):
    return None


def processor() -> str:
  """The CPU's name, as far as the system tells it, and the number of cores that this process may use."""
  path = convolution_library.CPUINFO
  model = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
  name = model[1].strip() if model else platform.processor() or platform.machine()
  return f"{name}, {workers.count()} cores"


def today() -> str:
  """The date in UTC, such as 2026-11-22."""
  return datetime.datetime.now(datetime.UTC).date().isoformat()
