"""One's own pictures: layouts, lists, modes, damage; and a run on them."""

import errno
import json
import os
import shutil

import builders
import numpy as np
import PIL.Image
import pytest
import runs

from gr_jax import config as configuration
from gr_jax.data import image
from gr_jax.data.sources import folder
from gr_jax.errors import UserError

OPTIONS = {"train_list": None, "test_list": None, "test_fraction": 0.0, "test_seed": 0, "on_bad_image": "fail"}


def load(root, **options):
  return folder.load(str(root), **{**OPTIONS, **options})


def write(path, height=40, width=50, seed=0, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(builders.crop(np.random.default_rng(seed), height, width)).save(path, **options)
  return path


@pytest.fixture
def root(tmp_path):
  """Three classes with 4, 3, 2 training pictures and 2 test pictures each, in three formats."""
  number = 0
  for name, count in (("cat", 4), ("ant", 3), ("bee", 2)):
    for part, size in (("train", count), ("test", 2)):
      for i in range(size):
        number += 1
        write(tmp_path / "photos" / part / name / f"{i}.{('jpg', 'png', 'webp')[i % 3]}", seed=number)
  return tmp_path / "photos"


def test_folders_are_classes_and_paths_are_ids(root):
  source = load(root)
  assert source.class_names == ("ant", "bee", "cat") and not source.uniform
  assert source.train.ids == sorted(source.train.ids) and source.train.ids[0] == "train/ant/0.jpg"
  assert np.bincount(source.train.labels).tolist() == [3, 2, 4] and np.bincount(source.test.labels).tolist() == [2] * 3
  assert source.train.image(0).shape == (40, 50, 3) and source.train.image(0).dtype == np.uint8
  shutil.move(root, root.with_name("elsewhere"))
  assert load(root.with_name("elsewhere")).train.ids == source.train.ids


def test_the_fingerprint_tells_of_files_that_changed(root):
  before = load(root).train.fingerprint
  assert load(root).train.fingerprint == before != load(root).test.fingerprint
  write(root / "train" / "cat" / "0.jpg", height=41)
  assert load(root).train.fingerprint != before
  (root / "train" / "cat" / "0.jpg").unlink()
  (root / "train" / "cat" / "0.jpg").symlink_to("nowhere")
  assert load(root).train.fingerprint != before


def test_what_is_no_picture_is_left_out_and_said(root):
  (root / "train" / "ant" / "Thumbs.db").write_bytes(b"x")
  (root / "train" / "ant" / ".DS_Store").write_bytes(b"x")
  source = load(root)
  assert len(source.train.ids) == 9
  assert source.notes == ("1 entries in train/ skipped (unknown extension), such as train/ant/Thumbs.db",)


def test_lists(root, tmp_path):
  outside = write(tmp_path / "a photo.jpg", seed=99)
  (tmp_path / "train.txt").write_text(f"# path label\n\ntrain/cat/0.jpg 1\n{root}/train/cat/1.png 1\n{outside} 0\n")
  # As some editors write it: a mark first, two characters at each line's end.
  (tmp_path / "test.txt").write_bytes("\ufefftest/cat/0.jpg 1\r\ntest/ant/0.jpg   0\r\n".encode())
  source = load(root, train_list=str(tmp_path / "train.txt"), test_list=str(tmp_path / "test.txt"))
  assert source.train.ids == ["train/cat/0.jpg", "train/cat/1.png", str(outside)]
  assert source.train.labels.tolist() == [1, 1, 0] and source.class_names == ("0", "1")
  assert source.train.image(2).shape == (40, 50, 3)


def test_whole_numbers_are_ordered_by_value(root, tmp_path):
  pictures = [write(root / "many" / f"{i}.png", seed=i) for i in range(24)]
  for first in (0, 1):
    train, test = (_list(tmp_path, [f"{path} {first + i}" for i, path in enumerate(part)], f"{name}.txt")
                   for name, part in (("train", pictures[:12]), ("test", pictures[12:])))
    if first:
      with pytest.raises(UserError, match="class 0 has no picture: the labels are integers"):
        load(root, train_list=str(train), test_list=str(test))
    else:
      source = load(root, train_list=str(train), test_list=str(test))
      assert source.class_names == tuple(map(str, range(12))) and source.train.labels.tolist() == list(range(12))


def _list(tmp_path, lines, name="list.txt"):
  path = tmp_path / name
  path.write_text("\n".join(lines) + "\n")
  return path


@pytest.mark.parametrize("lines, words", [
    (["train/cat/0.jpg"], "line 1 of .* is 'train/cat/0.jpg'; it must be a path and a label"),
    (["train/cat/0.jpg 0", "train/cat/0.jpg 1"], "line 2 of .* repeats train/cat/0.jpg from line 1"),
    (["train/cat/0.jpg 0", "train/gone.jpg 1"], "1 pictures of .* do not exist, the first in line 2: .*gone.jpg"),
    (["# nothing"], "the list .* is empty"),
    (["test/cat/0.jpg 0"], "1 pictures are in both the training and the test set, such as test/cat/0.jpg"),
    (["train/../test/cat/0.jpg 0"], "1 pictures are in both the training and the test set, such as test/cat/0.jpg"),
    (["link/cat/0.jpg 0"], "1 pictures are in both the training and the test set, such as test/cat/0.jpg"),
    (["link.jpg 0"], "1 pictures are in both the training and the test set, such as test/cat/0.jpg"),
    (["train/cat/0.jpg 0", "./train/ant/../cat/0.jpg 0"], "line 2 of .* repeats .* from line 1"),
    (["train/cat/0.jpg 0", "train/ant/0.jpg 7"], r"1 classes have training pictures but no test pictures \(7\)")])
def test_lists_that_cannot_be_used(root, tmp_path, lines, words):
  (root / "link").symlink_to("test")
  (root / "link.jpg").symlink_to("test/cat/0.jpg")
  test = _list(tmp_path, ["test/cat/0.jpg 0"], "test.txt")
  with pytest.raises(UserError, match=words):
    load(root, train_list=str(_list(tmp_path, lines)), test_list=str(test))


def test_a_list_that_is_not_there(root):
  with pytest.raises(UserError, match=f"the list {root}/nowhere.txt cannot be read .No such file"):
    load(root, train_list="nowhere.txt", test_list="nowhere.txt")
  (root / "latin.txt").write_bytes("train/cat/0.jpg K\u00e4fer\n".encode("latin-1"))
  with pytest.raises(UserError, match="latin.txt is not UTF-8 text"):
    load(root, train_list="latin.txt", test_list="latin.txt")
  (root / "train.txt").write_text("train/cat/0.jpg 0\n")
  with pytest.raises(UserError, match="no test set: no --config.folder.test_list; provide one"):
    load(root, train_list="train.txt")


def test_lists_are_looked_for_beside_the_pictures(root, tmp_path, monkeypatch):
  _list(root, ["train/cat/0.jpg 0"], "train.txt")
  _list(root, ["test/cat/0.jpg 0"], "test.txt")
  monkeypatch.chdir(tmp_path)
  assert load(root, train_list="train.txt", test_list="test.txt").train.ids == ["train/cat/0.jpg"]


def test_folders_with_numbers_for_names_are_ordered_by_value(root):
  for part in ("train", "test"):
    for old, new in (("ant", "10"), ("bee", "2"), ("cat", "1")):
      (root / part / old).rename(root / part / new)
  assert load(root).class_names == ("1", "2", "10")


def test_a_name_that_is_no_utf8(root):
  (root / "train" / "cat" / os.fsdecode(b"caf\xe9.jpg")).touch()
  with pytest.raises(UserError, match=r"caf.udce9.jpg' is not valid UTF-8; rename the file"):
    load(root)


@pytest.mark.parametrize("change, words", [
    (lambda root: shutil.rmtree(root), "which is not a folder; expected train/<class>"),
    (lambda root: shutil.rmtree(root / "train"), "train contains no class folders"),
    (lambda root: shutil.rmtree(root / "test"), "there is no test set: .*--config.folder.test_fraction=0.2"),
    (lambda root: shutil.rmtree(root / "test" / "ant"), r"no test pictures \(ant\)"),
    (lambda root: shutil.rmtree(root / "train" / "ant"), r"no training pictures \(ant\)"),
    (lambda root: [path.unlink() for path in (root / "train" / "bee").iterdir()], "class 'bee' has no picture")])
def test_folders_that_cannot_be_used(root, change, words):
  change(root)
  with pytest.raises(UserError, match=words):
    load(root)


def test_no_folder_given():
  with pytest.raises(UserError, match="--config.data_dir is missing"):
    folder.load(None, **OPTIONS)


def test_a_share_of_each_class_is_the_test_set(root):
  with pytest.raises(UserError, match="but there is a test set"):
    load(root, test_fraction=0.25)
  shutil.rmtree(root / "test")
  source = load(root, test_fraction=0.25)
  # A quarter of 4, 3 and 2, at least one.
  assert np.bincount(source.test.labels).tolist() == [1, 1, 1] and not set(source.test.ids) & set(source.train.ids)
  assert "test set: 3 pictures, 25 % of each class" in source.notes[0]
  assert load(root, test_fraction=0.25).test.ids == source.test.ids
  assert any(load(root, test_fraction=0.25, test_seed=seed).test.ids != source.test.ids for seed in range(1, 5))
  half = load(root, test_fraction=0.5)
  assert set(source.test.ids) <= set(half.test.ids), "a larger share holds the smaller one"
  for path in sorted((root / "train" / "bee").iterdir())[1:]:
    path.unlink()
  with pytest.raises(UserError, match="class 'bee' has only one picture"):
    load(root, test_fraction=0.25)


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)


