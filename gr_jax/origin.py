"""Where a number comes from: date, versions, commit, devices and processor."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import backend

from gr_jax.devices import convolution_library, processes, processor

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")
# Variables by which git finds a repository. Inside a hook they name that of the hook.
_OF_A_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY",
                    "GIT_COMMON_DIR")
# Seconds for one call of git; a slow file system must not hold up a run.
_PATIENCE = 10


def describe(used: Sequence[jax.Device]) -> dict[str, Any]:
  """{date (UTC), versions, devices, processor} of this process, which uses these devices."""
  return {"date": today(), "versions": versions(used[0].platform), "devices": devices(used),
          "processor": processor.describe()}


def devices(used: Sequence[jax.Device]) -> str:
  """Such as "4 x cpu"."""
  return f"{len(used)} x {used[0].device_kind}"


def versions(kind: str) -> dict[str, str]:
  """`code`, Python and packages; of the platform: on "cpu" the library for convolutions, else its driver's version."""
  packages = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}
  of_platform = {"convolutions": convolution_library.in_use()} if kind == "cpu" else {
      "driver": backend.get_backend().platform_version}
  return {**code(), **packages, **of_platform}


@functools.cache
def code() -> dict[str, str]:
  """Version and digest of this package's files, and the commit, if it is known.

  The first call counts: later the files may be those of another commit than what was imported.
  """
  head = commit()
  return {"gr_jax": processes.code_version(), **({} if head is None else {"commit": head})}


def commit(file: pathlib.Path = pathlib.Path(__file__)) -> str | None:
  """The commit of the checkout that a source file is in; "with changes" follows if its folder differs from it.

  Untracked files are changes; ignored ones, and those in docs/, are not. None where git does not track the file, as in
  an installed package, even inside the checkout of another project, and where git is missing or refuses.
  """
  environment = {name: value for name, value in os.environ.items() if name not in _OF_A_REPOSITORY}

  def git(*arguments: str) -> bytes:
    # Without optional locks, a user's own git command at the same time does not fail.
    return subprocess.run(["git", "--no-optional-locks", "-C", str(file.parent), *arguments], check=True,
                          capture_output=True, timeout=_PATIENCE, env=environment).stdout.strip()

  try:
    git("ls-files", "--error-unmatch", file.name)
    changed = git("status", "--porcelain", "--untracked-files=all", "--", ".", ":!docs")
    return git("rev-parse", "HEAD").decode() + (" with changes" if changed else "")
  except (OSError, subprocess.SubprocessError):
    return None


def today() -> str:
  """The date in UTC, such as 2026-11-22."""
  return datetime.datetime.now(datetime.UTC).date().isoformat()
