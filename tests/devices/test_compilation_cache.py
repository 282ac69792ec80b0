"""The compilation cache: filled and used, moved, switched off, and no reason to stop when unwritable."""

import pathlib
import tarfile
import warnings

import jax
import pytest
import runs

from gr_jax.devices import compilation_cache


@pytest.fixture(autouse=True)
def keep_the_suites_cache():
  before = jax.config.jax_compilation_cache_dir
  yield
  jax.config.update("jax_compilation_cache_dir", before)


def test_a_named_folder_is_made_and_used(tmp_path):
  assert compilation_cache.enable(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a" / "b")


def test_off():
  assert compilation_cache.enable("off") is None
  assert jax.config.jax_compilation_cache_dir is None


def test_the_default_is_this_users(tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert compilation_cache.enable(None) == tmp_path / "gr_jax" / "xla"
  assert (tmp_path / "gr_jax" / "xla").stat().st_mode & 0o077 == 0


def test_jax_own_variable_is_respected(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
  assert compilation_cache.enable(None) == tmp_path


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.warns(UserWarning, match="no compilation cache: .* cannot be written"):
    assert compilation_cache.enable(str(tmp_path / "file")) is None
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    compilation_cache.enable(str(tmp_path / "fine"))


def test_the_command_fills_the_folder(tmp_path):
  # The shortest command that compiles anything: the evaluation of a run.
  with tarfile.open(runs.ROOT / "tests" / "fixtures" / "run_of_format_2.tar.gz") as archive:
    archive.extractall(tmp_path / "run", filter="data")
  command = ("evaluate", f"--workdir={tmp_path / 'run'}", f"--compilation_cache={tmp_path / 'cache'}")
  first = runs.run(*command, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
  assert first.returncode == 0, first.stderr
  programs = set(pathlib.Path(tmp_path / "cache").iterdir())
  assert programs
  second = runs.run(*command, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
  assert second.returncode == 0, second.stderr
  # The second start found everything: nothing new was compiled and kept.
  new = {path for path in set((tmp_path / "cache").iterdir()) - programs if not path.name.endswith("-atime")}
  assert not new
  assert first.stdout == second.stdout != ""
