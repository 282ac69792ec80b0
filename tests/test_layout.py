"""The house: imports point downwards, folders stay small, the README names what is there, names say what they hold."""

import ast
import re

import pytest
import runs

PACKAGE = runs.ROOT / "gr_jax"

# From the bottom up. A module may import its own layer and those before it.
LAYERS = (
    ("device_axis", "errors", "files", "typing"),
    ("calibration", "losses", "memory", "metrics", "mixing", "neural_collapse", "optimizer", "reweighting", "sampling",
     "seeding"),
    ("alignment", "class_statistics", "class_weights", "nearest_mean", "pooled_outputs", "rectification", "separated"),
    ("watching",), ("devices",), ("models",), ("methods",), ("scenario",), ("data",), ("config", "flags", "origin"),
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


README = (runs.ROOT / "README.md").read_text()
MAP = README[README.index("## Map of the code"):README.index("Imports point downwards only")]


def entries(text):
  """(folder of the repository, what the map has there: names, then their explanation) for each entry of the map."""
  joined = re.sub(r"\n {4,}", " ", text.partition("```\n")[2].partition("```")[0])
  for line in joined.splitlines():
    yield runs.ROOT / ("gr_jax" if line.startswith("  ") else ""), line.strip()


def names_of(explanation):
  """The names in an explanation such as "words: a (what it is), b, c/ (d, e)": a, b, c/, c/d, c/e."""
  for part in re.split(r"[,;] (?![^()]*\))", re.sub(r"^[^(:]*: ", "", explanation)):
    name, _, inside = part.strip(" )").partition(" (")
    # An explanation in words is no name.
    if " " not in name:
      yield name
      if name.endswith("/") and inside:
        yield from (name + below for below in inside.split(", "))


def modules_of(folder):
  """The names of a folder's modules, packages in it (with a slash), and their modules."""
  for path in sorted(folder.iterdir()):
    if path.suffix == ".py" and path.stem != "__init__":
      yield path.stem
    elif (path / "__init__.py").exists():
      yield from (f"{path.name}/", *(f"{path.name}/{name}" for name in modules_of(path)))


def is_method(path):
  return path.parent.name == "methods" and path.exists() and " Method(\"" in path.read_text()


def errors_of_the_map(text):
  """Names in the map that are not there, twice there, or missing in it."""
  wrong, seen = [], []
  for parent, line in entries(text):
    names = re.match(r"(?:\w+(?:\.py|/)(?= |$) ?)*", line)[0].split()
    explanation = line[len(" ".join(names)):].strip()
    seen += [parent / name for name in names]
    wrong += [f"{name} is not there" for name in names if not (parent / name).exists()]
    for folder in (parent / name for name in names if name.endswith("/") and (parent / name).is_dir()):
      given = list(names_of(explanation))
      if folder == PACKAGE / "docs":
        there = [path.name for path in folder.glob("*.md")]
      elif (folder / "__init__.py").exists() and explanation:
        there = [name for name in modules_of(folder) if name in given or not is_method(folder / f"{name}.py")]
      else:
        # Not of modules, such as launch/: what looks like a file or a folder is one.
        there = given = [name for name in given if (folder / name).exists() or not re.search(r"\.py$|/$", name)]
        wrong += [f"{name} is not in {folder.name}/" for name in names_of(explanation) if name not in given]
      wrong += [f"{folder.name}/ has {name}, the map does not" for name in there if name not in given]
      wrong += [f"{folder.name}/ has no {name}" for name in given if given.count(name) > there.count(name)]
  top = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__" or path.suffix == ".py"]
  wrong += [f"{path.name} is not in the map" for path in top if path not in seen and path.stem != "__init__"]
  return wrong + [f"{path.name} is in the map twice" for path in set(seen) if seen.count(path) > 1]


def test_the_map_names_what_is_there():
  assert errors_of_the_map(MAP) == []


@pytest.mark.parametrize("old, new, error", [
    ("  losses.py separated.py", "  losses.py", "separated.py is not in the map"),
    ("  losses.py ", "  losses.py loss.py ", "loss.py is not there"),
    ("  losses.py ", "  losses.py optimizer.py ", "optimizer.py is in the map twice"),
    ("  serving/  ", "  served/  ", "serving is not in the map"),
    ("  serving/  ", "  served/  ", "served/ is not there"),
    ("feed, workers", "feed", "data/ has workers, the map does not"),
    ("feed, workers", "feeds, workers", "data/ has no feeds"),
    ("feed, workers", "feed, workers, feed", "data/ has no feed"),
    ("folder, tfds_source", "folder, tfds", "data/ has no sources/tfds"),
    ("gvalign, gpa, needs)", "gvalign, needs)", "methods/ has addons/gpa, the map does not"),
    ("registry, combining", "combining", "methods/ has registry, the map does not"),
    ("config.md (every key), ", "", "docs/ has config.md, the map does not"),
    ("speed.md,", "speed.md, fast.md,", "docs/ has no fast.md"),
    ("sweeps/", "sweep/", "sweep/ is not in configs/"),
    ("base.py (every", "basis.py (every", "basis.py is not in configs/"),
    ("references/", "reference/", "reference/ is not in tests/")])
def test_a_map_of_another_house_is_refused(old, new, error):
  assert MAP.count(old) == 1 and error in errors_of_the_map(MAP.replace(old, new))


# They fit any variable, so they say nothing about one.
VAGUE = ("everywhere", "facts", "found", "own")
# The attribute of a syntax node that holds a name; of Name and Attribute only where they are assigned to.
NAME_IN = {
    ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg", ast.alias: "asname", ast.FunctionDef: "name",
    ast.AsyncFunctionDef: "name", ast.ClassDef: "name", ast.ExceptHandler: "name", ast.MatchAs: "name",
    ast.MatchStar: "name", ast.MatchMapping: "rest"}


def vague_names(source):
  """(line, name) of each variable, attribute, parameter, function and class of a source text with such a name."""
  for node in ast.walk(ast.parse(source)):
    name = getattr(node, NAME_IN.get(type(node), ""), None)
    if name in VAGUE and isinstance(getattr(node, "ctx", ast.Store()), ast.Store):
      yield node.lineno, name


def test_names_say_what_they_hold():
  paths = [path for folder in ("gr_jax", "configs", "tests") for path in (runs.ROOT / folder).rglob("*.py")]
  vague = [f"{path.relative_to(runs.ROOT)}:{line} {name}"
           for path in sorted([*paths, *(runs.ROOT / "launch").glob("*.py")])
           for line, name in vague_names(path.read_text())]
  assert not vague, "say what it holds (rows, results, gradient): " + ", ".join(vague)


@pytest.mark.parametrize("source, name", [
    ("found = 1", "found"), ("rows, *own = read()", "own"), ("facts: dict", "facts"), ("facts += [1]", "facts"),
    ("total = sum(found for found in rows)", "found"), ("if (found := read()): pass", "found"),
    ("with read() as found: pass", "found"), ("self.facts = {}", "facts"), ("def read(rows, *, own=None): pass", "own"),
    ("lambda found: 1", "found"), ("def everywhere(): pass", "everywhere"), ("class own: pass", "own"),
    ("async def found(): pass", "found"), ("try: pass\nexcept OSError as found: pass", "found"),
    ("from read import rows as found", "found"), ("match rows:\n  case [1, *found]: pass", "found"),
    ("match rows:\n  case {1: own, **facts}: pass", "own")])
def test_a_vague_name_is_noticed(source, name):
  assert name in [vague for _, vague in vague_names(source)]
  assert [line for line, _ in vague_names(f"rows = 1\n\n{source}")][0] == 3 + source.count("\n")


def test_words_inside_other_words_strings_and_foreign_attributes_are_no_names():
  assert not list(vague_names("not_found, owner = library.found, read('own', facts=1)  # found everywhere"))
