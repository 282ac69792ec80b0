"""The report's page: what it shows of finished, unfinished, old and damaged runs, and what it refuses."""

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
import reported

from gr_jax.errors import UserError
from gr_jax.report import exemplars, page, records, style, tables
from gr_jax.report.__main__ import report
from gr_jax.runs import workdir as workdirs


@pytest.fixture(autouse=True)
def _no_rendering(monkeypatch):
  """Figures are drawn, which finds their mistakes, but not turned into files; test_style.py does that."""
  def made(picture, theme):
    picture.draw()
    return f"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><text>{theme}</text></svg>".encode(), b"png"
  monkeypatch.setattr(style, "_rendered", made)


class Page(html.parser.HTMLParser):
  """Text, images, headings and open elements of a page."""

  def __init__(self, file):
    super().__init__()
    self.images, self.headings, self.texts, self.open, self.outside = [], [], [], [], []
    self.feed(file.read_text())
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    if tag not in ("meta", "link", "img", "source", "br"):
      self.open.append(tag)
    if tag == "img":
      self.images.append(attributes)
    # Nothing is fetched: every address is inside the page.
    self.outside += [value for name, value in attributes.items()
                     if name in ("src", "srcset", "href") and not value.startswith("data:")]
    assert tag != "script" and not any(name.startswith("on") for name in attributes)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if data.strip() and "style" not in self.open:
      self.texts.append(data.strip())
      if self.open[-1] in ("h1", "h2", "h3", "h4"):
        self.headings.append(data.strip())

  @property
  def text(self):
    return re.sub(r"\s+", " ", " ".join(self.texts))


def shown(folders, tmp_path, **options):
  out = tmp_path / "report.html"
  written, pictures = report(folders, out, **{"exemplars": False, **options})
  assert written == out and pictures.is_dir()
  return Page(out), pictures


@pytest.fixture
def three(tmp_path):
  return [reported.run(tmp_path / name, method=method, seed=seed) for name, method, seed in (
      ("a", "gr", 0), ("b", "gr", 1), ("c", "lwf", 0))]


def test_settings_seeds_pictures_and_tables(three, tmp_path):
  before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  document, pictures = shown(three, tmp_path)
  assert document.outside == []
  assert [name for name in document.headings if name in ("gr", "lwf")] == ["gr", "lwf"]
  for name in ("Accuracy after each task", "Forgetting after each task", "Task unknown and task known",
               "Many, medium and few", "Calibration error", "Neural collapse after each task", "Accuracy matrix",
               "Gradient norms and class counts", "What the method reports, by epoch", "Reliability",
               "Classifier norms of old and new classes", "Confusion of tasks", "Confusion of classes",
               "Images of each class"):
    assert name in document.headings, name
  names = {path.name for path in pictures.iterdir()}
  assert {"accuracy.png", "accuracy.svg", "1_gradients.svg", "2_reliability.png", "scenario.svg"} <= names
  assert len(names) == 2 * len(document.images) and "2_gradients.svg" not in names
  assert "this method does not record gradient norms" in document.text
  assert all(image["alt"] and image["src"].startswith("data:image/svg+xml;base64,") for image in document.images)
  # Nothing in the runs has changed.
  assert {path: path.read_bytes() for path in before} == before
  row = re.search(r"gr 0, 1 3 of 3 ([\d.]+) ± ([\d.]+)", document.text)
  averages = [np.mean([row["task_accuracies"] for row in records.read(folder).tasks]) for folder in three[:2]]
  assert float(row[1]) == pytest.approx(100 * np.mean(averages), abs=0.01)
  assert float(row[2]) == pytest.approx(100 * np.std(averages, ddof=1), abs=0.01)
  assert "method gr gr lwf" in document.text and "seed 0 1 0" in document.text


def test_class_names_are_shown_and_not_executed(three, tmp_path):
  document, _ = shown(three[:1], tmp_path)
  for name in reported.NAMES:
    assert name in document.texts
  text = (tmp_path / "report.html").read_text()
  assert "<b>dog" not in text and "&lt;b&gt;dog&lt;/b&gt;" in text


