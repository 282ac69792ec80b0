"""JAX's persistent compilation cache, on by default: a second start of the same config compiles nothing.

Exception: programs that call oneDNN, because jaxlib 0.12 cannot serialise such calls. JAX tries, fails with
`MemoryError: std::bad_alloc`, warns and continues. The log says so at the start (convolution_library.describe); the
warning is suppressed.
"""

from __future__ import annotations

import os
import pathlib
import warnings


def enable(folder: str | None) -> pathlib.Path | None:
  """Enables the cache; call it before anything is compiled.

  Anyone who can write to the folder can run code in this process, so it is created with access for this user only.

  Args:
    folder: for compiled programs; "off": no cache; None: JAX_COMPILATION_CACHE_DIR if set, else gr_jax/xla in
      XDG_CACHE_HOME or ~/.cache.

  Returns:
    The folder in use; None without a cache. If it cannot be written, there is a warning and no cache.
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
    warnings.warn(f"no compilation cache: {chosen} cannot be written ({error}), so every start compiles again; "
                  f"choose a folder with --compilation_cache, or set it to 'off'", stacklevel=2)
    return None
  jax.config.update("jax_compilation_cache_dir", str(chosen))
  return chosen
