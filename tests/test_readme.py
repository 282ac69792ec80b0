"""The README's code runs, its commands name what exists, its map is true."""

import re

import runs

README = (runs.ROOT / "README.md").read_text()


def test_the_example_runs():
  code, = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  names = {}
  exec(compile(code, "README.md", "exec"), names)
  state, params = names["state"], names["params"]
  assert (state[0].phi > 0).all() and (state[0].column <= 1).all() and state[0].column.max() == 1
  assert params["head"]["kernel"].shape == (8, 3)


def test_commands_name_files_and_modules_that_exist():
  for path in re.findall(r"(?:--config=|--sweep=)?((?:configs|launch|tests)/[\w/]+\.(?:py|sh))", README):
    assert (runs.ROOT / path).is_file(), path
  for module in re.findall(r"python -m gr_jax\.(\w+)", README):
    assert (runs.ROOT / "gr_jax" / f"{module}.py").is_file(), module


def test_the_map_names_every_module():
  block = README[README.index("## Map of the code"):README.index("## Differences")]
  for path in (runs.ROOT / "gr_jax").rglob("*.py"):
    assert path.name == "__init__.py" or path.name in block, path
