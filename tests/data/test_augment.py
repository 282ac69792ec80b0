"""Augmentation and the plain view against Pillow on real photographs, and what they must never do."""

import functools
import math

import builders
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.data import augment, image
from gr_jax.errors import UserError

IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def pillow(picture, out, top, left, height, width):
  """Crop, then resize, [out, out, 3] float32."""
  box = (int(left), int(top), int(left + width), int(top + height))
  resized = PIL.Image.fromarray(picture).crop(box).resize((out, out), PIL.Image.Resampling.BILINEAR)
  return np.asarray(resized, np.float32)


@functools.cache
def resizer(height, width, out):
  """Jitted crop_and_resize of a stored picture [height, width, 3]."""
  @jax.jit
  def run(image, top, left, box_height, box_width):
    return augment.crop_and_resize(image, augment.resize_weights(top, box_height, height, out),
                                   augment.resize_weights(left, box_width, width, out))
  return run


def boxes(rng, height, width, count):
  """Integer boxes (top, left, height, width): random ones, all of the picture, slivers, corners."""
  rectangles = [(0, 0, height, width), (0, 0, 1, 1), (height - 1, width - 1, 1, 1), (0, 3, height, 2),
                (height - 2, 0, 2, width), (height - 9, width - 7, 9, 7)]
  for _ in range(count):
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    rectangles.append((int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w))
  return rectangles


_draw_boxes = jax.jit(jax.vmap(augment.draw_box, in_axes=(0, None)))


def draw_for(box_keys, size):
  """The boxes (tops, lefts, heights, widths) under these keys, in a picture of `size`."""
  # Always 2000 at once, so that one program serves every test.
  count, size = len(box_keys), jnp.asarray(size, jnp.int32)
  filled = box_keys[np.arange(-(-count // 2000) * 2000) % count].reshape(-1, 2000)
  parts = [_draw_boxes(keys, size) for keys in filled]
  return tuple(np.concatenate(part)[:count] for part in zip(*parts))


def draw(size, seed=0, count=2000):
  return draw_for(jax.random.split(jax.random.key(seed), count), size)


def drawn_flips(keys):
  """Whether the views under these keys are mirrored."""
  return np.asarray(jax.vmap(jax.random.bernoulli)(jax.vmap(jax.random.split)(keys)[:, 1]))


def drawn_for(keys, size):
  """The boxes that the views under these keys take."""
  return draw_for(jax.vmap(jax.random.split)(keys)[:, 0], size)


@functools.cache
def augmenter(kind, size):
  return jax.jit(augment.make_augment(kind, image_size=size, **IDENTITY))


def augmented(kind, images, *, size, seed=0, keys=None, sizes=None):
  """Views in 0..255; sizes default to those of the arrays."""
  images = np.asarray(images)
  keys = jax.random.split(jax.random.key(seed), len(images)) if keys is None else keys
  sizes = np.tile(np.int32(images.shape[1:3]), (len(images), 1)) if sizes is None else np.int32(sizes)
  return np.asarray(augmenter(kind, size)(keys, images, sizes)) * 255


@pytest.mark.parametrize("name,height,width,out", [
    ("china.jpg", 150, 200, 32), ("flower.jpg", 97, 61, 32), ("china.jpg", 40, 40, 32),
    ("flower.jpg", 256, 256, 56)])
def test_crop_then_resize_is_pillows(name, height, width, out):
  picture = builders.photograph(name)[60:60 + height, 90:90 + width]
  run = resizer(height, width, out)
  for top, left, h, w in boxes(np.random.default_rng(0), height, width, 40):
    difference = np.abs(np.asarray(run(picture, top, left, h, w)) - pillow(picture, out, top, left, h, w))
    # Pillow rounds after each axis; half a level each.
    assert difference.max() <= 2 and difference.mean() <= 1, (top, left, h, w)


def test_box_mixes_in_nothing_from_outside():
  picture = builders.photograph()[:90, :120]
  run = resizer(90, 120, 32)
  for top, left, h, w in boxes(np.random.default_rng(1), 90, 120, 40):
    other = 255 - picture
    other[top:top + h, left:left + w] = picture[top:top + h, left:left + w]
    np.testing.assert_array_equal(run(picture, top, left, h, w), run(other, top, left, h, w))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), taps=st.sampled_from([7, 40, 256]), out=st.sampled_from([4, 32]))
def test_rows_of_weights_are_averages_over_the_box(data, taps, out):
  length = data.draw(st.floats(1e-3, taps))
  start = data.draw(st.floats(0, taps - length))
  weights = np.asarray(augment.resize_weights(jnp.float32(start), jnp.float32(length), taps, out))
  assert weights.shape == (out, taps) and np.isfinite(weights).all() and (weights >= 0).all()
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
  pixels = np.arange(taps)
  touched = pixels[weights.sum(0) > 0]
  # A pixel of which the box holds nothing has no weight (one pixel's slack for a box on a pixel's border).
  assert touched.min() >= math.floor(start) - 1e-3 and touched.max() <= math.ceil(start + length)
  # Rows look from left to right.
  assert (np.diff(weights @ pixels) >= -1e-4).all()


def test_box_thinner_than_a_pixel_takes_the_pixel_it_lies_in():
  # A picture of 20 x 50,000 stored at 40 x 40: one box of 27 columns is a fiftieth of a stored pixel.
  for column, length in ((3.2, 0.02), (39.97, 0.02), (0.0, 0.3), (12.49, 0.02)):
    weights = np.asarray(augment.resize_weights(jnp.float32(column), jnp.float32(length), 40, 8))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights, np.tile(np.eye(40)[int(column)], (8, 1)), atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (40, 40), (375, 500), (500, 333), (120, 480)])
