"""What the tests keep from run to run: whole compiled programs alone."""

import zlib

import kept_programs


def test_only_whole_entries_are_kept(tmp_path):
  kept, whole = tmp_path / "kept", zlib.compress(b"a program" * 100)
  folder = kept_programs.begin(kept)
  (folder / "one-cache").write_bytes(whole)
  (folder / "torn-cache").write_bytes(whole[:-3])
  (folder / "empty-cache").write_bytes(b"")
  kept_programs.end(folder, kept)
  assert [entry.name for entry in kept.iterdir()] == ["one-cache"] and not folder.exists()
  again = kept_programs.begin(kept)
  assert (again / "one-cache").read_bytes() == whole
  kept_programs.end(again, kept)
  assert (kept / "one-cache").read_bytes() == whole


def test_too_much_is_deleted(tmp_path, monkeypatch):
  (tmp_path / "kept").mkdir()
  (tmp_path / "kept" / "old-cache").write_bytes(zlib.compress(b"old"))
  monkeypatch.setattr(kept_programs, "LARGEST", 3)
  folder = kept_programs.begin(tmp_path / "kept")
  assert list(folder.iterdir()) == list((tmp_path / "kept").iterdir()) == []
