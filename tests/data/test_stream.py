"""Streamed views against Pillow and against the step's own; dead, hanging and failing workers."""

import subprocess
import sys
import time
import types

import builders
import folders
import jax
import numpy as np
import PIL.Image
import pytest
import runs

from gr_jax import methods, seeding
from gr_jax.data import augment, image, stream, workers
from gr_jax.data.arrays import Data
from gr_jax.data.sources import folder
from gr_jax.errors import UserError
from gr_jax.training import programs

SIDE, BATCH = 32, 16
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(autouse=True)
def one_worker(monkeypatch):
  """Each takes seconds of CPU time to start, and does what several do."""
  monkeypatch.setattr(workers, "count", lambda: 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  return folders.write(tmp_path_factory.mktemp("files") / "train", 8)


def originals(files, **faults):
  split = folders.FilesSplit(files, **faults)
  whole = folders.FilesSplit(files)
  sizes = np.asarray([whole.image(row).shape[:2] for row in range(len(split.ids))], np.int32)
  return stream.Originals(split, np.arange(len(split.ids)), sizes, split.labels.astype(np.int32))


def views(pictures, rows, starts, timeout=600, mine=None):
  """Chunks of one device's data, or of those whose places in a batch are `mine` [devices, share]."""
  read = stream.reader(pictures, side=SIDE, timeout=timeout,
                       mine=lambda size: np.arange(size)[None] if mine is None else mine)
  chunks = list(read([chosen.reshape(-1, BATCH) for chosen in rows], starts, jax.random.key(3), 1))
  return chunks if mine is not None else [jax.tree.map(lambda array: array[0], chunk) for chunk in chunks]


def draw_crop(key, size):
  """(box, whether it is flipped)."""
  for_box, for_flip = jax.random.split(key)
  return augment.draw_box(for_box, size), jax.random.bernoulli(for_flip)


def test_views_are_pillows_crops_of_the_boxes_that_the_step_draws(files, monkeypatch):
  monkeypatch.setattr(workers, "count", lambda: 2)
  pictures = originals(files)
  rows = [np.random.default_rng(0).permutation(32).astype(np.int32), np.arange(16, dtype=np.int32)]
  chunks = views(pictures, rows, [7, 9])
  assert [chunk.images.shape for chunk in chunks] == [(32, SIDE, SIDE, 3), (16, SIDE, SIDE, 3)]
  augmented, draw = jax.jit(augment.make_augment("resized_crop_flip", image_size=SIDE, **PLAIN)), jax.jit(draw_crop)
  batches = [(chunks[0], 0, 7), (chunks[0], 1, 8), (chunks[1], 0, 9)]
  for (chunk, number, step), chosen in zip(batches, (rows[0][:16], rows[0][16:], rows[1])):
    key = seeding.derive(jax.random.key(3), 1, step, seeding.AUGMENT)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(BATCH))
    # Each size of picture compiles a program of its own, so a few stand for all.
    for place, row in list(enumerate(chosen))[::7]:
      view = chunk.images[number * BATCH + place].astype(np.float32)
      picture = pictures.split.image(row)
      # What the step makes of the same picture under the same key, on the device.
      exact = 255 * np.asarray(augmented(keys[place:place + 1], picture[None], pictures.sizes[row][None]))[0]
      assert np.abs(view - exact).max() <= 2 and np.abs(view - exact).mean() <= 1
      (top, left, height, width), flipped = draw(keys[place], pictures.sizes[row])
      box = PIL.Image.fromarray(picture).crop(tuple(map(int, (left, top, left + width, top + height))))
      pillow = np.asarray(box.resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR))
      np.testing.assert_array_equal(view, pillow[:, ::-1] if flipped else pillow)
    np.testing.assert_array_equal(chunk.labels[number * BATCH:(number + 1) * BATCH], pictures.labels[chosen])


def test_a_process_reads_the_shares_of_its_devices(files):
  pictures, rows = originals(files), [np.random.default_rng(0).permutation(32).astype(np.int32)]
  whole, = views(pictures, rows, [7])
  # Two of four devices, four places of a batch each.
  part, = views(pictures, rows, [7], mine=np.arange(8, 16).reshape(2, 4))
  assert part.images.shape == (2, 8, SIDE, SIDE, 3) and part.sizes.shape == (2, 8, 2)
  for name in Data._fields:
    both = getattr(whole, name).reshape(2, BATCH, *getattr(whole, name).shape[1:])
    np.testing.assert_array_equal(getattr(part, name)[0], both[:, 8:12].reshape(8, *both.shape[2:]))
    np.testing.assert_array_equal(getattr(part, name)[1], both[:, 12:16].reshape(8, *both.shape[2:]))


