"""A picture file becomes the array that evaluation sees."""

import builders
import numpy as np
import PIL.Image

from gr_jax.data import resident
from gr_jax.data.sources import folder
from gr_jax.scenario import Scenario, Task
from gr_jax.serving import views

KINDS = (("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "RGBA"), ("png", "P"), ("webp", "RGB"))


def test_pictures_of_mixed_sizes_are_cropped_as_in_evaluation(tmp_path):
  rng = np.random.default_rng(0)
  for part in ("train", "test"):
    for number, (suffix, mode) in enumerate(KINDS):
      path = tmp_path / part / f"class{number % 2}" / f"{number}.{suffix}"
      path.parent.mkdir(parents=True, exist_ok=True)
      exif = PIL.Image.Exif()
      exif[0x0112] = 6 if number == 0 else 1
      height, width = rng.integers(30, 90, 2)
      PIL.Image.fromarray(builders.crop(rng, height, width)).convert(mode).save(path, exif=exif)
  source = folder.load(str(tmp_path), train_list=None, test_list=None, test_fraction=0.0, test_seed=0,
                       on_bad_image="fail")
  scenario = Scenario(class_order=(1, 0), class_names=("class1", "class0"), tasks=(Task(0, 2),), train=((0,), (1,)),
                      holdout=((), ()), profile=None, digest="")
  evaluated = resident.load_test(source, scenario, 28)
  paths = [tmp_path / source.test.ids[row] for label in (1, 0) for row in np.flatnonzero(source.test.labels == label)]
  form = views.Form(side=28, channels=3, uniform=False)
  np.testing.assert_array_equal(np.stack([views.read(path, form) for path in paths]), evaluated.images)


def test_pictures_of_one_size_stay_as_they_are():
  picture = builders.crop(np.random.default_rng(0), 32, 32)
  np.testing.assert_array_equal(views.of_array(picture, views.Form(32, 3, True)), picture)
  # Alpha is dropped.
  np.testing.assert_array_equal(
      views.of_array(np.dstack([picture, picture[..., :1]]), views.Form(32, 3, True)), picture)
