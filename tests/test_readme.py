"""The pages are true: their code runs, their commands, keys, files and links exist, the map names every module."""

import json
import re

import numpy as np
import pytest
import runs

from gr_jax import config as configuration
from gr_jax import methods, scenario, train
from gr_jax.methods import addons, combining
from gr_jax.runs import console
from gr_jax.scenario import plan
from gr_jax.training import experiment

README = (runs.ROOT / "README.md").read_text()
DOCS = runs.ROOT / "gr_jax" / "docs"
PAGES = {path.relative_to(runs.ROOT).as_posix(): path.read_text()
         for path in (runs.ROOT / "README.md", *sorted(DOCS.glob("*.md")))}

OPTIONS = {f"method_options.{key}" for _, options in methods.METHODS.values() for key in options}


PARTS = {f"method_options.{key}" for options in (combining.OPTIONS, *map(addons.options_of, addons.ADDONS))
         for key in options}


def known_keys():
  """Every config key, options of methods and of parts among them."""
  return OPTIONS | PARTS | set(configuration.KEYS)


def code_block(page, word):
  """The one Python block of a page that holds a word."""
  code, = (block for block in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL) if word in block)
  return compile(code, page, "exec")


def test_the_readme_is_short():
  prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
  words = " ".join(line for line in prose.splitlines() if not line.startswith("|")).split()
  assert len(words) <= 900


def test_the_first_screen_has_the_two_commands():
  """The second is that of .ci/run, the first that of configs/digits_lt.py."""
  first, second = (line.partition("#")[0].strip() for line in
                   re.search(r"```sh\n(.*?)```", README, re.DOTALL)[1].strip().splitlines())
  assert first == "pip install -e . && python -m gr_jax.main --config=configs/digits_lt.py"
  assert second == "pip install -e '.[test]' && pytest"
  assert "install --quiet --no-compile -e '.[test]'" in (runs.ROOT / ".ci" / "run").read_text()


def test_the_first_screen_is_what_a_run_prints():
  drawn = console.scenario_lines(experiment.load(runs.get_config("digits_lt"))).splitlines()
  for line in drawn[:3]:
    assert line in README


@pytest.mark.parametrize("page", ["README.md", "gr_jax/docs/own_pictures.md"])
def test_the_closing_lines_have_the_form_of_a_run(page):
  """The table's words, whatever the numbers; a run of one task has them all."""
  accuracies = {"task_accuracies": [0.5], "average_incremental_accuracy": 0.5}
  lines = console.closing_table({
      **accuracies, "task_mean_accuracies": [0.5], "forgetting": [None], "backward_transfer": [None], "tasks_done": 1,
      "last_accuracy": 0.5, "scores": {"logits": accuracies, "nearest_mean": accuracies},
      "many_medium_few": {name: {"accuracy": 0.5, "classes": 3} for name in ("many", "medium", "few")}}).splitlines()
  words = lambda line: re.sub(r"[\d.]+", "0", line)
  shown = [words(line) for line in PAGES[page].splitlines()]
  for line in lines[-2:]:
    assert words(line) in shown


def table_rows(page, heading):
  """Rows of cells of the first table of a page after a text, or that begins with it."""
  table = re.search(r"^\|.*?(?=^[^|]|^$)", PAGES[page][PAGES[page].index(heading):], re.DOTALL | re.MULTILINE)[0]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_speeds_of_the_readme_are_those_of_the_page_of_speed():
  """Of the first columns there: a step in float32, one in bfloat16, a whole run."""
  shown = {row[0]: row[1:] for row in table_rows("README.md", "Beside PyTorch on two CPU cores")}
  names = {"gr_jax": "gr_jax", "PyTorch, structured as the release": "structured as the release",
           "PyTorch, the best plain step that we could write, eager": "best plain PyTorch, eager",
           "the same, compiled": "best plain PyTorch, compiled"}
  page = "gr_jax/docs/speed.md"
  steps = [dict(row[:2] for row in table_rows(page, heading)) for heading in ("| float32 | ms |", "| bfloat16 | ms |")]
  wholes = {row[0]: row[1] for row in table_rows(page, "| seconds | in all |")}
  for name, there in names.items():
    for cell, column in zip(shown[name], steps):
      assert cell == f"{column[there].partition(' ')[0]} ms"
  filled, empty = (wholes[f"gr_jax, {kind} compilation cache"] for kind in ("filled", "empty"))
  assert shown["gr_jax"][2] == f"{filled} s, {empty} s with an empty compilation cache"
  released = "PyTorch, structured as the release"
  assert shown[released][2] == f"{wholes[released]} s"


def test_the_optax_example_runs():
  names = {}
  exec(code_block("gr_jax/docs/method.md", "optax"), names)
  state, params = names["state"], names["params"]
  assert (state[0].phi > 0).all() and (state[0].column <= 1).all() and state[0].column.max() == 1
  assert params["head"]["kernel"].shape == (8, 3)


