"""Python interpreters of the two sides of a comparison: checked, and started as processes of their own.

Needs neither JAX nor PyTorch, nor NumPy: what compares two interpreters may run under a third.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
JAX, TORCH = "jax", "torch"

_REMEDY = {JAX: "-m pip install -e .", TORCH: "-m pip install 'torch>=2.6' -e ."}
# Importing nothing, so that the answer comes at once.
_PROBE = """
import importlib.metadata, importlib.util, json, platform, sys
versions = {name: importlib.metadata.version(name) for name in sys.argv[1:] if importlib.util.find_spec(name)}
print(json.dumps({"python": platform.python_version(), **versions}))
"""
_PATIENCE = 10


def add_flags(parser: argparse.ArgumentParser) -> None:
  """--jax-python and --torch-python."""
  for framework, name in ((JAX, "gr_jax"), (TORCH, "PyTorch")):
    parser.add_argument(f"--{framework}-python", metavar="PATH", default=sys.executable,
                        help=f"interpreter of the {name} side; default: the running one")


def recorded(options: argparse.Namespace) -> dict[str, Any]:
  """The options for a JSON file: without the paths of this machine, so that the file can be committed."""
  places = ("json", "data_dir", *(f"{framework}_python" for framework in (JAX, TORCH)))
  return {name: value for name, value in vars(options).items() if name not in places}


def flag(framework: str) -> str:
  return f"--{framework}-python"


def check(framework: str, python: str, packages: Sequence[str]) -> tuple[str, dict[str, str]]:
  """(the interpreter's path, its version and those of the packages), within ten seconds.

  Raises:
    SystemExit: it does not start, does not answer, or lacks a package; with the flag and the remedy.
  """
  program = shutil.which(os.path.expanduser(python))
  if program is None:
    raise SystemExit(f"error: {flag(framework)} is {python}; there is no such program. Give the path of a Python "
                     f"interpreter that has {framework}")
  try:
    # Not in a folder of the user's, whose files could pass for packages.
    answer = subprocess.run([program, "-c", _PROBE, *packages], cwd=FOLDER, env=environment({}), timeout=_PATIENCE,
                            capture_output=True, text=True, check=True).stdout
    versions = json.loads(answer)
  except (OSError, ValueError, subprocess.SubprocessError) as error:
    said = (getattr(error, "stderr", None) or "").strip().splitlines()
    last = said[-1] if said else f"{type(error).__name__} when it was started"
    raise SystemExit(f"error: {flag(framework)} is {python}, which does not work as a Python interpreter ({last}); "
                     f"give another one") from error
  missing = [name for name in packages if name not in versions]
  if missing:
    raise SystemExit(f"error: {flag(framework)} is {python} (Python {versions['python']}), which lacks "
                     f"{', '.join(missing)}. Install: {program} {_REMEDY[framework]}\n"
                     f"or name another interpreter with {flag(framework)}=PATH")
  return os.path.abspath(program), versions


def environment(changes: Mapping[str, str]) -> dict[str, str]:
  """This process's environment with changes; `gr_jax` is that of this checkout, whatever is installed."""
  path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
  return {**os.environ, "PYTHONPATH": path, **changes}


class Worker:
  """A script in a process of its own that answers a line of JSON with a line of JSON; a context manager.

  Leaving the context closes the script's input, upon which it ends.
  """

  def __init__(self, name: str, python: str, script: pathlib.Path, changes: Mapping[str, str]):
    """Args:
      name: for messages.
      python, script: what to start.
      changes: of the environment.
    """
    self._name = name
    self._process = subprocess.Popen([python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                     env=environment(changes))

  def ask(self, question: Any) -> Any:
    """Sends, waits for the answer and returns it.

    Raises:
      RuntimeError: the process has ended.
    """
    try:
      self._process.stdin.write(json.dumps(question) + "\n")
      self._process.stdin.flush()
      answer = self._process.stdout.readline()
    except BrokenPipeError:
      answer = ""
    if not answer:
      raise RuntimeError(f"the process of {self._name!r} ended with code {self._process.wait()}; its messages stand "
                         f"above")
    return json.loads(answer)

  def __enter__(self) -> Worker:
    return self

  def __exit__(self, *exc_info: object) -> None:
    # Closing flushes, which fails where the process is gone already.
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()


def serve(answer: Any) -> None:
  """The other end of `Worker`: calls answer(question) for each line of stdin until it closes.

  The stdout that the parent reads is set aside first; whatever else prints goes to stderr.
  """
  with os.fdopen(os.dup(1), "w") as replies:
    os.dup2(2, 1)
    for line in sys.stdin:
      replies.write(json.dumps(answer(json.loads(line))) + "\n")
      replies.flush()
