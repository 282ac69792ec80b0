"""Where a number comes from: date, versions, commit and processor."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

from gr_jax.devices import convolution_library, processor

_PACKAGES = ("gr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")
# Seconds for one call of git; a slow file system must not hold up a run.
_PATIENCE = 10


def describe(kind: str) -> dict[str, Any]:
  """{date (UTC), versions, processor} of this process, on devices of a platform."""
  return {"date": today(), "versions": versions(kind), "processor": processor.describe()}


def versions(kind: str) -> dict[str, str]:
  """Of Python and the packages; the commit, if it is known; on a CPU (`kind` "cpu") the library for convolutions."""
  known = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}
  if (head := commit()) is not None:
    known["commit"] = head
  return {**known, "convolutions": convolution_library.in_use()} if kind == "cpu" else known


@functools.cache
def commit(file: pathlib.Path = pathlib.Path(__file__)) -> str | None:
  """The commit of the checkout that a source file is in; "with changes" follows if its folder differs from it.

  Untracked files are changes, ignored ones are not. None if git does not track the file, as in an installed package,
  even inside the checkout of another project.
  """
  # Inside a git hook these name another repository.
  environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

  def git(*arguments: str) -> str:
    # Without optional locks, a user's own git command at the same time does not fail.
    return subprocess.run(["git", "--no-optional-locks", "-C", str(file.parent), *arguments], check=True,
                          capture_output=True, text=True, timeout=_PATIENCE, env=environment).stdout.strip()

  try:
    git("ls-files", "--error-unmatch", file.name)
    changed = git("status", "--porcelain", "--", ".")
    return git("rev-parse", "HEAD") + (" with changes" if changed else "")
  except (OSError, subprocess.SubprocessError):
    return None


def today() -> str:
  """The date in UTC, such as 2026-11-22."""
  return datetime.datetime.now(datetime.UTC).date().isoformat()
