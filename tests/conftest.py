"""Four CPU devices for every test, chosen before JAX starts; programs compiled once for the whole suite."""

import gc
import os
import shutil
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "4"

# As every command does.
from gr_jax.devices import convolution_library  # noqa: E402

convolution_library.enable()

_CACHE = "GR_JAX_TESTS_CACHE"


def pytest_configure(config):
  """The first process makes the folder; its workers and the commands under test inherit it."""
  if _CACHE not in os.environ:
    os.environ[_CACHE] = tempfile.mkdtemp(prefix="gr_jax-tests-")
    config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(_CACHE), ignore_errors=True))
  os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ[_CACHE]
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_of_one_file_alone():
  """Programs take memory, and mappings of which a process has 65,530 at most: past that XLA dies of a signal."""
  import runs
  with runs.sharing_programs():
    yield
  import jax
  jax.clear_caches()
  gc.collect()
