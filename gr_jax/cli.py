"""How every command starts and exits: codes 0, 1 (a bug), 2 (an error to fix), 3 (diverged) and 75 (interrupted)."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from absl import app, flags, logging

from gr_jax.devices import compilation_cache
from gr_jax.errors import UserError
from gr_jax.runs import signals

# The disk is full, over quota or read-only, or permission is denied.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

_CACHE = flags.DEFINE_string(
    "compilation_cache", None, "Folder where compiled programs are kept for the next start; 'off' for none. "
    "Default: JAX_COMPILATION_CACHE_DIR, else ~/.cache/gr_jax/xla.")


def run(main: Callable[[list[str]], None], parse: Callable[[list[str]], list[str]] | None = None, *,
        arguments: int = 0, more: bool = False, devices: bool = True, example: str = "") -> None:
  """Parses flags and calls `main`.

  Errors that the user can fix print one message and exit with code 2, a non-finite loss with code 3, and a run that
  saved after a signal with code 75.

  Args:
    main: takes the positional arguments.
    parse: replaces absl's flag parser.
    arguments: number of positional arguments that the command takes.
    more: whether it takes more of them, too; flags may then stand among them.
    devices: whether it uses JAX.
    example: of the command, for the message when they are missing.
  """
  def checked(argv: list[str]) -> None:
    if len(argv) > 1 + arguments and not more:
      raise UserError(f"unexpected arguments: {' '.join(argv[1 + arguments:])}; flags begin with --")
    if len(argv) < 1 + arguments:
      raise UserError(f"{arguments} argument(s) expected, such as: {example}")
    if not flags.FLAGS["verbosity"].present:
      # Orbax logs every file it moves and warns about intended settings; --verbosity=0 shows everything.
      logging.set_verbosity(logging.ERROR)
    if devices:
      # Imported here so that a bad flag is reported immediately.
      from gr_jax.devices import convolution_library
      convolution_library.enable()
      compilation_cache.enable(_CACHE.value)
    main(argv)

  if more:
    flags.FLAGS.set_gnu_getopt()
  try:
    app.run(checked, flags_parser=parse or app.parse_flags_with_usage)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except OSError as error:
    if error.errno not in _DISK:
      raise
    print(f"error: {error}; free disk space or fix permissions, then rerun the command to resume", file=sys.stderr)
    sys.exit(2)
  except FloatingPointError as error:
    print(f"diverged: {error}", file=sys.stderr)
    sys.exit(3)
  except signals.Interrupted as error:
    print(f"interrupted: {error}", file=sys.stderr)
    sys.exit(signals.EXIT_CODE)
