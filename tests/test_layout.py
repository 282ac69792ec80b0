"""The house: imports point downwards only, and no folder outgrows its limit."""

import ast

import runs

PACKAGE = runs.ROOT / "gr_jax"

# From the bottom up. A module may import its own layer and those before it.
LAYERS = (
    ("device_axis", "errors", "files", "typing"),
    ("calibration", "losses", "memory", "metrics", "mixing", "neural_collapse", "optimizer", "reweighting", "sampling",
     "seeding"),
    ("alignment", "class_statistics", "class_weights", "nearest_mean", "pooled_outputs", "rectification", "separated"),
    ("watching",), ("devices",), ("models",), ("methods",), ("scenario",), ("data",), ("config", "flags"),
    ("training",), ("runs",), ("serving",), ("train", "cli"), ("benchmarking", "comparing", "report"),
    ("main", "evaluate", "export", "predict", "prepare", "status", "sweep", "compare", "benchmark"))
# Files of a folder at most; methods, commands and front rooms are lists of equals.
LARGEST = 14
EQUALS = ("", "methods")


def layer_of(module):
  top = module.split(".")[0]
  return next(number for number, names in enumerate(LAYERS) if top in names)


def imported(path):
  """Modules of gr_jax that a file imports, inside functions too, without the package's name."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gr_jax":
      for alias in node.names:
        yield ".".join([*node.module.split(".")[1:], alias.name])
    elif isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name.startswith("gr_jax."):
          yield alias.name.removeprefix("gr_jax.")


def test_imports_point_downwards():
  for path in PACKAGE.rglob("*.py"):
    module = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    if module == "__init__":
      continue
    for other in imported(path):
      assert layer_of(other) <= layer_of(module), f"{module} imports {other}"


def test_every_module_has_a_layer():
  for path in PACKAGE.iterdir():
    if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists():
      layer_of(path.stem)


def test_no_folder_outgrows_its_limit():
  for folder in (PACKAGE, *(path for path in PACKAGE.rglob("*") if (path / "__init__.py").exists())):
    files = [path for path in folder.glob("*.py") if path.stem != "__init__"]
    assert folder.relative_to(PACKAGE).as_posix().replace(".", "") in EQUALS or len(files) <= LARGEST, folder


def test_the_mathematics_touches_no_file_device_or_config():
  for layer in LAYERS[1:3]:
    for name in layer:
      tree = ast.parse((PACKAGE / f"{name}.py").read_text())
      names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
      names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
      assert not {top for top in (name.split(".")[0] for name in names)} & {
          "os", "pathlib", "json", "ml_collections", "absl", "orbax", "grain"}, name


def test_the_files_that_begin_first_exist():
  import conftest
  missing = [name for name in conftest.LONGEST if not (runs.ROOT / "tests" / name).is_file()]
  assert not missing, f"renamed? change LONGEST in tests/conftest.py: {missing}"
