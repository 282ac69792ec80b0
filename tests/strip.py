"""What keeping pictures squeezed costs, to be seen: python tests/strip.py FILE.png

Prints the mean difference (grey levels) between augmented views of 224 pixels from pictures kept at several sides and
from the originals, over the same boxes, and writes a strip: for each photograph a row of views from a stored side of
320, and under it the row from the original.
"""

import sys

import builders
import jax
import numpy as np
import photographs
import PIL.Image

from gr_jax.data import augment, cache

SIDE, VIEWS, SHOWN = 224, 40, 6
STORED = (256, 320, 384, 448)


def of_scikit_learn():
  """Its two photographs and a corner of each, [height, width, 3] uint8."""
  whole = [builders.photograph(name) for name in ("china.jpg", "flower.jpg")]
  return [*whole, *(picture[:375, :500] for picture in whole)]


def crops_of_ten(seed=0):
  """A crop of each of ten photographs, sides of 300 to 600, some enlarged."""
  rng = np.random.default_rng(seed)
  return [photographs.crop(rng, label, *map(int, rng.integers(300, 601, 2))) for label in range(10)]


def compare(pictures):
  """(mean differences by stored side, the strip [height, width, 3] uint8)."""
  view = jax.jit(augment.make_augment("resized_crop_flip", image_size=SIDE, mean=(0.0,) * 3, std=(1.0,) * 3))
  differences, rows = {side: [] for side in STORED}, []
  for number, picture in enumerate(pictures):
    def views(kept, number=number, size=picture.shape[:2]):
      return 255 * np.asarray(view(jax.random.split(jax.random.key(number), VIEWS), np.tile(kept, (VIEWS, 1, 1, 1)),
                                   np.tile(np.int32([size]), (VIEWS, 1))))

    exact = views(picture)
    for side in STORED:
      squeezed = views(cache.squeeze(picture, side))
      differences[side].append(np.abs(squeezed - exact).mean())
      if side == 320:
        rows += [np.concatenate(part[:SHOWN], axis=1) for part in (squeezed, exact)]
  strip = np.concatenate(rows).clip(0, 255).astype(np.uint8)
  return {side: round(float(np.mean(gaps)), 1) for side, gaps in differences.items()}, strip


def main(path):
  for name, pictures in (("scikit-learn's photographs", of_scikit_learn()), ("crops of ten", crops_of_ten())):
    means, strip = compare(pictures)
    print(f"{name}: {means}")
  PIL.Image.fromarray(strip).reduce(2).save(path)


if __name__ == "__main__":
  main(sys.argv[1])
