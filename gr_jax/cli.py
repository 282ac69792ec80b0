"""How every command of the package starts, and how it ends: exit codes 0, 1 (a bug), 2, 3 and 75."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from absl import app, flags, logging

from gr_jax.devices import compilation_cache
from gr_jax.errors import UserError
from gr_jax.runs import signals

# A disk that is full, over its quota, read-only, or somebody else's.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

_CACHE = flags.DEFINE_string(
    "compilation_cache", None, "Folder in which compiled programs are kept for the next start; 'off' for none. "
    "Default: JAX_COMPILATION_CACHE_DIR, else a folder of this user's.")


def run(main: Callable[[list[str]], None], parse: Callable[[list[str]], list[str]] | None = None, *,
        arguments: int = 0, example: str = "") -> None:
  """Parses flags and calls `main`; what the user can mend ends with one message and exit code 2, a
  loss that is not finite with code 3, a run that was asked to end and has saved with code 75.

  Args:
    main: takes the arguments that are not flags.
    parse: stands in for absl's flag parser.
    arguments: how many arguments that are not flags the command takes.
    example: of the command, for the message where they are missing.
  """
  def checked(argv: list[str]) -> None:
    if len(argv) > 1 + arguments:
      raise UserError(f"unexpected arguments: {' '.join(argv[1 + arguments:])}; flags begin with --")
    if len(argv) < 1 + arguments:
      raise UserError(f"{arguments} argument(s) expected, such as: {example}")
    if not flags.FLAGS["verbosity"].present:
      # Orbax reports every file it moves, and warns of what was asked for; --verbosity=0 shows it all.
      logging.set_verbosity(logging.ERROR)
    # Imported here, so that a bad flag is answered at once.
    from gr_jax.devices import convolution_library
    convolution_library.enable()
    compilation_cache.enable(_CACHE.value)
    main(argv)

  try:
    app.run(checked, flags_parser=parse or app.parse_flags_with_usage)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except OSError as error:
    if error.errno not in _DISK:
      raise
    print(f"error: {error}; make room or give the right to write, and the same command again goes on", file=sys.stderr)
    sys.exit(2)
  except FloatingPointError as error:
    print(f"diverged: {error}", file=sys.stderr)
    sys.exit(3)
  except signals.Interrupted as error:
    print(f"interrupted: {error}", file=sys.stderr)
    sys.exit(signals.EXIT_CODE)
