"""JAX's persistent compilation cache, on by default: the second start of a config compiles nothing.

Programs that call oneDNN are the exception: jaxlib 0.12 cannot serialise such a call. JAX tries, fails with
`MemoryError: std::bad_alloc`, warns and goes on. The start line says so once (convolution_library.describe), and the
warning is switched off.
"""

from __future__ import annotations

import os
import pathlib
import warnings


def enable(folder: str | None) -> pathlib.Path | None:
  """Turns the cache on, before anything is compiled.

  Whoever can write to the folder can run code in this process: it is made for this user alone.

  Args:
    folder: where compiled programs are kept; "off": nowhere; None: JAX_COMPILATION_CACHE_DIR where that is set,
      else gr_jax/xla in XDG_CACHE_HOME or ~/.cache.

  Returns:
    The folder in use; None without a cache. One that cannot be written is a warning, and the run goes on.
  """
  import jax
  warnings.filterwarnings("ignore", message=r"Error writing persistent compilation cache entry .* std::bad_alloc")
  if folder == "off":
    jax.config.update("jax_compilation_cache_dir", None)
    return None
  if folder is None and (given := os.environ.get("JAX_COMPILATION_CACHE_DIR")) is not None:
    return pathlib.Path(given) if given else None
  parent = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
  chosen = pathlib.Path(folder).expanduser().absolute() if folder else parent / "gr_jax" / "xla"
  try:
    chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = chosen / f".writable-{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    warnings.warn(f"no compilation cache: {chosen} cannot be written ({error}); every start compiles anew. "
                  f"Choose a folder with --compilation_cache, or 'off'", stacklevel=2)
    return None
  jax.config.update("jax_compilation_cache_dir", str(chosen))
  return chosen
