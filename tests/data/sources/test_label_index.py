"""The kept labels and ids of a large split: read once, checked at opening, made again where they do not fit."""

import errno
import fcntl
import os
import pickle
import threading

import builders
import numpy as np
import pytest

from gr_jax.data.sources import catalogue, label_index
from gr_jax.errors import UserError

COUNT = 100


class Records:
  """Counts what is read of it."""

  def __init__(self, shift=0):
    self.labels = np.arange(COUNT) % 7 + shift
    self.ids = np.asarray([f"picture_{number * 13 % COUNT}.jpg".encode() for number in range(COUNT)])
    self.read = 0

  def __call__(self, rows):
    self.read += len(rows)
    return label_index.Index(self.labels[list(rows)], self.ids[list(rows)])


def load(records, *places, key="key", said=None):
  lines = [] if said is None else said
  return label_index.load(records, COUNT, key, name="set-train", places=places, say=lines.append)


def same(split, records):
  np.testing.assert_array_equal(split.labels, records.labels)
  assert split.ids.tolist() == records.ids.tolist()


def test_records_are_read_once(tmp_path):
  first, second, said = Records(), Records(), []
  same(load(first, tmp_path, said=said), first)
  assert first.read == COUNT and "reading labels and ids of 100 records once, into" in said[0]
  same(load(second, tmp_path, said=said), first)
  # A few, to compare.
  assert second.read == 16 and len(said) == 1


def test_another_key_is_another_file(tmp_path):
  load(Records(), tmp_path)
  other = Records(shift=1)
  same(load(other, tmp_path, key="other"), other)
  assert len(list(tmp_path.glob("set-train-index-v1-*.npz"))) == 2


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "zeros"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
  load(Records(), tmp_path)
  path, = tmp_path.glob("*.npz")
  content = path.read_bytes()
  middle = len(content) // 2
  path.write_bytes({"empty": b"", "half": content[:middle], "zeros": bytes(len(content)),
                    "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1:]}[damage])
  records = Records()
  same(load(records, tmp_path), records)
  assert records.read >= COUNT and path.read_bytes() == content


@pytest.mark.parametrize("changed", ["labels", "ids"])
def test_a_file_of_other_records_is_made_again(tmp_path, changed):
  load(Records(), tmp_path)
  records = Records()
  setattr(records, changed, getattr(records, changed)[::-1].copy())
  same(load(records, tmp_path), records)


def test_nowhere_to_write_is_said_and_no_error(tmp_path):
  (tmp_path / "file").write_text("")
  records, said = Records(), []
  same(load(records, tmp_path / "file" / "inside", said=said), records)
  assert "read again at every start" in said[0]


def test_a_full_disk_is_said_and_no_error(tmp_path, monkeypatch):
  def full(file, **arrays):
    file.write(b"begun")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  monkeypatch.setattr(np, "savez", full)
  records, said = Records(), []
  same(load(records, tmp_path, said=said), records)
  assert "No space left on device" in said[-1] and not list(tmp_path.glob("*.npz*[!k]"))


def test_a_second_job_waits_for_the_first(tmp_path):
  (tmp_path / "done").mkdir()
  load(Records(), tmp_path / "done")
  finished, = (tmp_path / "done").glob("*.npz")
  records, said, loaded = Records(), [], []
  with open(tmp_path / f"{finished.name}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    second = threading.Thread(target=lambda: loaded.append(load(records, tmp_path, said=said)))
    second.start()
    while not said:
      assert second.is_alive()
    finished.rename(tmp_path / finished.name)
  second.join(60)
  same(loaded[0], records)
  assert records.read == 16 and len(said) == 1 and "another job" in said[0]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  builders.imagenet2012(folder, per_class=2)
  return folder


def test_prepared_data_sets_of_one_folder_share_it(prepared, tmp_path, monkeypatch):
  monkeypatch.setattr(label_index, "FROM_BYTES", 0)
  plain = {name: catalogue.load(name, str(prepared)) for name in ("imagenet_subset", "imagenet1000")}
  for name, expected in plain.items():
    source = catalogue.load(name, str(prepared), cache_dir=str(tmp_path))
    for split, wanted in ((source.train, expected.train), (source.test, expected.test)):
      np.testing.assert_array_equal(split.labels, wanted.labels)
      assert split.ids == wanted.ids
      np.testing.assert_array_equal(split.image(5), wanted.image(5))
  assert sorted(path.name.split("-index")[0] for path in tmp_path.glob("*.npz")) == [
      "imagenet2012-train", "imagenet2012-validation"]


def test_small_or_uncached_splits_leave_nothing(prepared, tmp_path, monkeypatch):
  assert len(catalogue.load("imagenet_subset", str(prepared), cache_dir=str(tmp_path)).train.ids) == 200
  monkeypatch.setattr(label_index, "FROM_BYTES", 0)
  assert len(catalogue.load("imagenet_subset", str(prepared), cache_dir="off").train.ids) == 200
  assert not list(tmp_path.iterdir()) and not (prepared / "gr_jax_cache").exists()


def test_another_process_gets_the_records_without_reading_them_again(prepared):
  split = catalogue.load("imagenet_subset", str(prepared), say=lambda line: None).train
  wanted, picture = split.ids, split.image(3)
  copy = pickle.loads(pickle.dumps(split))
  copy._read = lambda rows: pytest.fail("read again")
  assert copy.ids == wanted
  np.testing.assert_array_equal(copy.image(3), picture)


def test_unreadable_records_are_an_error_with_the_remedy(prepared, tmp_path, monkeypatch):
  monkeypatch.setattr(label_index, "FROM_BYTES", 0)
  split = catalogue.load("imagenet_subset", str(prepared), cache_dir=str(tmp_path)).train
  monkeypatch.setattr(type(split._records), "__getitems__", lambda self, rows: (_ for _ in ()).throw(ValueError("cut")))
  with pytest.raises(UserError, match=r"cannot be read \(cut\); remove the folder"):
    _ = split.labels
  assert not list(tmp_path.glob("*.npz"))