def test_the_method_of_the_methods_page_runs(tmp_path, monkeypatch):
  """Logit adjustment at test time, registered as the page says."""
  names = {}
  exec(code_block("gr_jax/docs/methods.md", "logit_adjustment"), names)
  monkeypatch.setattr(methods.registry, "METHODS", dict(methods.METHODS))
  methods.register("logit_adjustment", names["make"], {"tau": methods.Option(1.0, low=0.0)})
  results = train.train(runs.short(epochs=1, milestones=(), **{
      "scenario.num_tasks": 1, "memory.per_class": 0, "method": "logit_adjustment", "method_options.tau": 1.5}),
      tmp_path)
  assert results["method"] == "logit_adjustment"
  assert json.loads((tmp_path / "config.json").read_text())["method_options"] == {"tau": 1.5}
  with pytest.raises(ValueError, match="'gr' is a method of gr_jax"):
    methods.register("gr", names["make"], {})


def test_the_method_of_the_readme_is_that_of_the_package():
  """The README's ten lines are LwF: same losses on the same outputs."""
  names = {}
  exec(code_block("README.md", "my_lwf"), names)
  rng = np.random.default_rng(0)
  student, teacher = (methods.Outputs(z, z, z, ()) for z in rng.normal(size=(2, 6, 5)).astype(np.float32))
  context = plan.make_context(np.asarray([9, 8, 7, 6, 5]), scenario.Task(2, 4), 1, per_class=4)
  ours, packaged = (sum(float(loss.value(student, teacher, np.asarray([0, 1, 2, 3, 2, 3]), context))
                        for loss in method.stages[0].losses.values())
                    for method in (names["lwf"], methods.make("lwf", {}, memory=20)))
  assert ours == pytest.approx(packaged, rel=1e-6)


def test_reading_a_run_and_the_page_of_its_files(tmp_path, monkeypatch, capsys):
  """The README's code reads a short run; every key in that run's files stands in files.md."""
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / "runs" / "digits_lt-s0"
  results = train.train(runs.short(stop_after_task=1), workdir)
  capsys.readouterr()
  names = {}
  exec(code_block("README.md", "results.json"), names)
  assert names["results"] == json.loads(json.dumps(results))
  assert str(results["last_accuracy"]) in capsys.readouterr().out
  page = PAGES["gr_jax/docs/files.md"]
  drawn = json.loads((workdir / "scenario.json").read_text())
  keys = {*results, *drawn, *drawn["tasks"][0], *(key for row in runs.rows(workdir) for key in row)}
  assert [key for key in sorted(keys) if f"`{key}`" not in page] == []
  for path in workdir.iterdir():
    assert f"`{path.name}`" in page or f"`{path.name}/`" in page, path.name


def test_digits_as_pictures(tmp_path, monkeypatch):
  """The pictures of own_pictures.md, and the draw that it shows of them."""
  page = "gr_jax/docs/own_pictures.md"
  monkeypatch.chdir(tmp_path)
  exec(code_block(page, "PIL"), {})
  loaded = experiment.load(runs.get_config("folder_lt", data_dir=str(tmp_path / "pictures"), **{
      "scenario.kind": "lt", "scenario.imbalance": 10.0, "image_size": 16, "stored_size": 18}))
  assert console.scenario_lines(loaded).splitlines()[0] in PAGES[page]


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_files_modules_and_keys_that_exist(page):
  text = PAGES[page]
  for path in re.findall(r"(?:--config=|--sweep=)?((?:configs|launch|tests)/[\w/]+\.(?:py|sh|yaml|md|npz))", text):
    assert (runs.ROOT / path).is_file(), path
  for module in re.findall(r"python -m gr_jax\.(\w+)", text):
    files = (runs.ROOT / "gr_jax" / place for place in (f"{module}.py", f"{module}/__main__.py"))
    assert any(file.is_file() for file in files), module
  named = set(re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)\b(?!\.KEY)", text))
  named |= set(re.findall(r"`((?:scenario|memory|folder|method_options)\.(?!json)[a-z_]+)(?:=\w+)?`", text))
  # The method that methods.md adds has an option of its own.
  assert named - known_keys() <= {"method_options.tau"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
  for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
    if target.startswith("http"):
      continue
    name, _, anchor = target.partition("#")
    path = (runs.ROOT / page).parent / name if name else runs.ROOT / page
    assert path.is_file(), target
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert not anchor or anchor in slugs, target


def test_the_table_of_faults_names_tests_that_exist():
  """`file.py::test` and, after it, `::test` of the same file."""
  table = PAGES["gr_jax/docs/faults.md"]
  assert [int(number) for number in re.findall(r"^\| (\d+) \| [^\d]", table, re.MULTILINE)] == list(range(1, 30))
  assert "lists 29 faults" in PAGES["gr_jax/docs/running.md"]
  for row in table.splitlines():
    file = None
    for path, name in re.findall(r"`(?:tests/)?([\w/]+\.py)?(?:::(test_\w+))?`", row):
      file = runs.ROOT / "tests" / path if path else file
      assert not path or file.is_file(), row
      if name:
        assert f"def {name}(" in file.read_text(), (file, name)
