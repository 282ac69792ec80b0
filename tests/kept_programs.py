"""Compiled programs from earlier runs of the tests: most of the tests' time is compilation.

Each run of the tests has a folder of its own, which begins with links to what is kept and is read and written by JAX.
After it the new entries are kept, if they are whole: some tests kill processes, also while they write.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import tempfile
import time
import zlib

import jaxlib

# All is deleted when it takes more: old versions of the programs are never used again.
LARGEST = 1 << 30
_SUFFIX, _PREFIX = "-cache", "gr_jax-tests-"
_DAY = 24 * 3600


def default_folder():
  """In XDG_CACHE_HOME or ~/.cache: another jaxlib or processor has other programs."""
  cpu = pathlib.Path("/proc/cpuinfo")
  features = sorted({line for line in cpu.read_text().splitlines() if line.startswith("flags")}) if cpu.exists() else []
  machine = hashlib.sha256("\n".join([platform.machine(), *features]).encode()).hexdigest()[:12]
  parent = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
  return parent / "gr_jax" / "tests" / f"{jaxlib.__version__}-{machine}"


def begin(kept):
  """(a new temporary folder with links to all entries in `kept`, the function that ends its use).

  At the end the whole new entries are kept, and the folder is deleted. Where `kept` cannot be written, or has a file
  system without links, the folder is empty and nothing is kept.
  """
  try:
    return _linked(kept)
  except OSError:
    folder = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX))
    return folder, functools.partial(shutil.rmtree, folder, ignore_errors=True)


def _linked(kept):
  kept.mkdir(mode=0o700, parents=True, exist_ok=True)
  if sum(entry.stat().st_size for entry in kept.iterdir()) > LARGEST:
    shutil.rmtree(kept)
    kept.mkdir(mode=0o700)
  # Left behind by runs that were killed.
  for left in kept.parent.glob(f"{_PREFIX}*"):
    if time.time() - left.stat().st_mtime > _DAY:
      shutil.rmtree(left, ignore_errors=True)
  folder = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX, dir=kept.parent))
  for entry in kept.glob(f"*{_SUFFIX}"):
    os.link(entry, folder / entry.name)
  return folder, functools.partial(_keep, folder, kept)


def _keep(folder, kept):
  for entry in folder.glob(f"*{_SUFFIX}"):
    if not (kept / entry.name).exists() and is_whole(entry.read_bytes()):
      # Another run may keep the same one.
      with contextlib.suppress(FileExistsError, FileNotFoundError):
        os.link(entry, kept / entry.name)
  shutil.rmtree(folder, ignore_errors=True)


def is_whole(content):
  """Whether an entry can be read to its end. JAX compresses with zlib; where it finds zstandard, nothing is kept."""
  try:
    zlib.decompress(content)
  except zlib.error:
    return False
  return True
