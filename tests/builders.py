"""Small data sets in the very form in which TFDS prepares the real ones, written without TensorFlow.

The pictures are crops of the two photographs that come with scikit-learn. Images are handed to TFDS encoded, so
that it never has to encode one itself, which is what it needs TensorFlow for.
"""

import functools
import io
import pathlib

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from sklearn import datasets
from tensorflow_datasets.core import registered

from gr_jax.data.sources import tfds_source

# Real classes of imagenet2012 that ImageNet-Subset leaves out: tench, goldfish, great white shark.
OTHER_WNIDS = ("n01440764", "n01443537", "n01484850")


@functools.cache
def photograph(name="china.jpg"):
  """[427, 640, 3] uint8; "china.jpg" or "flower.jpg"."""
  return np.asarray(datasets.load_sample_image(name))


def crop(rng, height, width):
  """A crop of one of the photographs, [height, width, 3] uint8."""
  whole = photograph(("china.jpg", "flower.jpg")[rng.integers(2)])
  top, left = rng.integers(whole.shape[0] - height + 1), rng.integers(whole.shape[1] - width + 1)
  return whole[top:top + height, left:left + width]


def encode(picture, encoding, **options):
  """[height, width, 3] or [height, width] uint8 -> the bytes of a file."""
  file = io.BytesIO()
  PIL.Image.fromarray(picture).save(file, encoding, **options)
  return file.getvalue()


def write(data_dir, name, version, features, splits, *, shards=1, file_format="array_record", reverse=False):
  """Prepares a data set as TFDS does.

  Args:
    data_dir: TFDS's data folder.
    name, version: of the data set, such as "cifar100", "3.0.2".
    features: dict of TFDS features.
    splits: dict of split name -> list of examples; images as encoded bytes.
    shards: files of each split.
    file_format: as TFDS calls it.
    reverse: writes the records in the opposite order.

  Returns:
    The folder of the version.
  """
  # Out of TFDS's registry: the names are those of its own builders.
  with registered.skip_registration():
    class Prepared(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version(version)

      def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

      def _split_generators(self, dl_manager):
        return {split: self._generate_examples(examples) for split, examples in splits.items()}

      def _generate_examples(self, examples):
        for key, example in enumerate(reversed(examples) if reverse else examples):
          yield key, {**example, "image": io.BytesIO(example["image"])}

    Prepared.name = name
    builder = Prepared(data_dir=str(data_dir), file_format=file_format)
  tfds.disable_progress_bar()
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
  return pathlib.Path(builder.data_dir)


def imagenet2012(data_dir, *, per_class=4, test_per_class=2, sides=(40, 90), seed=0, wnids=None,
                 version="5.1.0", damage=None, splits=("train", "validation"), **options):
  """imagenet2012: JPEG of mixed sizes, every fifth grey; ImageNet-Subset's classes and three others.

  Args:
    data_dir: TFDS's data folder.
    per_class, test_per_class: images of each class in "train" and "validation".
    sides: smallest and largest side of a picture.
    seed: of the crops.
    wnids: the classes; None: the 103.
    version: of the data set.
    damage: file_name of a picture whose bytes are cut in half.
    splits: which of the two are written.
    options: see `write`.
  """
  rng = np.random.default_rng(seed)
  # The real one lists its classes by WordNet id, so the subset's are scattered among others.
  wnids = sorted([*tfds_source.imagenet_subset_wnids(), *OTHER_WNIDS]) if wnids is None else wnids

  def picture(number):
    cropped = crop(rng, *rng.integers(sides[0], sides[1] + 1, 2))
    return encode(cropped.mean(axis=2).astype(np.uint8) if number % 5 == 4 else cropped, "JPEG", quality=90)

  def example(name, label, number):
    encoded = picture(number)
    return {"image": encoded[:len(encoded) // 2] if name == damage else encoded, "label": label,
            "file_name": name}

  examples = {
      "train": [example(f"{wnid}_{number}.JPEG", label, number)
                for label, wnid in enumerate(wnids) for number in range(per_class)],
      "validation": [example(f"ILSVRC2012_val_{label * test_per_class + number + 1:08d}.JPEG", label, number)
                     for label in range(len(wnids)) for number in range(test_per_class)]}
  features = {"image": tfds.features.Image(encoding_format="jpeg"),
              "label": tfds.features.ClassLabel(names=wnids), "file_name": tfds.features.Text()}
  return write(data_dir, "imagenet2012", version, features, {split: examples[split] for split in splits},
               **options)


def food101(data_dir, *, per_class=3, test_per_class=1, sides=(40, 90), seed=0, **options):
  """food101 2.0.0: JPEG of mixed sizes, no id; options: see `write`."""
  rng = np.random.default_rng(seed)
  names = pathlib.Path(tfds.core.tfds_path("image_classification/food-101_classes.txt")).read_text().split()

  def examples(count):
    return [{"image": encode(crop(rng, *rng.integers(sides[0], sides[1] + 1, 2)), "JPEG"), "label": label}
            for label in range(len(names)) for _ in range(count)]

  features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)}
  return write(data_dir, "food101", "2.0.0", features,
               {"train": examples(per_class), "validation": examples(test_per_class)}, **options)


def cifar100(data_dir, *, per_class=3, test_per_class=1, seed=0, side=32, version="3.0.2", damage=None,
             without=(), **options):
  """cifar100: PNG 32x32.

  Args:
    data_dir: TFDS's data folder.
    per_class, test_per_class: images of each class in "train" and "test".
    seed: of the crops.
    side: of the pictures.
    version: of the data set.
    damage: id of a picture whose bytes are cut in half.
    without: features to leave out.
    options: see `write`.
  """
  rng = np.random.default_rng(seed)

  def examples(split, count):
    records = []
    for row in range(100 * count):
      name, encoded = f"{split}_{row:05d}", encode(crop(rng, side, side), "PNG")
      whole = {"id": name, "image": encoded[:len(encoded) // 2] if name == damage else encoded,
               "label": row % 100, "coarse_label": row % 20}
      records.append({key: value for key, value in whole.items() if key not in without})
    return records

  features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(side, side, 3)),
              "label": tfds.features.ClassLabel(num_classes=100),
              "coarse_label": tfds.features.ClassLabel(num_classes=20)}
  # The real builder learns the names from its download, too.
  features["label"].names = [f"fine{label:02d}" for label in range(100)]
  features["coarse_label"].names = [f"coarse{label:02d}" for label in range(20)]
  return write(data_dir, "cifar100", version,
               {name: feature for name, feature in features.items() if name not in without},
               {"train": examples("train", per_class), "test": examples("test", test_per_class)}, **options)
