"""The resident pictures: order, labels, sizes, squeezing and cropping, refusals."""

import builders
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax import scenario
from gr_jax.data import image, resident
from gr_jax.data.sources import catalogue, digits, tfds_source
from gr_jax.errors import UserError


def draw(source, **changes):
  return scenario.make_scenario(**{
      "labels": source.train.labels, "ids": source.train.ids, "class_names": source.class_names,
      "kind": "natural", "imbalance": 1.0, "num_tasks": 5, "first_task_classes": None, "order": "seeded",
      "seed": 0, "validation_fraction": 0.1, "properties": source.properties, **changes})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  builders.imagenet2012(folder)
  builders.cifar100(folder)
  return folder


def test_rows_lie_class_after_class_in_learning_order():
  source = digits.load()
  drawn = draw(source, kind="lt", imbalance=10.0)
  data = resident.load_train(source, drawn, 8)
  rows = [row for rows in drawn.train for row in rows]
  np.testing.assert_array_equal(data.labels, np.repeat(np.arange(10), drawn.counts))
  np.testing.assert_array_equal(data.images, np.stack([source.train.image(row) for row in rows]))
  np.testing.assert_array_equal(np.asarray(drawn.class_order)[data.labels], source.train.labels[rows])
  assert data.images.dtype == np.uint8 and data.labels.dtype == np.int32 and data.sizes.dtype == np.int32
  np.testing.assert_array_equal(data.sizes, np.full((len(rows), 2), 8))


def test_holdout_is_the_other_part_of_the_draw():
  source = digits.load()
  drawn = draw(source)
  train, held = resident.load_train(source, drawn, 8), resident.load_train(source, drawn, 8, holdout=True)
  assert len(held.labels) == sum(len(rows) for rows in drawn.holdout) > 0
  assert len(train.labels) + len(held.labels) == 1297
  np.testing.assert_array_equal(np.bincount(held.labels), [len(rows) for rows in drawn.holdout])


def test_empty_holdout_has_the_shape_of_the_data_set():
  source = digits.load()
  held = resident.load_train(source, draw(source, validation_fraction=0.0), 8, holdout=True)
  assert held.images.shape == (0, 8, 8, 1) and held.sizes.shape == (0, 2) and held.labels.shape == (0,)


def test_test_set_holds_all_test_pictures_in_learning_order():
  source = digits.load()
  drawn = draw(source)
  data = resident.load_test(source, drawn, 8)
  np.testing.assert_array_equal(data.labels, np.repeat(np.arange(10), 50))
  first = np.flatnonzero(source.test.labels == drawn.class_order[0])
  np.testing.assert_array_equal(data.images[:50], np.stack([source.test.image(row) for row in first]))


def test_progress_sees_every_picture():
  source = digits.load()
  seen = []

  def progress(items, *, total):
    for item in items:
      seen.append(total)
      yield item

  resident.load_test(source, draw(source), 8, progress)
  assert seen == [500] * 500