def test_boxes_stay_within_their_limits(size):
  top, left, height, width = draw(size)
  assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
  assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
  # Rounding moves each side by half a pixel at most.
  share = height * width / (size[0] * size[1])
  slack = (height + width + 1) / (2 * size[0] * size[1])
  assert (share >= 0.08 - slack).all() and (share <= 1 + slack).all()
  assert ((width + 0.5) / (height - 0.5) >= 3 / 4).all() and ((width - 0.5) / (height + 0.5) <= 4 / 3).all()


def test_boxes_of_a_square_are_distributed_as_specified():
  # In a large square nearly all small draws fit, so what is cut off is known: compare below area 0.5.
  size, count = (1000, 1000), 40_000
  top, left, height, width = draw(size, count=count)
  share, log_aspect = height * width / 1e6, np.log(width / height)
  small = share < 0.5
  # All of 0.08..0.5 fits (aspect 4/3 of area 0.5 is 816 wide), so shares are uniform there.
  histogram, _ = np.histogram(share[small], 6, (0.08, 0.5))
  assert abs(histogram / small.sum() - 1 / 6).max() < 0.012
  histogram, _ = np.histogram(log_aspect[small], 6, (math.log(3 / 4), math.log(4 / 3)))
  assert abs(histogram / small.sum() - 1 / 6).max() < 0.012
  for offset, room in ((top, 1000 - height), (left, 1000 - width)):
    relative = (offset[small] + 0.5) / (room[small] + 1)
    histogram, _ = np.histogram(relative, 5, (0, 1))
    assert abs(histogram / small.sum() - 0.2).max() < 0.012
  # Area, aspect and the two offsets are drawn apart.
  correlations = np.corrcoef([share[small], log_aspect[small], top[small] / (1001 - height[small]),
                              left[small] / (1001 - width[small])])
  assert abs(correlations - np.eye(4)).max() < 0.03


def test_boxes_are_the_specified_ones_given_that_they_fit():
  # Redrawing until the box fits means: the distribution of a single draw, on the condition that it fits.
  size = (100, 100)
  _, _, height, width = draw(size, count=20_000)
  share = height * width / 1e4
  logs = np.linspace(math.log(3 / 4), math.log(4 / 3), 401)
  areas, aspects = np.meshgrid(np.linspace(0.08, 1, 401), np.exp(logs))
  widths, heights = np.round(100 * np.sqrt(areas * aspects)), np.round(100 * np.sqrt(areas / aspects))
  fits = (widths <= 100) & (heights <= 100)
  expected = (widths * heights / 1e4)[fits]
  for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
    assert abs(np.quantile(share, quantile) - np.quantile(expected, quantile)) < 0.015


@settings(max_examples=40, deadline=None, derandomize=True)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), seed=st.integers(0, 2**31 - 1))
def test_any_picture_has_a_box_inside_it(height, width, seed):
  top, left, box_height, box_width = draw((height, width), seed, count=64)
  assert (box_height >= 1).all() and (box_width >= 1).all()
  assert (top >= 0).all() and (top + box_height <= height).all()
  assert (left >= 0).all() and (left + box_width <= width).all()


