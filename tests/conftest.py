"""Four CPU devices for every test, chosen before JAX starts; programs compiled once for the whole suite."""

import ctypes
import gc
import os
import pathlib
import resource

import kept_programs
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
# Most of the tests' time is compilation, and LLVM's part of it a third shorter like this; XLA's own passes, which fuse
# and replace operations, are those of every run. The tests on the newest Python in .ci/run have LLVM's usual passes.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true")

# As every command does.
from gr_jax.devices import convolution_library  # noqa: E402

convolution_library.enable()

_CACHE = "GR_JAX_TESTS_CACHE"


def pytest_configure(config):
  """The first process makes the folder; its workers and the commands under test inherit it."""
  if _CACHE not in os.environ:
    folder, end = kept_programs.begin(kept_programs.default_folder())
    os.environ[_CACHE] = str(folder)
    config.add_cleanup(end)
    config.add_cleanup(lambda: os.environ.pop(_CACHE))
  os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ[_CACHE]
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
  # Else the folder's path is a part of the keys.
  os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
  # This process has imported JAX, which reads them then.
  import jax
  # Otherwise shapes that do not fit can go unnoticed, and a dtype can become wider.
  jax.config.update("jax_numpy_rank_promotion", "raise")
  jax.config.update("jax_numpy_dtype_promotion", "strict")
  jax.config.update("jax_compilation_cache_dir", os.environ[_CACHE])
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
  jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


# Of the files that take long, the longest first: a worker that begins with one when the others are done makes all wait.
LONGEST = ("test_train.py", "methods/test_runs.py", "data/test_feed.py", "runs/test_signals.py",
            "devices/test_processes.py", "runs/test_faults.py", "test_benchmark.py", "data/test_large_images.py",
            "models/test_convolution.py", "training/test_step.py", "models/test_norm.py", "test_main.py",
            "data/test_stream.py", "data/test_cache.py", "serving/test_model.py", "data/sources/test_folder.py")


def pytest_collection_modifyitems(items):
  folder = pathlib.Path(__file__).parent
  places = {folder / name: place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_of_one_file_alone():
  """Programs take memory, and mappings of which a process has 65,530 at most: past that XLA dies of a signal."""
  import runs
  with runs.sharing_programs():
    yield
  import jax
  jax.clear_caches()
  gc.collect()
  # GNU's C library keeps what was freed.
  if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
    trim(0)


def _peak():
  """Largest memory of this process so far, GB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def pytest_sessionfinish(session):
  # Only of a worker of pytest-xdist.
  if hasattr(session.config, "workeroutput"):
    session.config.workeroutput["peak"] = _peak()


_PEAKS = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  # A worker that died has none.
  _PEAKS.append(getattr(node, "workeroutput", {}).get("peak", 0.0))


def pytest_terminal_summary(terminalreporter):
  terminalreporter.write_line(f"largest memory of a process that ran tests: {max(_PEAKS or [_peak()]):.2f} GB")
