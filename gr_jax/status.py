"""Shows where runs stand, from their files: python -m gr_jax.status [--workdir=runs/digits_lt-s0] [--watch]."""

from __future__ import annotations

import pathlib
import sys
import time

from absl import flags

from gr_jax import cli
from gr_jax.watching import lines, standing

# Clears a terminal.
_CLEAR = "\x1b[H\x1b[2J"


def show(root: pathlib.Path, *, every: float | None = None) -> None:
  """Prints where the runs in a folder stand; takes no lock and writes nothing.

  Args:
    root: folder of a run, or of runs.
    every: seconds between two looks, until all runs have finished; None: one look.

  Raises:
    UserError: there is no run.
  """
  while True:
    standings = [standing.of(folder) for folder in standing.find(root)]
    text = lines.lines(standings)
    if every is not None:
      text = (_CLEAR if sys.stdout.isatty() else "\n") + f"{time.strftime('%H:%M:%S')}\n{text}"
    print(text, flush=True)
    if every is None or all(run.state == "finished" for run in standings):
      return
    time.sleep(every)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  try:
    show(pathlib.Path(given.workdir).expanduser(), every=given.every if given.watch else None)
  except KeyboardInterrupt:
    # How --watch is left.
    print()


def _define_flags() -> None:
  """Not at import, because tests and notebooks import this module together with other commands."""
  flags.DEFINE_string("workdir", "runs", "Folder of a run, or of runs.")
  flags.DEFINE_bool("watch", False, "Look again and again, until all runs have finished; Ctrl-C ends it.")
  flags.DEFINE_float("every", 2.0, "Seconds between two looks of --watch.", lower_bound=0.1)


if __name__ == "__main__":
  _define_flags()
  cli.run(main, devices=False)
