"""The README's code runs, its commands name what exists, its map is true."""

import re

import runs

from gr_jax.runs import console
from gr_jax.training import experiment

README = (runs.ROOT / "README.md").read_text()


def test_the_example_runs():
  code, = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "optax" in block)
  names = {}
  exec(compile(code, "README.md", "exec"), names)
  state, params = names["state"], names["params"]
  assert (state[0].phi > 0).all() and (state[0].column <= 1).all() and state[0].column.max() == 1
  assert params["head"]["kernel"].shape == (8, 3)


def test_digits_as_pictures(tmp_path, monkeypatch):
  """The README's pictures, and the draw that it shows of them."""
  code, = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "PIL" in block)
  monkeypatch.chdir(tmp_path)
  exec(compile(code, "README.md", "exec"), {})
  found = experiment.load(runs.get_config("folder_lt", data_dir=str(tmp_path / "pictures"), **{
      "scenario.kind": "lt", "scenario.imbalance": 10.0, "image_size": 16, "stored_size": 18}))
  assert console.scenario_lines(found).splitlines()[0] in README


def test_commands_name_files_and_modules_that_exist():
  for path in re.findall(r"(?:--config=|--sweep=)?((?:configs|launch|tests)/[\w/]+\.(?:py|sh))", README):
    assert (runs.ROOT / path).is_file(), path
  for module in re.findall(r"python -m gr_jax\.(\w+)", README):
    assert (runs.ROOT / "gr_jax" / f"{module}.py").is_file(), module


def test_the_map_names_every_module():
  block = README[README.index("## Map of the code"):README.index("## Differences")]
  for path in (runs.ROOT / "gr_jax").rglob("*.py"):
    assert path.name == "__init__.py" or path.name in block, path


def test_the_table_of_faults_names_tests_that_exist():
  """`file.py::test` and, after it, `::test` of the same file."""
  table = (runs.ROOT / "gr_jax" / "docs" / "faults.md").read_text()
  assert [int(number) for number in re.findall(r"^\| (\d+) \| [^\d]", table, re.MULTILINE)] == list(range(1, 30))
  for row in table.splitlines():
    file = None
    for path, name in re.findall(r"`(?:tests/)?([\w/]+\.py)?(?:::(test_\w+))?`", row):
      file = runs.ROOT / "tests" / path if path else file
      assert not path or file.is_file(), row
      if name:
        assert f"def {name}(" in file.read_text(), (file, name)
