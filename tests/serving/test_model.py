"""Predicting: a run's network on its own test pictures, on files and arrays of any kind, and on none."""

import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest
import runs

import gr_jax
from gr_jax.data.sources import catalogue, digits
from gr_jax.errors import UserError
from gr_jax.runs import restored
from gr_jax.serving import prediction, views

OLD_RUN = runs.ROOT / "tests" / "fixtures" / "run_of_format_2.tar.gz"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A finished run of three tasks on the digits, in the fixtures."""
  folder = tmp_path_factory.mktemp("old")
  with tarfile.open(OLD_RUN) as archive:
    archive.extractall(folder / "run", filter="data")
  return folder / "run"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """The digits' test pictures as files: paths, and the labels."""
  folder, test = tmp_path_factory.mktemp("digits"), digits.load().test
  paths = [folder / f"{row:03d}.png" for row in range(len(test.labels))]
  for row, path in enumerate(paths):
    PIL.Image.fromarray(test.image(row)[..., 0]).save(path)
  return paths, test.labels


@pytest.fixture(scope="module")
def model(workdir):
  return gr_jax.load(workdir)


def accuracy_of(model, paths, labels):
  """Of files classified one by one, among the test pictures of the seen classes."""
  seen = [(path, str(label)) for path, label in zip(paths, labels) if str(label) in model.classes]
  return np.mean([model(path).names == [name] for path, name in seen])


def test_test_pictures_one_by_one_give_the_runs_accuracy(workdir, model, pictures, monkeypatch):
  # Neither the data set nor the folder of the pictures is needed.
  monkeypatch.setattr(catalogue, "load", None)
  assert (model.task, model.num_tasks, len(model.classes)) == (3, 3, 10)
  assert accuracy_of(model, *pictures) == pytest.approx(runs.results(workdir)["last_accuracy"])
  np.testing.assert_array_equal(gr_jax.load(workdir, 3).network["params"]["classifier"]["kernel"],
                                model.network["params"]["classifier"]["kernel"])


def test_probabilities_do_not_depend_on_the_batch(model, pictures):
  paths, _ = pictures
  # More than a block, and no power of two.
  together = model(paths[:67])
  assert together.probabilities.shape == (67, 10) and together.probabilities.dtype == np.float32
  np.testing.assert_allclose(together.probabilities.sum(axis=1), 1, rtol=1e-5)
  alone = np.concatenate([model(path).probabilities for path in paths[60:67]])
  np.testing.assert_allclose(together.probabilities[60:], alone, atol=1e-5)
  assert model([]).probabilities.shape == (0, 10)
  for top, row in zip(together.top(3), together.probabilities):
    assert [share for _, share in top] == sorted(row.tolist(), reverse=True)[:3]
    assert [row[model.classes.index(name)] for name, _ in top] == [share for _, share in top]


def test_probabilities_are_calibrated_by_the_runs_temperature(model, workdir, pictures, monkeypatch):
  """Of the task's own evaluation; p ** (1 / T), normalised."""
  after_task = restored.after_task

  def calibrated(*args):
    original = after_task(*args)
    evaluations = [{"calibration": {"temperatures": {"one": one, "old": 1.0, "new": 2.0}}} for one in (9.0, 2.5)]
    return original._replace(record={**original.record, "evaluations": evaluations})

  monkeypatch.setattr(restored, "after_task", calibrated)
  served = gr_jax.load(workdir)
  assert served.temperature == 2.5 and "calibrated, temperature 2.500" in served.description
  plain, scaled = (one(pictures[0][:9]).probabilities.astype(np.float64) for one in (model, served))
  np.testing.assert_allclose(scaled, plain ** 0.4 / (plain ** 0.4).sum(axis=1, keepdims=True), rtol=1e-4)
  line = prediction.json_line(served)(next(prediction.predict(served, pictures[0][:1], top=1)))
  assert json.loads(line)["calibrated"]
  # Without held-out images nothing is fitted.
  monkeypatch.setattr(restored, "after_task", lambda *args: after_task(*args)._replace(
      record={"evaluations": [{"calibration": {"temperatures": None}}]}))
  assert gr_jax.load(workdir).temperature is None


def test_arrays_are_pictures_too(model, pictures):
  paths, _ = pictures
  arrays = [np.asarray(PIL.Image.open(path)) for path in paths[:2]]
  expected = model(paths[:2]).probabilities
  for given in (arrays, np.stack(arrays)[..., None], [np.stack([array] * 3, axis=-1) for array in arrays]):
    np.testing.assert_array_equal(model(given).probabilities, expected)
  np.testing.assert_array_equal(model(arrays[0]).probabilities, model(paths[0]).probabilities)
  for wrong, words in ((np.zeros((8, 8, 2), np.uint8), r"\[8, 8, 2\] of uint8"), (np.zeros((8, 8)), "of float64")):
    with pytest.raises(UserError, match=f"a picture is an array .*{words}; it must be"):
      model(wrong)