@pytest.mark.parametrize("size,box", [
    ((10, 5000), (0, 2493, 10, 13)), ((5000, 10), (2493, 0, 13, 10)), ((1, 900), (0, 449, 1, 1)),
    ((900, 1), (449, 0, 1, 1)), ((1, 1), (0, 0, 1, 1)), ((3, 600), (0, 298, 3, 4))])
def test_elongated_picture_gives_the_largest_central_box(size, box):
  top, left, height, width = draw(size, count=300)
  for drawn, expected in zip((top, left, height, width), box):
    np.testing.assert_array_equal(drawn, expected)


def test_offsets_are_uniform_from_end_to_end_and_drawn_apart():
  top, left, height, width = draw((24, 24), count=20_000)
  for offset, side in ((top, height), (left, width)):
    for room in (1, 2, 5, 8):
      shares = np.bincount(offset[side == 24 - room], minlength=room + 1) / (side == 24 - room).sum()
      # Each of the room + 1 places, the two ends too.
      assert len(shares) == room + 1 and np.abs(shares - 1 / (room + 1)).max() < 0.06
  square = (height == width) & (height <= 16)
  # Two offsets from one key would be equal in every square box.
  assert square.sum() > 500 and (top == left)[square].mean() < 0.2


def test_box_is_mapped_from_the_original_geometry_to_the_stored_one():
  # A photograph stored squeezed: the view of a box must be that of the same box in the original.
  original = builders.photograph()[:300, :480]
  stored = image.squeeze(original, 256)
  keys = jax.random.split(jax.random.key(3), 30)
  views = augmented("resized_crop_flip", np.tile(stored, (30, 1, 1, 1)), size=56, keys=keys,
                    sizes=[(300, 480)] * 30)
  exact = np.stack([pillow(original, 56, *box) for box in zip(*drawn_for(keys, (300, 480)))])
  exact = np.where(drawn_flips(keys)[:, None, None, None], exact[:, :, ::-1], exact)
  # Two resizes in place of one blur a little; another box of the same picture is far away.
  assert np.abs(views - exact).mean((1, 2, 3)).max() < 6
  assert np.abs(views - np.roll(exact, 1, axis=0)).mean() > 10 * np.abs(views - exact).mean()


@pytest.mark.parametrize("kind,pad,height,width", [
    ("resized_crop_flip", 0, 120, 160), ("pad_resized_crop_flip", 4, 32, 32)])
def test_view_is_pillows_crop_of_the_drawn_box(kind, pad, height, width):
  picture = builders.photograph("flower.jpg")[100:100 + height, 200:200 + width]
  # CIFAR's: black all around before the crop, in pixel values.
  whole = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)))
  keys = jax.random.split(jax.random.key(5), 200)
  views = augmented(kind, np.tile(picture, (200, 1, 1, 1)), size=32, keys=keys)
  exact = np.stack([pillow(whole, 32, *box) for box in zip(*drawn_for(keys, whole.shape[:2]))])
  flips = drawn_flips(keys)
  exact[flips] = exact[flips, :, ::-1]
  assert np.abs(views - exact).max() <= 2 and 70 <= flips.sum() <= 130
  # The padding is in reach of the crops.
  assert pad == 0 or (exact == 0).all(axis=3).any((1, 2)).sum() > 50


@pytest.mark.parametrize("name,height,width", [("china.jpg", 80, 160), ("flower.jpg", 320, 40)])
def test_view_from_the_cached_array_is_pillows_crop_of_it(name, height, width):
  """At the 224-pixel configs' sizes: originals whose boxes fall on whole pixels of the 320 x 320 that are kept."""
  kept = image.squeeze(builders.photograph(name)[50:370, 50:530], 320)
  keys = jax.random.split(jax.random.key(9), 24)
  views = augmented("resized_crop_flip", np.tile(kept, (24, 1, 1, 1)), size=224, keys=keys,
                    sizes=[(height, width)] * 24)
  down, across = 320 // height, 320 // width
  exact = np.stack([pillow(kept, 224, top * down, left * across, tall * down, wide * across)
                    for top, left, tall, wide in zip(*drawn_for(keys, (height, width)))])
  exact = np.where(drawn_flips(keys)[:, None, None, None], exact[:, :, ::-1], exact)
  difference = np.abs(views - exact)
  assert difference.max() <= 2 and difference.mean((1, 2, 3)).max() <= 1