def palette(transparency=False):
  image = PIL.Image.fromarray(np.stack([GREY * 5] * 3, axis=-1)).quantize(64)
  if transparency:
    image.info["transparency"] = bytes([0] * 10 + [255] * 54)
  return image


@pytest.mark.parametrize("picture, options, expected", [
    (PIL.Image.fromarray(GREY), {"format": "PNG"}, GREY),
    (PIL.Image.fromarray(GREY.astype(np.uint16) * 256 + 77), {"format": "PNG"}, GREY),
    (PIL.Image.fromarray(np.stack([GREY, GREY * 2], axis=-1), "LA"), {"format": "PNG"}, GREY),
    (PIL.Image.fromarray(np.stack([GREY] * 3 + [GREY * 3], axis=-1), "RGBA"), {"format": "PNG"}, GREY),
    (PIL.Image.fromarray(GREY > 20), {"format": "PNG"}, (GREY > 20) * 255),
    (palette(), {"format": "PNG"}, GREY * 5),
    (palette(transparency=True), {"format": "PNG"}, GREY * 5),
], ids=["grey", "16 bit", "grey with alpha", "alpha", "one bit", "palette", "transparent palette"])
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_every_mode_becomes_rgb(tmp_path, picture, options, expected):
  picture.save(tmp_path / "x.png", **options)
  decoded = image.decode(tmp_path / "x.png")
  assert decoded.dtype == np.uint8 and decoded.shape == (6, 8, 3)
  np.testing.assert_allclose(decoded, np.repeat(np.asarray(expected, np.int32)[..., None], 3, axis=2), atol=4)


