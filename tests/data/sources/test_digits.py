"""The embedded digits: which rows, which test set, which ids, which grey levels."""

import hashlib
import io

import numpy as np
import PIL.Image
from sklearn import datasets

from gr_jax import scenario
from gr_jax.data.sources import catalogue, digits


def test_all_rows_are_there_once_with_their_row_as_id():
  source = digits.load()
  labels = datasets.load_digits().target
  assert len(source.train.ids) == 1797 - 500 and len(source.test.ids) == 500
  rows = [int(name) for name in (*source.train.ids, *source.test.ids)]
  assert sorted(rows) == list(range(1797)) and all(len(name) == 5 for name in source.train.ids)
  np.testing.assert_array_equal(labels[rows], np.concatenate([source.train.labels, source.test.labels]))


def test_test_set_is_the_last_fifty_rows_of_each_class():
  source = digits.load()
  labels = datasets.load_digits().target
  for label in range(10):
    expected = np.flatnonzero(labels == label)[-50:]
    test_rows = [int(source.test.ids[row]) for row in np.flatnonzero(source.test.labels == label)]
    assert test_rows == expected.tolist()


def test_pictures_are_scikit_learns_stretched_to_bytes():
  source = digits.load()
  originals = datasets.load_digits().images
  for split in (source.train, source.test):
    for row in range(0, len(split.ids), 97):
      picture = split.image(row)
      assert picture.shape == (8, 8, 1) and picture.dtype == np.uint8
      np.testing.assert_allclose(picture[..., 0] / 255 * 16, originals[int(split.ids[row])], atol=16 / 510)
  assert max(source.train.image(row).max() for row in range(50)) == 255


def test_statistics_are_about_those_of_the_pictures():
  source = digits.load()
  pixels = np.stack([source.train.image(row) for row in range(len(source.train.ids))]) / 255
  assert abs(pixels.mean() - source.mean[0]) < 0.02 and abs(pixels.std() - source.std[0]) < 0.02


def test_main_scenario_has_the_specified_profile():
  source = catalogue.load("digits", None)
  drawn = scenario.make_scenario(
      labels=source.train.labels, ids=source.train.ids, class_names=source.class_names, kind="lt",
      imbalance=10.0, num_tasks=5, first_task_classes=None, order="fixed", seed=0, validation_fraction=0.1,
      properties=source.properties)
  assert drawn.class_order == tuple(range(10)) and drawn.capped == {}
  # n_max = 120, rho = 10: the profile, in whatever order the seed puts it.
  assert sorted(drawn.profile, reverse=True) == [int(120 * 10 ** (-i / 9) + 1e-9) for i in range(10)]
  assert [len(t) + len(h) for t, h in zip(drawn.train, drawn.holdout)] == list(drawn.profile)


def test_loading_twice_gives_the_same_bytes():
  def fingerprint():
    source = digits.load()
    return hashlib.sha256(b"".join(source.train.image(row).tobytes() for row in range(1297))).hexdigest()
  assert fingerprint() == fingerprint()


def test_the_pictures_as_files():
  split = digits.load().test
  with PIL.Image.open(io.BytesIO(split.encoded(3))) as picture:
    assert picture.format == "PNG" and picture.size == split.size(3)[::-1]
    np.testing.assert_array_equal(np.asarray(picture)[..., None], split.image(3))