def test_a_run_that_goes_on_is_not_disturbed(tmp_path):
  """Its lock is held, its last row is being written, a task is half done."""
  folder = reported.run(tmp_path / "run", done=1)
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"kind": "epoch", "ta')
  with workdirs.locked(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    document, _ = shown([folder], tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
  assert "1 of 3 tasks are finished" in document.text and "cannot be read" not in document.text
  assert "Accuracy matrix" in document.headings


def test_a_run_before_its_first_epoch_and_one_before_its_first_task(tmp_path):
  folder = reported.run(tmp_path / "run", done=0)
  document, _ = shown([folder], tmp_path)
  assert "No task is finished yet" in document.text and "Losses by epoch" in document.headings
  for name in ("metrics.jsonl", "scenario.json"):
    (folder / name).unlink()
  document, _ = shown([folder], tmp_path)
  assert "scenario.json is missing" in document.text and "no epoch is finished yet" in document.text


def test_a_damaged_run_shows_what_is_left(tmp_path):
  folder = reported.run(tmp_path / "run")
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  (folder / "metrics.jsonl").write_text("\n".join(["}{", *lines[1:]]))
  (folder / "evaluation" / "task_3.npz").write_bytes(b"PK\x03\x04 damaged")
  (folder / "results.json").write_text("[")
  document, _ = shown([folder], tmp_path)
  for words in ("1 lines cannot be read (first: 1)", "evaluation/task_3.npz cannot be read",
                "results.json cannot be read", "Reliability: not recorded"):
    assert words in document.text, words
  assert "Accuracy after each task" in document.headings
  # Rows that are lost are those of results.json.
  (folder / "metrics.jsonl").write_text("")
  reported.write(folder / "results.json", {"tasks_done": 2, "task_accuracies": [0.9, 0.8, None],
                                           "many_medium_few": {"many": {"accuracy": 0.5}}})
  run = records.read(folder)
  assert run.done == 2 and run.series("task_accuracies") == [0.9, 0.8, None]
  assert run.after(2, "many_medium_few", "many", "accuracy") == 0.5
  (folder / "scenario.json").write_text("null")
  shown([folder], tmp_path)


def test_a_run_of_an_earlier_version(tmp_path):
  folder = reported.run(tmp_path / "run", recorded=False)
  document, _ = shown([folder], tmp_path)
  assert "not recorded, as in runs of earlier versions; --recompute" in document.text
  assert "Calibration error" not in document.headings and "Reliability: not recorded" in document.text


def test_a_run_without_a_hold_out(tmp_path):
  document, _ = shown([reported.run(tmp_path / "run", calibrated=False)], tmp_path)
  assert "Reliability" in document.headings
  assert "ECE, one T ECE, two T" in document.text


def test_different_scenarios_stand_apart(tmp_path):
  folders = [reported.run(tmp_path / "a"), reported.run(tmp_path / "b", digest="b" * 64)]
  document, pictures = shown(folders, tmp_path)
  assert "learn 2 different scenarios" in document.text and "role" not in document.text
  assert {"1_accuracy.png", "2_accuracy.png"} <= {path.name for path in pictures.iterdir()}


def test_accuracies_on_test_and_on_held_out_images_stand_apart(tmp_path):
  """Runs of earlier versions have no evaluate_on: test images."""
  folders = [reported.run(tmp_path / "a"), reported.run(tmp_path / "b", method="lwf", evaluate_on="holdout")]
  config = json.loads((folders[0] / "config.json").read_text())
  del config["evaluate_on"]
  reported.write(folders[0] / "config.json", config)
  groups = tables.groups_of([records.read(folder) for folder in folders])
  assert [[run.folder for run in group.runs] for group in groups] == [[folder] for folder in folders]
  document, _ = shown(folders, tmp_path)
  assert "Some of these runs were evaluated on test images, others on held-out images" in document.text
  assert "different scenarios" not in document.text
  for folder, images, others in ((folders[0], "test", "held-out"), (folders[1], "held-out", "test")):
    document, _ = shown([folder], tmp_path)
    assert document.headings[1].endswith(f"tasks, accuracies on {images} images")
    for words in (f"On the {images} images of all classes", f"ECE on the {images} images", f"Share (%) of the {images}",
                  f"{images.capitalize()} images after the last finished task"):
      assert words in document.text, words
    assert f"{others} images" not in document.text.lower() and "Some of these runs" not in document.text


def test_a_row_that_names_no_task_is_noted(tmp_path):
  folder = reported.run(tmp_path / "run")
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  nameless = {key: value for key, value in json.loads(lines[-1]).items() if key != "task"}
  (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in (*lines, json.dumps(nameless))))
  run = records.read(folder)
  assert run.done == 3 and run.notes == (
      "metrics.jsonl: 1 rows of a task do not say of which one and are left out",)


def test_replicas_are_runs_of_their_own(tmp_path):
  parent = tmp_path / "both"
  reported.run(parent, replicas=2)
  for seed in (0, 1):
    reported.run(parent / f"seed-{seed}", seed=seed)
  assert [folder.name for folder in records.folders_of([parent])] == ["seed-0", "seed-1"]


def test_labels_tell_settings_apart(tmp_path):
  runs = [records.read(reported.run(tmp_path / str(place), **changes)) for place, changes in enumerate((
      {}, {"seed": 3}, {"learning_rate": 0.01}, {"method": "lwf"}))]
  group, = tables.groups_of(runs)
  assert [setting.label for setting in group.settings] == ["gr, learning_rate=0.1", "gr, learning_rate=0.01", "lwf"]
  assert [len(setting.runs) for setting in group.settings] == [2, 1, 1]


@pytest.mark.parametrize("folders, names", [
    (["gr", "lwf"], ["gr", "lwf"]), (["gr/seed-0", "lwf/seed-0"], ["gr/seed-0", "lwf/seed-0"]),
    (["x/gr/0", "y/gr/0", "y/gr/1"], ["x/gr/0", "y/gr/0", "y/gr/1"])])
def test_columns_of_runs_in_folders_of_the_same_name_are_told_apart(tmp_path, folders, names):
  runs = [records.read(reported.run(tmp_path / folder, seed=seed)) for seed, folder in enumerate(folders)]
  group, = tables.groups_of(runs)
  assert tables.differences(group).head == ("key", *names)


def test_what_is_refused(tmp_path):
  run = reported.run(tmp_path / "run")
  (tmp_path / "file").write_text("")
  (tmp_path / "latest").symlink_to(run)
  cases = [([], tmp_path / "x.html", "no run; name one or more folders"),
           ([tmp_path / "nowhere"], tmp_path / "x.html", "nowhere holds no run"),
           ([tmp_path], tmp_path / "x.html", "it has runs in it: latest, run, ...; name these"),
           ([run, run], tmp_path / "x.html", "is named twice"),
           ([run, tmp_path / "latest"], tmp_path / "x.html", "latest is named twice"),
           ([run], tmp_path, "it is a folder"), ([run], tmp_path / "no" / "x.html", "is no folder"),
           ([run], tmp_path / "file" / "x.html", "is no folder")]
  for folders, out, words in cases:
    with pytest.raises(UserError, match=words):
      report(folders, out)
  (run / "config.json").write_text("{")
  with pytest.raises(UserError, match="config.json cannot be read"):
    report([run], tmp_path / "x.html")
  assert not (tmp_path / "x.html").exists()


def test_a_folder_that_may_not_be_written_to(three, tmp_path, monkeypatch):
  """The disk is full at the end."""
  def full(path, content):
    raise OSError(28, "No space left on device")
  monkeypatch.setattr(page.files, "replace", full)
  with pytest.raises(UserError, match="--out is .* cannot be written .No space left"):
    report(three[:1], tmp_path / "x.html", exemplars=False)


def test_exemplars_that_cannot_be_shown_say_why(tmp_path):
  folder = reported.run(tmp_path / "run")
  samples = exemplars.of(records.read(folder))
  assert samples.classes == () and "scenario.json" in samples.words or "images" in samples.words
  assert exemplars.of(records.read(reported.run(tmp_path / "other", done=0))).words == "no task is finished yet"


def test_numbers_of_a_table(tmp_path):
  run = records.read(reported.run(tmp_path / "run"))
  table = tables.calibration(run)
  one = run.after(3, "calibration", "uncalibrated", "all")
  assert table.rows[0][:3] == ("all", "1", f"{100 * one['accuracy']:.2f}")
  assert {row[1] for row in table.rows} == {"1", "1.3", "old 1.2, new 1.5"}
  assert tables.collapse(run).rows[0][:2] == ("all", "0.333")
  assert all(len(row) == len(shown.head) for shown in (table, tables.collapse(run)) for row in shown.rows)


def test_where_each_seed_ran(tmp_path):
  """Of every start, also of runs of earlier versions, which recorded less: resumed since, or without start.json."""
  folders = [reported.run(tmp_path / str(seed), seed=seed) for seed in range(4)]
  start = json.loads((folders[0] / "start.json").read_text())
  later = {**start["starts"][0], "date": "2026-11-23", "versions": {"python": "3.13.1", "jaxlib": "0.12.0"}}
  earlier = {"versions": {"jaxlib": "0.10.2", "convolutions": "XLA"}, "precision": "float32"}
  reported.write(folders[1] / "start.json", {**start, "starts": [*start["starts"], later]})
  reported.write(folders[2] / "start.json", {**earlier, "platform": "cpu", "starts": [later]})
  (folders[3] / "start.json").unlink()
  summary = json.loads((folders[3] / "results.json").read_text())
  reported.write(folders[3] / "results.json", {**summary, **earlier, "devices": "1 x cpu"})
  group, = tables.groups_of([records.read(folder) for folder in folders])
  shown = tables.origins(group.settings[0])
  at = dict(zip(("run", "date", "commit", "Python", "jaxlib", "convolutions", "devices", "CPU", "precision"), (
      shown.head.index(name) for name in ("run", "date", "commit", "Python", "jaxlib", "convolutions", "devices", "CPU",
                                          "precision"))))
  cells = [tuple(row[place] for place in at.values()) for row in shown.rows]
  none, machine = tables.MISSING, ("1 x cpu", "A Processor, 2 cores")
  first = ("2026-11-22", "f00d with changes", "3.13.0", "0.12.0", none, *machine, "mixed")
  assert cells == [
      ("0", *first), ("1", *first), ("1", "2026-11-23", none, "3.13.1", "0.12.0", none, *machine, "mixed"),
      ("2", none, none, none, "0.10.2", "XLA", none, none, "float32"),
      ("2", "2026-11-23", none, "3.13.1", "0.12.0", none, *machine, "float32"),
      ("3", none, none, none, "0.10.2", "XLA", "1 x cpu", none, "float32")]
  report(folders, tmp_path / "report.html")
  assert "Where it ran" in (text := Page(tmp_path / "report.html").text) and "f00d with changes" in text


@pytest.mark.parametrize("starts", [5, ["x"], {"a": 1}, None, [{"versions": None}]])
def test_a_damaged_start_is_noted(tmp_path, starts):
  run = reported.run(tmp_path / "run")
  reported.write(run / "start.json", {"precision": "mixed", "starts": starts})
  report([run], tmp_path / "report.html")
  text = Page(tmp_path / "report.html").text
  assert "start.json is damaged" in text and "Where it ran" not in text


def test_a_run_that_recorded_nothing_of_it(tmp_path):
  run = reported.run(tmp_path / "run")
  (run / "start.json").unlink()
  report([run], tmp_path / "report.html")
  text = Page(tmp_path / "report.html").text
  assert "Where it ran" not in text and "start.json" not in text


def test_an_old_config_is_read(tmp_path):
  """Keys of the method that stood at the top level."""
  folder = reported.run(tmp_path / "run")
  config = json.loads((folder / "config.json").read_text())
  del config["method_options"]
  reported.write(folder / "config.json", {**config, "temperature": 3.0})
  assert records.read(folder).config["method_options.temperature"] == 3.0


def test_a_copy_elsewhere_is_enough(three, tmp_path):
  shutil.copytree(three[0], tmp_path / "copy")
  shutil.rmtree(three[0])
  document, _ = shown([tmp_path / "copy"], tmp_path)
  assert "Accuracy matrix" in document.headings