def test_modes_of_files(model, pictures, tmp_path):
  """The same digit in colour, with alpha and with 16 bits is the same view."""
  path = pictures[0][0]
  grey = PIL.Image.open(path)
  wide = PIL.Image.fromarray(np.asarray(grey).astype(np.uint16) << 8)
  for name, picture in (("rgb", grey.convert("RGB")), ("rgba", grey.convert("RGBA")), ("sixteen", wide)):
    picture.save(tmp_path / f"{name}.png")
    np.testing.assert_array_equal(model.view(tmp_path / f"{name}.png"), model.view(path), err_msg=name)


def test_another_size_is_cut_to_the_central_square(model):
  # Only the margins are dark.
  large = np.pad(np.full((32, 32), 200, np.uint8), ((0, 0), (10, 11)))
  view = views.of_array(large, model.form)
  assert view.shape == (8, 8, 1) and (view == 200).all()
  np.testing.assert_array_equal(views.of_array(large.T, model.form), view)


@pytest.mark.parametrize("task", [0, 4])
def test_a_task_that_is_not_done(workdir, task):
  with pytest.raises(UserError, match=f"--task is {task}; .* after task 3"):
    gr_jax.load(workdir, task)


def test_folders_without_a_usable_run(workdir, tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    gr_jax.load(tmp_path)
  shutil.copytree(workdir, tmp_path / "begun", ignore=lambda folder, names: [
      name for name in names if name.isdecimal() or name in ("results.json", "metrics.jsonl")])
  with pytest.raises(UserError, match="no checkpoint of a finished task yet"):
    gr_jax.load(tmp_path / "begun")
  shutil.rmtree(tmp_path / "begun" / "checkpoints")
  with pytest.raises(UserError, match="no checkpoint of a finished task yet"):
    gr_jax.load(tmp_path / "begun")
  (tmp_path / "begun" / "scenario.json").unlink()
  with pytest.raises(UserError, match="no scenario.json"):
    gr_jax.load(tmp_path / "begun")


def test_files_are_found(tmp_path):
  for name in ("b/two.png", "b/one.JPG", "b/deep/three.webp", "b/notes.txt", "b/.hidden/four.png", "c/readme.md", "d"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  listing = views.find([tmp_path / "d", tmp_path / "b", tmp_path / "c", tmp_path / "e"])
  assert listing.files == [tmp_path / name for name in ("d", "b/deep/three.webp", "b/one.JPG", "b/two.png")]
  assert [path.name for path, _ in listing.unusable] == ["c", "e"]
  assert "has no picture" in listing.unusable[0][1] and "no such file" in listing.unusable[1][1]


def test_a_file_that_is_no_picture_is_named_and_the_rest_still_done(model, pictures, tmp_path):
  (tmp_path / "text.png").write_text("no picture")
  cut = pathlib.Path(shutil.copy(pictures[0][0], tmp_path / "cut.png"))
  cut.write_bytes(cut.read_bytes()[:60])
  files = [pictures[0][0], tmp_path / "text.png", cut, pictures[0][1]]
  predictions = list(prediction.predict(model, files, top=2))
  assert [item.file for item in predictions] == files and [len(item.top) for item in predictions] == [2, 0, 0, 2]
  for item in predictions[1:3]:
    assert str(item.file) in item.error and "no picture, or damaged" in item.error
  assert list(prediction.predict(model, [cut], top=1))[0].top == []
  text, line = prediction.text_line(predictions[0]), json.loads(prediction.json_line(model)(predictions[0]))
  assert text.startswith(f"{files[0]}: {predictions[0].top[0][0]} ") and text.count(" %") == 2
  assert line["file"] == str(files[0]) and line["calibrated"] is False and line["task"] == 3
  assert [(item["class"], item["probability"]) for item in line["predictions"]] == predictions[0].top


def test_the_command(workdir, pictures, tmp_path):
  """Flags among the arguments; problems in one message and exit code 2, with everything else done."""
  shutil.copy(pictures[0][0], tmp_path / "a.png")
  (tmp_path / "b.png").write_text("no picture")
  (tmp_path / "empty").mkdir()
  done = runs.run("predict", f"--workdir={workdir}", str(tmp_path), str(tmp_path / "empty"), "--top=2", "--json")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "10 classes, score logits, probabilities not calibrated" in done.stderr
  assert f"error: 2 of 3 could not be classified:\n  {tmp_path / 'empty'}: the folder has no picture" in done.stderr
  empty, good, bad = map(json.loads, done.stdout.splitlines())
  assert good["file"] == str(tmp_path / "a.png") and len(good["predictions"]) == 2
  assert "no picture, or damaged" in bad["error"] and "has no picture" in empty["error"]


def test_importing_the_package_is_light():
  done = subprocess.run([sys.executable, "-c", "import sys, gr_jax; gr_jax.load, gr_jax.load_results; "
                         "print([name for name in ('jax', 'numpy', 'flax') if name in sys.modules])"],
                        env=runs.environment(), capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"