@pytest.mark.parametrize("kind,pad", [("pad_resized_crop_flip", 4), ("resized_crop_flip", 0)])
def test_flip_is_exact_and_happens_half_the_time(kind, pad):
  picture = builders.photograph()[100:132, 200:232]
  whole = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)))
  keys = jax.random.split(jax.random.key(11), 600)
  views = augmented(kind, np.tile(picture, (600, 1, 1, 1)), size=32, keys=keys)
  tops, lefts, heights, widths = drawn_for(keys, whole.shape[:2])
  straight = np.stack([resizer(*whole.shape[:2], 32)(whole, *box)
                       for box in zip(tops, lefts, heights, widths)])
  as_is = np.abs(views - straight).max((1, 2, 3)) < 1e-2
  mirrored = np.abs(views - straight[:, :, ::-1]).max((1, 2, 3)) < 1e-2
  # Each view is one or the other; four standard deviations around one half.
  assert (as_is ^ mirrored).all() and 250 <= mirrored.sum() <= 350
  # The flip is drawn apart from the box.
  for part in (tops, lefts, heights, widths):
    assert abs(np.corrcoef(mirrored, part)[0, 1]) < 0.17


@pytest.mark.parametrize("kind", ["shift", "pad_resized_crop_flip", "resized_crop_flip"])
def test_view_depends_on_its_own_key_and_picture_alone(kind):
  rng = np.random.default_rng(0)
  images = np.stack([builders.crop(rng, 32, 32) for _ in range(8)])
  keys = jax.random.split(jax.random.key(2), 8)
  views = augmented(kind, images, size=32, keys=keys)
  np.testing.assert_array_equal(augmented(kind, images, size=32, keys=keys), views)
  order = np.asarray([3, 1, 7, 0, 2, 6, 5, 4])
  np.testing.assert_array_equal(augmented(kind, images[order], size=32, keys=keys[order]), views[order])
  others = images.copy()
  others[1:] = 255 - others[1:]
  np.testing.assert_array_equal(augmented(kind, others, size=32, keys=keys)[0], views[0])
  # One picture under eight keys: eight views.
  many = augmented(kind, images[[0] * 8], size=32, keys=keys)
  assert len({view.tobytes() for view in many}) == 8


def test_cutout_is_the_view_without_it_with_a_square_of_the_mean():
  picture = np.full((32, 32, 3), 200, np.uint8)
  keys = jax.random.split(jax.random.key(4), 400)
  options = {"image_size": 32, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
  sizes, images = np.full((400, 2), 32, np.int32), np.tile(picture, (400, 1, 1, 1))
  views = [jax.jit(augment.make_augment(f"pad_resized_crop_flip{kind}", **options)) for kind in ("", "_cutout")]
  plain, cut = (np.asarray(view(keys, images, sizes)) for view in views)
  gone = (cut != plain).all(-1)
  # The mean colour is 0 once it is normalised; all else is as before.
  assert np.abs(cut[gone]).max() < 1e-6
  np.testing.assert_array_equal(cut[~gone], plain[~gone])
  rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
  np.testing.assert_array_equal(gone.sum((1, 2)), rows * columns)
  # Sixteen pixels, down to eight at the border, and every pixel is reached.
  assert rows.max() == columns.max() == 16 and rows.min() >= 8 and columns.min() >= 8
  assert gone.any(0).all() and abs(np.corrcoef(rows, columns)[0, 1]) < 0.2


def test_shift_moves_by_an_eighth_at_most_and_fills_with_black():
  picture = builders.photograph()[100:116, 200:216, :1]
  views = np.asarray(jax.jit(augment.make_augment("shift", image_size=16, mean=(0.0,), std=(1.0,)))(
      jax.random.split(jax.random.key(0), 500), np.tile(picture, (500, 1, 1, 1)),
      np.full((500, 2), 16, np.int32))) * 255
  padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)))
  possible = {padded[top:top + 16, left:left + 16].astype(np.uint8).tobytes(): (top, left)
              for top in range(5) for left in range(5)}
  places = [possible[np.round(view).astype(np.uint8).tobytes()] for view in views]
  counts = np.unique(places, axis=0, return_counts=True)[1]
  # All 25 places, each about 20 times.
  assert len(counts) == 25 and counts.min() >= 5 and counts.max() <= 45


