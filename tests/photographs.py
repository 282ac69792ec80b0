"""Writes a folder of pictures: python tests/photographs.py FOLDER [--classes=20] [--per_class=150] [--sides=120,480].

Crops of the photographs that scikit-learn and scikit-image bring along, mixed in size, mode, format and orientation; a
class is a place in one of them, so that there is something to learn.
"""

import argparse
import functools
import pathlib

import numpy as np
import PIL.Image
import skimage
from sklearn import datasets

_OF_SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
               "retina.jpg", "rocket.jpg")
# (suffix, mode): mostly colour JPEG, as photographs are.
KINDS = ((".jpg", "RGB"), (".jpg", "L"), (".jpg", "RGB"), (".jpeg", "CMYK"), (".jpg", "RGB"), (".png", "RGBA"),
         (".jpg", "RGB"), (".png", "P"), (".JPG", "RGB"), (".webp", "RGB"))
_ORIENTATION = 0x0112


@functools.cache
def photographs():
  """Ten photographs, [height, width, 3] uint8 each; the smallest side is 300 pixels."""
  folder = pathlib.Path(skimage.__file__).parent / "data"
  pictures = [datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
  for name in _OF_SKIMAGE:
    with PIL.Image.open(folder / name) as picture:
      pictures.append(np.asarray(picture.convert("RGB")))
  return pictures


def crop(rng, label, height, width):
  """A crop [height, width, 3] uint8 around the place that is class `label`; enlarged where the photograph is small."""
  whole = photographs()[label % len(photographs())]
  class_rng = np.random.default_rng(label)
  centre = class_rng.uniform(0.3, 0.7, 2) * whole.shape[:2] + rng.normal(size=2) * 20
  share = min(1.0, *(np.asarray(whole.shape[:2]) * rng.uniform(0.5, 0.95) / (height, width)))
  size = np.maximum(1, np.round(np.asarray((height, width)) * share)).astype(int)
  top, left = np.clip(np.round(centre - size / 2), 0, whole.shape[:2] - size).astype(int)
  part = PIL.Image.fromarray(whole[top:top + size[0], left:left + size[1]])
  return np.asarray(part.resize((width, height), PIL.Image.Resampling.BICUBIC))


def save(path, picture, mode, orientation=None):
  """Writes a picture so that it is seen as it is, whatever the orientation in its EXIF."""
  exif = PIL.Image.Exif()
  if orientation:
    exif[_ORIENTATION] = orientation
    picture = np.rot90(picture, {6: 1, 8: -1, 3: 2}[orientation])
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(np.ascontiguousarray(picture)).convert(mode).save(path, quality=90, exif=exif)


def write(folder, *, classes=20, per_class=150, test_per_class=10, sides=(120, 480), seed=0, kinds=KINDS):
  """Writes folder/train/<class>/* and folder/test/<class>/*, each picture's two sides drawn between `sides`."""
  rng = np.random.default_rng(seed)
  for part, count in (("train", per_class), ("test", test_per_class)):
    for label in range(classes):
      for number in range(count):
        height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
        suffix, mode = kinds[number % len(kinds)]
        save(pathlib.Path(folder) / part / f"class{label:03d}" / f"{number:05d}{suffix}",
             crop(rng, label, height, width), mode, {11: 6, 22: 8, 33: 3}.get(number % 40))
  return pathlib.Path(folder)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder")
  for name, default in (("classes", 20), ("per_class", 150), ("test_per_class", 10), ("seed", 0)):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--sides", type=lambda text: tuple(map(int, text.split(","))), default=(120, 480))
  given = vars(parser.parse_args())
  write(given.pop("folder"), **given)