def test_cmyk_and_animations(tmp_path):
  colour = PIL.Image.fromarray(builders.crop(np.random.default_rng(0), 32, 32))
  colour.convert("CMYK").save(tmp_path / "x.jpg", quality=95)
  assert np.abs(image.decode(tmp_path / "x.jpg").astype(int) - np.asarray(colour)).mean() < 6
  second = PIL.Image.new("RGB", (32, 32), (255, 0, 0))
  for name in ("x.webp", "x.png"):
    colour.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(image.decode(tmp_path / name), np.asarray(colour))


@pytest.mark.parametrize("orientation, turn", [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)),
    (8, np.rot90)])
def test_exif_orientation_is_carried_out(tmp_path, orientation, turn):
  pixels = builders.crop(np.random.default_rng(1), 20, 30)
  exif = PIL.Image.Exif()
  exif[0x0112] = orientation
  PIL.Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
  np.testing.assert_array_equal(image.decode(tmp_path / "x.png"), turn(pixels))
  for name in ("x.png", "x.jpg", "x.webp"):
    PIL.Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    # From the header alone, but as the picture is seen.
    assert image.upright_size(tmp_path / name) == turn(pixels).shape[:2]


def test_damaged_exif_is_a_bad_picture_or_none(tmp_path):
  exif = PIL.Image.Exif()
  exif[0x0112], exif[0x010f], exif[0x011a] = 6, "maker", 72.0
  whole = write(tmp_path / "x.jpg", exif=exif).read_bytes()
  start, rng, bad = whole.index(b"Exif"), np.random.default_rng(0), 0
  for _ in range(1500):
    content = bytearray(whole)
    for place in rng.integers(start, start + 90, rng.integers(1, 4)):
      content[place] = rng.integers(256)
    (tmp_path / "x.jpg").write_bytes(content)
    try:
      assert image.decode(tmp_path / "x.jpg").shape[:2] == image.upright_size(tmp_path / "x.jpg")
    except image.BadPicture as error:
      bad += bool(str(error))
  assert 0 < bad < 1500


def damage(root):
  """Four pictures that cannot be read, each in another way."""
  cut = root / "train" / "cat" / "0.jpg"
  cut.write_bytes(cut.read_bytes()[:200])
  (root / "train" / "cat" / "empty.jpg").touch()
  (root / "train" / "ant" / "text.png").write_text("no picture")
  (root / "test" / "bee" / "gone.jpg").symlink_to("nowhere.jpg")
  return ["test/bee/gone.jpg", "train/ant/text.png", "train/cat/0.jpg", "train/cat/empty.jpg"]


