"""The cache of decoded pictures: what is in it, and what full disks, kills, second jobs and damage do to it."""

import fcntl
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import builders
import folders
import numpy as np
import PIL.Image
import pytest
import runs

from gr_jax.data import cache, image
from gr_jax.data.cache import View
from gr_jax.data.sources import catalogue
from gr_jax.errors import UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  return folders.write(tmp_path_factory.mktemp("files") / "train", 12)


VIEW = View("squeezed", 37)


def load(split, place, view=VIEW, *, rows=None, said=None, timeout=600, progress=lambda it, **_: it):
  rows = list(range(len(split.ids)))[::-1] if rows is None else rows
  said = [] if said is None else said
  return cache.load(split, rows, view, name="files", channels=3, places=(place,), progress=progress,
                    say=said.append, timeout=timeout)


def entries(place):
  return sorted(path.name for path in place.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def built(files, tmp_path_factory):
  """(split, place, what was said, what came back) of one entry; read only."""
  split, place, said = folders.FilesSplit(files), tmp_path_factory.mktemp("cache"), []
  return split, place, said, load(split, place, said=said)


def test_pictures_are_the_views_in_the_given_order(built):
  split, _, said, stored = built
  rows = list(range(48))[::-1]
  for place, row in enumerate(rows):
    picture = split.image(row)
    np.testing.assert_array_equal(stored.images[place], image.squeeze(picture, 37))
    assert tuple(stored.sizes[place]) == picture.shape[:2]
  assert stored.images.dtype == np.uint8 and stored.sizes.dtype == np.int32 and not stored.images.flags.writeable
  assert "decoding 48 pictures once" in said[0]


def test_second_opening_decodes_nothing(built):
  split, place, _, stored = built
  said, broken = [], folders.FilesSplit(split.folder, die=split.ids)
  again = load(broken, place, said=said)
  np.testing.assert_array_equal(again.images, stored.images)
  np.testing.assert_array_equal(again.sizes, stored.sizes)
  assert not said


def test_other_ids_order_view_or_files_are_other_entries(built):
  split, *_ = built
  names = [cache.entry_name("files", split, rows, view) for rows, view in (
      ([0, 1], View("squeezed", 37)), ([1, 0], View("squeezed", 37)), ([0], View("squeezed", 37)),
      ([0, 1], View("squeezed", 38)), ([0, 1], View("crop", 37)))]
  other = folders.FilesSplit(split.folder)
  other.fingerprint = "changed"
  names.append(cache.entry_name("files", other, [0, 1], View("squeezed", 37)))
  assert len(set(names)) == 6 and all(f"-v{cache.FORMAT}-" in name for name in names)


def test_sizes_alone_and_central_crops(files, tmp_path):
  split = folders.FilesSplit(files)
  sizes = load(split, tmp_path, View("size", 0), rows=[3, 5])
  assert sizes.images.shape == (2, 0, 0, 3)
  assert [tuple(size) for size in sizes.sizes] == [split.image(row).shape[:2] for row in (3, 5)]
  crops = load(split, tmp_path, View("crop", 24), rows=[3, 5])
  np.testing.assert_array_equal(crops.images, [image.central_crop(split.image(row), 24) for row in (3, 5)])


@pytest.mark.parametrize("turned", [False, True])
def test_central_crop_of_a_strip_is_that_of_the_whole_strip_enlarged(turned):
  strip = np.tile(builders.photograph()[200:203], (1, 3, 1))
  crop = image.central_crop(strip.transpose(1, 0, 2) if turned else strip, 24)
  size = (27 * strip.shape[1] // 3, 27)
  whole = np.asarray(PIL.Image.fromarray(strip).resize(size, PIL.Image.Resampling.BILINEAR))
  left = round((size[0] - 24) / 2)
  np.testing.assert_allclose(crop.transpose(1, 0, 2) if turned else crop, whole[2:26, left:left + 24], atol=1)
  # It would take 13 GB as a whole.
  assert image.central_crop(np.zeros((1, 65_000, 3), np.uint8), 224).shape == (224, 224, 3)


def test_prepared_data_set_is_read_by_processes(tmp_path):
  builders.imagenet2012(tmp_path / "tfds", per_class=1)
  split = catalogue.load("imagenet_subset", str(tmp_path / "tfds")).train
  split.image(0)
  copy = pickle.loads(pickle.dumps(split))
  np.testing.assert_array_equal(copy.image(5), split.image(5))
  assert copy.fingerprint == split.fingerprint and "imagenet2012" in split.fingerprint
  stored = load(split, tmp_path / "cache", rows=[4, 2])
  np.testing.assert_array_equal(stored.images[1], image.squeeze(split.image(2), 37))


@pytest.mark.parametrize("file", ["images.npy", "sizes.npy", "sums.npy"])
def test_any_damage_of_a_header_is_noticed(built, tmp_path, file):
  split, place, *_ = built
  shutil.copytree(place, tmp_path / "cache")
  path = tmp_path / "cache" / entries(place)[0] / file
  whole = path.read_bytes()
  for number in range(128):
    for flip in (1, 4, 255):
      path.write_bytes(whole[:number] + bytes([whole[number] ^ flip]) + whole[number + 1:])
      with pytest.raises(UserError, match="is damaged .*remove that folder"):
        load(split, tmp_path / "cache")


@pytest.mark.parametrize("content", ["[]", "5", "{}", "null"])
def test_a_record_of_another_kind_is_damage(built, tmp_path, content):
  split, place, *_ = built
  shutil.copytree(place, tmp_path / "cache")
  (tmp_path / "cache" / entries(place)[0] / "record.json").write_text(content)
  with pytest.raises(UserError, match="is damaged .*remove that folder"):
    load(split, tmp_path / "cache")


@pytest.mark.parametrize("file", ["images.npy", "sizes.npy", "sums.npy", "record.json"])
def test_damage_is_noticed_at_opening(built, tmp_path, file):
  split, place, *_ = built
  shutil.copytree(place, tmp_path / "cache")
  path = tmp_path / "cache" / entries(place)[0] / file
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 255
  for damaged in (bytes(content), bytes(content[:len(content) // 2])):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged .*remove that folder"):
      load(split, tmp_path / "cache")


def test_full_disk_is_named_before_anything_is_decoded(built, tmp_path, monkeypatch):
  split, *_ = built
  monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
  with pytest.raises(UserError, match=r"0\.000 GB free, but the cache of 48 pictures needs 0\.001 GB.*cache_dir"):
    load(split, tmp_path)
  assert not entries(tmp_path)


def test_disk_that_fills_up_meanwhile(built, tmp_path):
  split, *_ = built
  # The system refuses the file's blocks, as a quota does.
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
  try:
    with pytest.raises(UserError, match="the cache of 48 pictures needs .*File too large"):
      load(split, tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)
  assert not entries(tmp_path)


def test_place_that_cannot_be_written(built, tmp_path):
  split, *_ = built
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="no folder for the picture cache.*cache_dir=off"):
    load(split, tmp_path / "file" / "cache")


def test_places_are_beside_the_data_then_the_users_own(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
  assert cache.folders(None, tmp_path) == (tmp_path / "gr_jax_cache", tmp_path / "own" / "gr_jax" / "pictures")
  assert cache.folders(str(tmp_path / "x"), tmp_path) == (tmp_path / "x",)


def test_damaged_picture_is_named_and_leaves_nothing(files, tmp_path):
  folder = tmp_path / "files"
  shutil.copytree(files, folder)
  path = folder / "01_0003.jpg"
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(UserError, match="01_0003.jpg cannot be decoded"):
    load(folders.FilesSplit(folder), tmp_path / "cache")
  assert not entries(tmp_path / "cache")


def test_dead_worker_ends_it(files, tmp_path):
  started = time.monotonic()
  with pytest.raises(UserError, match="a process that reads pictures died"):
    load(folders.FilesSplit(files, die=["02_0005.jpg"]), tmp_path)
  assert time.monotonic() - started < 300 and not entries(tmp_path)


def test_hanging_worker_ends_it_within_the_timeout(files, tmp_path):
  started = time.monotonic()
  with pytest.raises(UserError, match=r"not responded for 6 s \(worker_timeout\)"):
    load(folders.FilesSplit(files, hang=["02_0005.jpg"]), tmp_path, timeout=6)
  assert time.monotonic() - started < 300 and not entries(tmp_path)


def test_kill_in_the_middle_leaves_no_entry_and_is_cleaned_up(files, tmp_path):
  code = (f"import sys; sys.path[:0] = {[str(runs.ROOT), str(runs.ROOT / 'tests')]!r}\n"
          "import pathlib, folders\nfrom data import test_cache\n"
          "if __name__ == '__main__':\n"
          f"  split = folders.FilesSplit({str(files)!r}, hang=['02_0005.jpg'])\n"
          f"  test_cache.load(split, pathlib.Path({str(tmp_path)!r}))\n")
  script = tmp_path / "build.py"
  script.write_text(code)
  job = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
  deadline = time.monotonic() + 60
  while not entries(tmp_path) and time.monotonic() < deadline:
    time.sleep(0.05)
  runs.kill_the_parent_alone(job)
  job.wait()
  left, = entries(tmp_path)
  assert left.endswith(".partial")
  split = folders.FilesSplit(files)
  rebuilt = load(split, tmp_path)
  np.testing.assert_array_equal(rebuilt.images[0], image.squeeze(split.image(47), 37))
  assert [name.endswith(".partial") for name in entries(tmp_path)] == [False]


def test_second_job_waits_for_the_first_and_builds_nothing(built, tmp_path):
  split, place, _, stored = built
  entry, = entries(place)
  said = []
  with open(tmp_path / f"{entry}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    got = []
    second = threading.Thread(target=lambda: got.append(load(split, tmp_path, said=said)))
    second.start()
    while not said:
      time.sleep(0.01)
    shutil.copytree(place / entry, tmp_path / entry)
  second.join(60)
  np.testing.assert_array_equal(got[0].images, stored.images)
  assert len(said) == 1 and "another job is decoding the same pictures" in said[0]
