"""What the tests keep from run to run: whole compiled programs alone."""

import os
import subprocess
import sys
import zlib

import kept_programs


def test_only_whole_entries_are_kept(tmp_path):
  kept, whole = tmp_path / "kept", zlib.compress(b"a program" * 100)
  folder, end = kept_programs.begin(kept)
  (folder / "one-cache").write_bytes(whole)
  (folder / "torn-cache").write_bytes(whole[:-3])
  (folder / "empty-cache").write_bytes(b"")
  end()
  assert [entry.name for entry in kept.iterdir()] == ["one-cache"] and not folder.exists()
  again, end = kept_programs.begin(kept)
  assert (again / "one-cache").read_bytes() == whole
  end()
  assert (kept / "one-cache").read_bytes() == whole


def test_too_much_is_deleted(tmp_path, monkeypatch):
  (tmp_path / "kept").mkdir()
  (tmp_path / "kept" / "old-cache").write_bytes(zlib.compress(b"old"))
  monkeypatch.setattr(kept_programs, "LARGEST", 3)
  folder, _ = kept_programs.begin(tmp_path / "kept")
  assert list(folder.iterdir()) == list((tmp_path / "kept").iterdir()) == []


def test_a_later_run_finds_what_an_earlier_one_compiled(tmp_path):
  """In another folder, by another process with other hashes of strings."""
  def compiled(seed):
    """New entries of a process that compiles one program."""
    folder, end = kept_programs.begin(tmp_path / "kept")
    before = set(folder.iterdir())
    subprocess.run(
        [sys.executable, "-c", "import jax; jax.jit(lambda x: x @ x + 1).lower(jax.numpy.ones((3, 3))).compile()"],
        check=True, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder), "PYTHONHASHSEED": str(seed),
                         "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"})
    new = {path.name for path in folder.iterdir()} - {path.name for path in before}
    end()
    return new

  assert any("lambda" in name for name in compiled(1)) and not compiled(2)


def test_what_killed_runs_left_is_deleted_after_a_day(tmp_path):
  old, new = (kept_programs.begin(tmp_path / "kept")[0] for _ in range(2))
  os.utime(old, (0, 0))
  kept_programs.begin(tmp_path / "kept")
  assert new.exists() and not old.exists()


def test_without_a_place_nothing_is_kept(tmp_path):
  (tmp_path / "file").write_text("no folder")
  folder, end = kept_programs.begin(tmp_path / "file" / "kept")
  assert folder.is_dir() and not list(folder.iterdir())
  end()
  assert not folder.exists()