def test_none_is_the_picture_itself_normalised():
  rng = np.random.default_rng(0)
  images = np.stack([builders.crop(rng, 32, 32) for _ in range(4)])
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  view = augment.make_augment("none", image_size=32, mean=mean, std=std)(
      jax.random.split(jax.random.key(0), 4), images, np.full((4, 2), 32, np.int32))
  expected = (images / 255.0 - np.asarray(mean)) / np.asarray(std)
  assert view.dtype == jnp.float32
  np.testing.assert_allclose(view, expected, atol=1e-5)
  plain = augment.make_plain(image_size=32, mean=mean, std=std, cropped=True)(images, np.full((4, 2), 32, np.int32))
  np.testing.assert_array_equal(plain, view)


@pytest.mark.parametrize("kind", ["none", "shift", "pad_resized_crop_flip"])
def test_views_for_one_size_refuse_squeezed_pictures(kind):
  with pytest.raises(UserError, match=f"augmentation is '{kind}'.* 32x32 pixels, but these are stored at 37x37.*"
                                      f"--config.augmentation=resized_crop_flip"):
    augmented(kind, np.zeros((2, 37, 37, 3), np.uint8), size=32)


def test_normalise_brings_a_picture_to_mean_zero_and_spread_one():
  picture = builders.photograph()[:200, :200]
  scaled = picture.reshape(-1, 3) / 255
  mean, std = scaled.mean(0), scaled.std(0)
  normalised = np.asarray(augment.normalise(picture, tuple(mean), tuple(std))).reshape(-1, 3)
  np.testing.assert_allclose(normalised.mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(normalised.std(0), 1, atol=1e-4)


@pytest.mark.parametrize("height,width", [(20, 50_000), (50_000, 20), (1, 4000), (4000, 1), (1, 1), (2, 3)])
def test_extreme_pictures_give_finite_views(height, width):
  # Stored at 37 x 37, as load_train keeps pictures for image_size = 32.
  stored = np.tile(builders.photograph()[:37, :37], (16, 1, 1, 1))
  sizes = [(height, width)] * 16
  views = augmented("resized_crop_flip", stored, size=32, sizes=sizes)
  assert views.shape == (16, 32, 32, 3) and np.isfinite(views).all()
  assert views.min() >= -1e-3 and views.max() <= 255.001
  plain = np.asarray(augment.make_plain(image_size=32, **IDENTITY, cropped=False)(stored, np.int32(sizes))) * 255
  assert plain.shape == (16, 32, 32, 3) and np.isfinite(plain).all()
  assert plain.min() >= -1e-3 and plain.max() <= 255.001


@pytest.mark.parametrize("height,width", [(300, 480), (427, 260), (256, 256), (120, 90)])
def test_plain_view_of_a_squeezed_picture_is_the_central_crop(height, width):
  for name in ("china.jpg", "flower.jpg"):
    original = builders.photograph(name)[:height, 100:100 + width]
    stored = image.squeeze(original, 128)
    view = np.asarray(augment.make_plain(image_size=112, **IDENTITY, cropped=False)(
        stored[None], np.int32([(height, width)])))[0] * 255
    expected = image.central_crop(original, 112).astype(np.float32)
    # Squeezed and stretched again, the picture is a little softer, no more.
    assert np.abs(view - expected).mean() < 6
    assert np.abs(view.mean((0, 1)) - expected.mean((0, 1))).max() < 1.5
    # One pixel off is visibly worse: the crop sits where it should.
    shifted = np.roll(expected, 4, axis=1)
    assert np.abs(view - shifted)[:, 8:-8].mean() > np.abs(view - expected)[:, 8:-8].mean() + 1


def test_plain_view_of_a_picture_kept_at_the_views_own_side_is_its_centre():
  wide = np.full((100, 300, 3), 255, np.uint8)
  wide[:, 100:200] = 0
  view = augment.make_plain(image_size=32, **IDENTITY, cropped=False)(
      image.squeeze(wide, 32)[None], np.int32([(100, 300)]))
  # The middle third, less what antialiasing lets in at its edges.
  assert np.abs(view[:, :, 4:-4]).max() < 1e-3
