"""Prepared data sets: what is read from them, what does not matter, and every refusal with its remedy."""

import hashlib
import json
import pathlib
import re
import shutil

import builders
import numpy as np
import pytest
import tensorflow_datasets as tfds

from gr_jax import scenario
from gr_jax.data.sources import catalogue, label_index, tfds_source
from gr_jax.errors import UserError

SHARD = "cifar100-train.array_record-00000-of-00001"
REAL = pathlib.Path(__file__).parents[4] / "shared" / "tfds"


def draw(source, **changes):
  return scenario.make_scenario(**{
      "labels": source.train.labels, "ids": source.train.ids, "class_names": source.class_names,
      "kind": "lt", "imbalance": 3.0, "num_tasks": 5, "first_task_classes": None, "order": "seeded",
      "seed": 0, "validation_fraction": 0.1, "properties": source.properties, **changes})


def drawn_ids(source, drawn):
  return [[source.train.ids[row] for row in rows] for rows in (*drawn.train, *drawn.holdout)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder with all three; read only."""
  folder = tmp_path_factory.mktemp("tfds")
  builders.imagenet2012(folder, shards=3)
  builders.food101(folder)
  builders.cifar100(folder)
  return folder


@pytest.fixture
def cifar(prepared, tmp_path):
  """A copy of the small CIFAR-100 that a test may damage: the folder of its version."""
  shutil.copytree(prepared / "cifar100", tmp_path / "cifar100")
  return tmp_path / "cifar100" / "3.0.2"


def refused(name, data_dir):
  """The message with which loading a data set and reading its records ends."""
  with pytest.raises(UserError) as caught:
    source = catalogue.load(name, str(data_dir))
    _ = source.train.labels, source.test.labels
  return str(caught.value)


def assert_says_how_to_prepare_again(message, folder):
  assert f"remove the folder {folder} and prepare it again: python -m gr_jax.prepare cifar100" in message
  assert f"--data_dir={folder.parents[1]}" in message


def test_imagenet_subset_is_the_hundred_classes_in_their_own_order(prepared):
  source = catalogue.load("imagenet_subset", str(prepared))
  wnids = tfds_source.imagenet_subset_wnids()
  assert len(set(wnids)) == 100 and source.class_names == tuple(wnids)
  assert not set(wnids) & set(builders.OTHER_WNIDS)
  # Four images of each class, each under its own WordNet id, and none of another class.
  assert sorted(source.train.ids) == sorted(f"{wnid}_{k}.JPEG" for wnid in wnids for k in range(4))
  for name, label in zip(source.train.ids, source.train.labels):
    assert name.split("_")[0] == wnids[label]
  np.testing.assert_array_equal(np.bincount(source.test.labels), [2] * 100)
  assert source.train.labels.dtype == np.int64 and len(set(source.test.ids)) == 200


def test_tfds_names_the_hundred_classes():
  """TFDS's own list of imagenet2012's labels, which every prepared copy carries."""
  path = pathlib.Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
  names = path.read_text().split()
  assert len(names) == len(set(names)) == 1000
  entry = tfds_source.CATALOGUE["imagenet_subset"]
  chosen = entry.select(names)
  assert [names[label] for label in chosen] == tfds_source.imagenet_subset_wnids() and len(set(chosen)) == 100
  # The tests' other classes are real ones too, and not of the hundred.
  assert set(builders.OTHER_WNIDS) <= set(names) - {names[label] for label in chosen}


def test_pictures_are_those_that_were_written(prepared):
  source = catalogue.load("cifar100", str(prepared))
  # The builder's crops, drawn once more.
  rng = np.random.default_rng(0)
  written = {f"train_{row:05d}": builders.crop(rng, 32, 32) for row in range(300)}
  assert sorted(source.train.ids) == sorted(written)
  for row, name in enumerate(source.train.ids):
    np.testing.assert_array_equal(source.train.image(row), written[name])
    assert source.train.labels[row] == int(name[-5:]) % 100
  source = catalogue.load("food101", str(prepared))
  rng = np.random.default_rng(0)
  for row in range(20):
    # JPEG keeps about what it is given.
    expected = builders.crop(rng, *rng.integers(40, 91, 2))
    assert np.abs(source.train.image(row).astype(int) - expected).mean() < 15


def test_sources_carry_what_the_method_fixes(prepared):
  cifar, imagenet, food = (catalogue.load(name, str(prepared)) for name in
                           ("cifar100", "imagenet_subset", "food101"))
  assert cifar.uniform and not imagenet.uniform and not food.uniform
  assert cifar.mean == (0.5071, 0.4866, 0.4409) and cifar.std == (0.2009, 0.1984, 0.2023)
  assert imagenet.mean == food.mean == (0.485, 0.456, 0.406)
  assert imagenet.std == food.std == (0.229, 0.224, 0.225)
  assert cifar.properties.total == 50_000 and cifar.properties.max_count == 500 and cifar.properties.profile_by_label
  assert imagenet.properties.max_count == "first" and imagenet.properties.fixed_order == scenario.ICARL_ORDER
  assert food.properties.fixed_order is None and food.properties.max_count is None
  assert len(food.class_names) == 101 and food.class_names[:2] == ("apple_pie", "baby_back_ribs")


def test_grey_jpeg_becomes_rgb(tmp_path):
  # Every fifth picture of a class is written grey, with one channel.
  builders.imagenet2012(tmp_path, per_class=5)
  source = catalogue.load("imagenet_subset", str(tmp_path))
  for row, name in enumerate(source.train.ids[:50]):
    picture = source.train.image(row)
    assert picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
    assert name.endswith("_4.JPEG") == (picture.max(axis=2) == picture.min(axis=2)).all()


@pytest.mark.parametrize("name,write,changes", [
    ("imagenet_subset", builders.imagenet2012, {"per_class": 6, "test_per_class": 1}),
    ("food101", builders.food101, {"per_class": 6}), ("cifar100", builders.cifar100, {"per_class": 6})])
def test_order_and_number_of_the_files_do_not_matter(tmp_path, name, write, changes):
  write(tmp_path / "one", **changes)
  write(tmp_path / "other", reverse=True, shards=4, **changes)
  one, other = (catalogue.load(name, str(tmp_path / folder)) for folder in ("one", "other"))
  assert one.train.ids == other.train.ids[::-1]
  kind = {"kind": "natural"} if name == "cifar100" else {}
  first, second = draw(one, **kind), draw(other, **kind)
  assert first.digest == second.digest
  assert drawn_ids(one, first) == drawn_ids(other, second)
  assert first.train != second.train
  # The very same pictures.
  for mine, its in zip(first.train[0][:3], second.train[0][:3]):
    np.testing.assert_array_equal(one.train.image(mine), other.train.image(its))
  assert draw(one, seed=1, **kind).digest != first.digest


def test_ids_of_food_are_hashes_of_the_encoded_pictures(prepared):
  source = catalogue.load("food101", str(prepared))
  rng = np.random.default_rng(0)
  names = [hashlib.sha256(builders.encode(builders.crop(rng, *rng.integers(40, 91, 2)), "JPEG")).hexdigest()
           for _ in range(303)]
  assert source.train.ids == names


def test_newest_version_is_chosen_by_number(tmp_path):
  for version in ("3.0.2", "3.0.10", "2.9.9"):
    builders.cifar100(tmp_path, version=version, per_class=1)
  # Neither an unfinished preparation nor a stray folder counts.
  (tmp_path / "cifar100" / "4.0.0").mkdir()
  (tmp_path / "cifar100" / "incomplete.ABC_9.0.0").mkdir()
  (tmp_path / "cifar100" / "incomplete.ABC_9.0.0" / "dataset_info.json").write_text("{}")
  assert tfds_source.locate(tfds_source.CATALOGUE["cifar100"], tmp_path).name == "3.0.10"


def test_data_folder_is_the_flag_then_the_variable_then_the_default(prepared, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
  assert tfds_source.data_folder(None) == prepared
  assert catalogue.load("cifar100", None).train.ids[0] == "train_00000"
  assert tfds_source.data_folder(str(tmp_path)) == tmp_path
  monkeypatch.delenv("TFDS_DATA_DIR")
  assert tfds_source.data_folder(None) == pathlib.Path.home() / "tensorflow_datasets"
  monkeypatch.chdir(tmp_path)
  assert tfds_source.data_folder("here") == tmp_path / "here"


def test_unknown_data_set_names_the_nearest():
  with pytest.raises(UserError, match="dataset is 'cifar10'.*digits, folder, cifar100, imagenet_subset, "
                                      "imagenet1000, food101; did you mean 'cifar100'?"):
    catalogue.load("cifar10", None)
  with pytest.raises(UserError, match="known are digits") as caught:
    catalogue.load("zzz", None)
  assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar100", "food101"])
def test_not_prepared_says_the_command(tmp_path, monkeypatch, name):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  message = refused(name, tmp_path)
  assert f"python -m gr_jax.prepare {name} (needs" in message and str(tmp_path / name) in message
  assert "--config.data_dir" in message and "TFDS_DATA_DIR" in message
  # Another folder than the usual one has to be named in the command, in a form that a shell takes.
  message = refused(name, tmp_path / "my data")
  assert f"python -m gr_jax.prepare {name} --data_dir='{tmp_path}/my data'" in message


def test_imagenet_not_prepared_says_what_to_download_and_where(tmp_path):
  message = refused("imagenet_subset", tmp_path)
  for part in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", f"{tmp_path}/downloads/manual/",
               "python -m gr_jax.prepare imagenet2012"):
    assert part in message


def test_other_file_format_is_refused(cifar):
  # What TFDS leaves behind by default: the same folder in the TFRecord form.
  for path in cifar.glob("*.array_record-*"):
    path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
  info = json.loads((cifar / "dataset_info.json").read_text())
  (cifar / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
  message = refused("cifar100", cifar.parents[1])
  assert "in format tfrecord, not array_record" in message
  assert_says_how_to_prepare_again(message, cifar)


def test_missing_split_is_named(tmp_path):
  folder = builders.imagenet2012(tmp_path, splits=("train",), per_class=1)
  message = refused("imagenet_subset", tmp_path)
  assert f"{folder} has no split 'validation', only train" in message
  assert f"remove the folder {folder} and prepare it again: python -m gr_jax.prepare imagenet2012" in message


def test_missing_feature_is_named(tmp_path):
  # CIFAR-100 as early versions of TFDS prepared it had no ids.
  folder = builders.cifar100(tmp_path, version="3.0.0", without=("id",))
  message = refused("cifar100", tmp_path)
  assert f"{folder} has no feature 'id', only " in message and "coarse_label" in message


def test_missing_shard_is_named(tmp_path):
  folder = builders.cifar100(tmp_path, shards=3)
  gone = folder / "cifar100-train.array_record-00001-of-00003"
  gone.unlink()
  message = refused("cifar100", tmp_path)
  assert "which dataset_info.json lists, is missing" in message and str(gone) in message
  assert_says_how_to_prepare_again(message, folder)


@pytest.mark.parametrize("kept", [0, 1000, 70_000, 0.5, -100])
def test_truncated_shard_is_refused(cifar, kept):
  whole = (cifar / SHARD).read_bytes()
  (cifar / SHARD).write_bytes(whole[:int(kept * len(whole)) if isinstance(kept, float) else kept])
  message = refused("cifar100", cifar.parents[1])
  assert f"the files in {cifar} cannot be read" in message
  assert_says_how_to_prepare_again(message, cifar)


def test_overwritten_shards_are_refused(cifar):
  whole = (cifar / SHARD).read_bytes()
  middle = len(whole) // 2
  for content in (whole[:middle] + bytes(20_000) + whole[middle + 20_000:], b"not a record\n" * 10_000,
                  # Fewer records than dataset_info.json tells of.
                  (cifar / SHARD.replace("train", "test")).read_bytes()):
    (cifar / SHARD).write_bytes(content)
    assert f"the files in {cifar} cannot be read" in refused("cifar100", cifar.parents[1])


@pytest.mark.parametrize("name,content", [
    ("dataset_info.json", ""), ("dataset_info.json", "{}"), ("dataset_info.json", '{"name": "cifar1'),
    ("features.json", ""), ("features.json", '{"featuresDict": {'), ("features.json", None)])
def test_damaged_description_is_refused(cifar, name, content):
  (cifar / name).unlink()
  if content is not None:
    (cifar / name).write_text(content)
  message = refused("cifar100", cifar.parents[1])
  assert f"the metadata in {cifar} cannot be read" in message
  assert_says_how_to_prepare_again(message, cifar)


def test_imagenet_without_the_subsets_classes_names_some(tmp_path):
  wnids = tfds_source.imagenet_subset_wnids()
  builders.imagenet2012(tmp_path, wnids=sorted([*wnids[3:], *builders.OTHER_WNIDS]), per_class=1)
  message = refused("imagenet_subset", tmp_path)
  assert f"lacks 3 of ImageNet-Subset's 100 classes ({', '.join(wnids[:3])})" in message


def test_damaged_picture_is_named_when_it_is_read(tmp_path):
  builders.cifar100(tmp_path, damage="train_00123")
  source = catalogue.load("cifar100", str(tmp_path))
  row = source.train.ids.index("train_00123")
  with pytest.raises(UserError, match="image 'train_00123' cannot be decoded.*prepare it again"):
    source.train.image(row)
  # Its neighbours are whole.
  assert source.train.image(row - 1).shape == source.train.image(row + 1).shape == (32, 32, 3)


def read_bytes(encoded):
  """What a split makes of one record's picture."""
  split = object.__new__(tfds_source.TfdsSplit)
  split._records = [{"image": encoded}]
  split._chosen = np.zeros(1, int), label_index.Index(np.zeros(1, np.int64), np.asarray([b"x"]))
  return split.image(0)


@pytest.mark.parametrize("encoding", ["PNG", "JPEG"])
def test_any_damage_gives_a_picture_or_a_user_error(encoding):
  rng = np.random.default_rng(0)
  whole = builders.encode(builders.crop(rng, 32, 32), encoding)
  damaged = [whole[:length] for length in range(0, len(whole), 13)]
  for _ in range(400):
    copy = bytearray(whole)
    # Headers are hit as often as the rest.
    places = rng.integers(0, [60, len(whole)], (2, 2)).ravel()
    copy[places[rng.integers(4)]] = rng.integers(256)
    damaged.append(bytes(copy))
  if encoding == "JPEG":
    # A header that tells of a picture of four thousand million pixels.
    size = whole.index(b"\xff\xc0") + 5
    damaged.append(whole[:size] + b"\xff" * 4 + whole[size + 4:])
  refusals = 0
  for content in damaged:
    try:
      picture = read_bytes(content)
    except UserError as error:
      assert re.match("image 'x' cannot be decoded", str(error))
      refusals += 1
    else:
      assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
  assert refusals > 50


# SHA-256 over classes, tasks and drawn ids of the default draw: version 3.0.2, rho = 100, LFH 5, scenario.seed 0.
DIGEST = "adef80d2d2a802773b79b348aac497f36133b14062f4c9e98392d9245ed40129"
DEFAULT = {"imbalance": 100.0, "num_tasks": 6, "first_task_classes": 50, "order": "fixed"}
LABELS = np.load(pathlib.Path(__file__).parents[2] / "fixtures" / "cifar100_labels.npz")["labels"]


def assert_the_default_draw(drawn):
  assert sum(drawn.profile) == 10_847 and drawn.capped == {}
  assert sum(len(rows) for rows in (*drawn.train, *drawn.holdout)) == 10_847
  assert drawn.counts.sum() == 9_758 and drawn.digest == DIGEST


@pytest.mark.parametrize("backwards", [False, True])
def test_default_draw_of_cifar100_from_its_labels_and_ids(backwards):
  """Exactly these images on every machine, in whatever order the files hold them."""
  turn = slice(None, None, -1 if backwards else 1)
  drawn = scenario.make_scenario(
      labels=LABELS[turn].astype(np.int64), ids=[f"train_{row:05d}" for row in range(50_000)][turn],
      class_names=[str(label) for label in range(100)], kind="lt", seed=0, validation_fraction=0.1,
      properties=tfds_source.CATALOGUE["cifar100"].properties, **DEFAULT)
  assert_the_default_draw(drawn)
  assert drawn.class_names[:3] == ("68", "56", "78")


def test_another_seed_draws_other_images_of_cifar100():
  drawn = scenario.make_scenario(
      labels=LABELS.astype(np.int64), ids=[f"train_{row:05d}" for row in range(50_000)],
      class_names=[str(label) for label in range(100)], kind="lt", seed=1, validation_fraction=0.1,
      properties=tfds_source.CATALOGUE["cifar100"].properties, **DEFAULT)
  assert drawn.counts.sum() == 9_758 and drawn.digest != DIGEST


@pytest.mark.skipif(not REAL.is_dir(), reason="the real CIFAR-100 does not lie beside the checkout")
def test_default_draw_of_the_real_cifar100():
  source = catalogue.load("cifar100", str(REAL))
  assert len(source.train.ids) == len(set(source.train.ids)) == 50_000 and len(source.test.ids) == 10_000
  # What the tests above take for its labels.
  np.testing.assert_array_equal(LABELS[[int(name.split("_")[1]) for name in source.train.ids]], source.train.labels)
  drawn = draw(source, **DEFAULT)
  assert_the_default_draw(drawn)
  assert drawn.class_names[:3] == tuple(source.class_names[label] for label in (68, 56, 78))