def test_central_crops_for_the_features(files):
  pictures, rows = originals(files), np.asarray([3, 30, 8, 9, 1], np.int32)
  blocks = list(stream.central(pictures, rows, side=SIDE, block=2, timeout=600))
  assert [len(block.labels) for block in blocks] == [2, 2, 1]
  np.testing.assert_array_equal(np.concatenate([block.images for block in blocks]),
                                [image.central_crop(pictures.split.image(row), SIDE) for row in rows])


# A dead worker is noticed long before the timeout; one that hangs, which it does for ten minutes, after it.
@pytest.mark.parametrize("faults, timeout, words", [
    ({"die": ["01_0003.jpg"]}, 600, "a process that reads pictures died"),
    ({"hang": ["01_0003.jpg"]}, 6, r"not responded for 6 s \(worker_timeout\)")])
def test_dead_or_hanging_worker_ends_it_in_a_bounded_time(files, faults, timeout, words):
  started = time.monotonic()
  with pytest.raises(UserError, match=words):
    views(originals(files, **faults), [np.arange(32, dtype=np.int32)], [0], timeout=timeout)
  assert time.monotonic() - started < 300


def test_workers_leave_with_a_killed_parent(files, tmp_path):
  script = tmp_path / "stream.py"
  script.write_text(
      f"import sys; sys.path[:0] = {[str(runs.ROOT), str(runs.ROOT / 'tests')]!r}\n"
      "import pathlib, time\nimport numpy as np\nfrom data import test_stream\nfrom gr_jax.data import stream\n"
      "if __name__ == '__main__':\n"
      f"  found = test_stream.originals(pathlib.Path({str(files)!r}))\n"
      "  views = stream.central(found, np.arange(8), side=16, block=2, timeout=600)\n"
      "  next(views)\n"
      "  print('begun', flush=True)\n"
      "  time.sleep(600)\n")
  job = subprocess.Popen([sys.executable, str(script)], start_new_session=True, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True)
  with job.stdout:
    assert job.stdout.readline() == "begun\n"
  runs.kill_the_parent_alone(job)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
  (tmp_path / "bad.png").write_text("no picture")
  split = folder.FolderSplit(tmp_path, np.zeros(BATCH, np.int64), ["bad.png"] * BATCH)
  pictures = stream.Originals(split, np.arange(BATCH), np.full((BATCH, 2), 40, np.int32), np.zeros(BATCH, np.int32))
  with pytest.raises(UserError, match=f"^picture {tmp_path}/bad.png cannot be read"):
    views(pictures, [np.arange(BATCH, dtype=np.int32)], [0])


def test_augmented_images_cannot_be_measured(tmp_path):
  split = folder.FolderSplit(tmp_path, np.zeros(1, np.int64), ["a.png"])
  pictures = stream.Originals(split, np.zeros(1, np.int64), np.full((1, 2), 40, np.int32), np.zeros(1, np.int32))
  experiment = types.SimpleNamespace(method=methods.make("lucir", {"gvalign_statistics": "augmented"}, memory=20,
                                                         chosen=("gvalign",)), devices=jax.devices()[:1])
  with pytest.raises(UserError, match="cannot when pictures are streamed; set .*pictures=prefetch, .*=plain"):
    programs._measuring(experiment, pictures, None, experiment.method.stages[1].before, 1)


def test_two_paths_on_photographs():
  """Cropped from the original, or from the square of the cache: the measured difference of the 224-pixel configs."""
  differences = []
  for name in ("china.jpg", "flower.jpg"):
    picture = builders.photograph(name)
    kept = image.squeeze(picture, 320)
    keys = jax.random.split(jax.random.key(1), 20)
    tile = lambda image: np.tile(image, (20, 1, 1, 1))
    sizes = np.tile(np.asarray(picture.shape[:2], np.int32), (20, 1))
    augmented = jax.jit(augment.make_augment("resized_crop_flip", image_size=224, **PLAIN))
    ours, theirs = (255 * np.asarray(augmented(keys, tile(image), sizes)) for image in (kept, picture))
    differences.append(np.abs(ours - theirs).mean())
  # Sharpness, not place: 2.9 levels in the mean of cache.py's table.
  assert 1 < np.mean(differences) < 5