def test_pictures_of_mixed_sizes_are_squeezed_and_keep_their_size(prepared):
  source = catalogue.load("imagenet_subset", str(prepared))
  drawn = draw(source, order="fixed", validation_fraction=0.0)
  data = resident.load_train(source, drawn, 56)
  # 56 * 256 / 224: room for the crop.
  assert data.images.shape == (400, 64, 64, 3)
  assert len(np.unique(data.sizes, axis=0)) > 100 and (data.sizes >= 40).all() and (data.sizes <= 90).all()
  rows = [row for rows in drawn.train for row in rows]
  for i in (0, 7, 399):
    picture = source.train.image(rows[i])
    assert tuple(data.sizes[i]) == picture.shape[:2]
    expected = PIL.Image.fromarray(picture).resize((64, 64), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(data.images[i], expected)


def test_test_pictures_of_mixed_sizes_are_cropped_already(prepared):
  source = catalogue.load("imagenet_subset", str(prepared))
  drawn = draw(source, order="fixed")
  data = resident.load_test(source, drawn, 56)
  assert data.images.shape == (200, 56, 56, 3)
  np.testing.assert_array_equal(data.labels, np.repeat(np.arange(100), 2))
  row = np.flatnonzero(source.test.labels == drawn.class_order[0])[0]
  np.testing.assert_array_equal(data.images[0], image.central_crop(source.test.image(row), 56))


def test_cifar_pictures_are_kept_to_the_bit(prepared):
  source = catalogue.load("cifar100", str(prepared))
  drawn = draw(source)
  data = resident.load_train(source, drawn, 32)
  assert data.images.shape == (300, 32, 32, 3) and (data.sizes == 32).all()
  np.testing.assert_array_equal(data.images[5], source.train.image(
      [row for rows in drawn.train for row in rows][5]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(height=st.integers(1, 700), width=st.integers(1, 700), side=st.sampled_from([32, 224]))
def test_central_crop_is_short_side_then_centre(height, width, side):
  # Extremely long pictures would be resized to gigabytes; the real sets have none.
  if max(height, width) > 8 * min(height, width):
    height = width
  # Grey level = place along the long side: the crop's middle is the picture's middle.
  ramp = np.linspace(0, 255, max(height, width)).astype(np.uint8)
  grey = np.broadcast_to(ramp if width >= height else ramp[:, None], (height, width))
  crop = image.central_crop(np.stack([grey] * 3, axis=2), side)
  assert crop.shape == (side, side, 3) and crop.dtype == np.uint8
  # Half a pixel where the margin is odd: half of 255 / 37 levels at most, and rounding.
  np.testing.assert_allclose(crop.mean(), grey.mean(), atol=5)


@pytest.mark.parametrize("height,width,size", [
    (375, 500, (341, 256)), (500, 375, (256, 341)), (333, 500, (384, 256)), (100, 125, (320, 256)),
    (64, 64, (256, 256)), (427, 640, (383, 256)),
    # 98 * (256 / 49) and 147 * (256 / 98) fall just below a whole number in floating point.
    (49, 98, (512, 256)), (147, 98, (256, 384))])
def test_central_crop_resizes_to_whole_pixels_as_usual(height, width, size):
  # The long side is 256 * long / short, rounded down; then the middle 224 pixels of each side.
  picture = builders.photograph()[:height, :width]
  if picture.shape[:2] != (height, width):
    picture = np.asarray(PIL.Image.fromarray(builders.photograph()).resize((width, height)))
  resized = PIL.Image.fromarray(picture).resize(size, PIL.Image.Resampling.BILINEAR)
  left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
  np.testing.assert_array_equal(image.central_crop(picture, 224),
                                np.asarray(resized)[top:top + 224, left:left + 224])


def test_squeeze_keeps_the_whole_picture():
  picture = builders.photograph()[:300, :480]
  small = image.squeeze(picture, 64)
  assert small.shape == (64, 64, 3)
  # Each corner of the small picture is the mean of its corner of the large one.
  for rows, columns, y, x in ((slice(0, 75), slice(0, 120), slice(0, 16), slice(0, 16)),
                              (slice(225, 300), slice(360, 480), slice(48, 64), slice(48, 64))):
    np.testing.assert_allclose(small[y, x].mean((0, 1)), picture[rows, columns].mean((0, 1)), atol=1.5)


def test_wrong_image_size_names_the_right_one(prepared):
  source = catalogue.load("cifar100", str(prepared))
  with pytest.raises(UserError, match=r"'train_\d{5}' is 32x32 pixels, but image_size is 28; "
                                      r"set --config.image_size=32"):
    resident.load_train(source, draw(source), 28)
  with pytest.raises(UserError, match="8x8 pixels, but image_size is 32"):
    resident.load_test(digits.load(), draw(digits.load()), 32)


def test_class_without_test_image_is_named(tmp_path):
  wnids = tfds_source.imagenet_subset_wnids()
  builders.imagenet2012(tmp_path, per_class=1, test_per_class=1)
  source = catalogue.load("imagenet_subset", str(tmp_path))
  source.test.labels[source.test.labels == 3] = 4
  with pytest.raises(UserError, match=f"1 classes have no test image \\({wnids[3]}\\)"):
    resident.load_test(source, draw(source), 32)


def test_damaged_picture_is_named_while_loading(tmp_path):
  wnid = tfds_source.imagenet_subset_wnids()[42]
  builders.imagenet2012(tmp_path, damage=f"{wnid}_2.JPEG")
  source = catalogue.load("imagenet_subset", str(tmp_path))
  with pytest.raises(UserError, match=f"{wnid}_2.JPEG"):
    resident.load_train(source, draw(source, validation_fraction=0.0), 32)