def test_a_bad_picture_is_named_with_its_path(root):
  for bad in damage(root):
    split = load(root).train if bad.startswith("train") else load(root).test
    with pytest.raises(UserError, match=f"picture {root / bad} cannot be read .*on_bad_image=skip"):
      split.image(split.ids.index(bad))
    with pytest.raises(UserError, match=f"picture {root / bad} cannot be read"):
      split.size(split.ids.index(bad))


def test_bad_pictures_can_be_left_out(root):
  bad = damage(root)
  source = load(root, on_bad_image="skip")
  assert sorted(source.skipped) == bad and not set(source.train.ids + source.test.ids) & set(bad)
  assert source.notes[0].startswith("4 unreadable pictures skipped, such as")
  for split in (source.train, source.test):
    for row in range(len(split.ids)):
      split.image(row)
  # What was found is not looked for again, unless the file has changed since.
  looked_at = []
  load(root, on_bad_image="skip", progress=lambda items, total: looked_at.append(total) or items)
  assert looked_at == [len(source.train.ids) + len(source.test.ids) + 4]
  write(root / "train" / "cat" / "empty.jpg", seed=50)
  assert "train/cat/empty.jpg" in load(root, on_bad_image="skip").train.ids


def test_a_fault_that_may_pass_leaves_nothing_out(root, monkeypatch):
  decode = image.decode

  def failing(path):
    if path.name == "0.jpg":
      raise OSError(errno.EIO, "Input/output error")
    return decode(path)

  with monkeypatch.context() as broken:
    broken.setattr(image, "decode", failing)
    with pytest.raises(UserError, match=r"0.jpg cannot be read \(Input/output error\); fix the disk"):
      load(root, on_bad_image="skip")
    split = load(root).train
    with pytest.raises(UserError, match=r"0.jpg cannot be read \(Input/output error\); fix the disk"):
      split.image(split.ids.index("train/cat/0.jpg"))
  assert load(root, on_bad_image="skip").skipped == ()


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_without_a_good_picture_is_not_dropped(root, part):
  for path in (root / part / "bee").iterdir():
    path.write_text("no picture")
  with pytest.raises(UserError, match=rf"1 classes have no readable picture \(bee; such as {part}/bee/0.jpg"):
    load(root, on_bad_image="skip")


def test_a_damaged_index_is_made_again(root):
  bad = damage(root)
  for content in ("", "[]", "{", '{"train/cat/1.png": 5}'):
    (root / ".gr_jax-pictures.json").write_text(content)
    assert sorted(load(root, on_bad_image="skip").skipped) == bad


def test_from_pictures_to_a_result(root, tmp_path):
  """The command of the README on a few pictures, with a bad one among them."""
  for name in ("cat", "ant", "bee", "dog"):
    for i in range(4, 10):
      write(root / "train" / name / f"{i}.jpg", height=30 + 3 * i, width=60 - 2 * i, seed=i)
    write(root / "test" / name / "9.jpg", seed=3)
  (root / "train" / "cat" / "bad.jpg").write_text("no picture")
  flags = ("--config=configs/folder_lt.py", f"--config.data_dir={root}", "--config.scenario.num_tasks=2",
           "--config.image_size=32", "--config.model=resnet8", "--config.epochs=1", "--config.milestones=()",
           "--config.batch_size=16",
           f"--workdir={tmp_path / 'run'}", "--config.evaluation_block=12", "--config.memory.per_class=2")
  refused = runs.run("main", *flags)
  assert refused.returncode == 2 and f"picture {root}/train/cat/bad.jpg cannot be read" in refused.stderr
  done = runs.run("main", *flags, "--config.folder.on_bad_image=skip")
  assert done.returncode == 0, done.stderr
  assert "1 unreadable pictures skipped, such as train/cat/bad.jpg" in done.stdout
  drawn = json.loads((tmp_path / "run" / "scenario.json").read_text())
  assert drawn["skipped"] == ["train/cat/bad.jpg"] and sorted(drawn["class_names"]) == ["ant", "bee", "cat", "dog"]
  assert sum(drawn["counts"]) + sum(drawn["holdout_counts"]) == 9 + 24
  assert runs.results(tmp_path / "run")["tasks_done"] == 2
  evaluated = runs.run("evaluate", f"--workdir={tmp_path / 'run'}")
  assert evaluated.returncode == 0 and "counts are equal to those of the run" in evaluated.stdout, evaluated.stderr


def test_folder_keys_are_of_folders_alone():
  done = runs.run("main", "--config=configs/digits_lt.py", "--config.folder.test_fraction=0.5")
  assert done.returncode == 2 and "error: the config file has no keys folder.*" in done.stderr, done.stderr
  config = runs.get_config("folder_lt", dataset="digits")
  with pytest.raises(UserError, match="'folder.on_bad_image' belongs to .* 'folder', but dataset is 'digits'"):
    configuration.check(config)
