"""docs/config.md agrees with the code: type, range and default of every key and option, and no other row."""

import collections
import fractions
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import runs

from gr_jax import config as configuration
from gr_jax import methods, models
from gr_jax.data.sources import catalogue
from gr_jax.devices import processes
from gr_jax.errors import UserError
from gr_jax.methods import addons, combining, options

PAGE = (runs.ROOT / "gr_jax" / "docs" / "config.md").read_text()
METHOD_PAGE = (runs.ROOT / "gr_jax" / "docs" / "method.md").read_text()

HEADER = ("key", "type", "range", "default", "meaning", "symbol")
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", tuple: "list of integers"}
# Of texts that are not one of a few names.
WORDS = {
    "data_dir": "a folder", "cache_dir": "a folder, or `off`",
    "folder.train_list": "a file of lines `path label`", "folder.test_list": "a file of lines `path label`",
    "scenario.order": "`fixed`, `seeded`, or class indices separated by commas",
    "distributed": "`off`, `auto`, `HOST:PORT,COUNT,INDEX`", "milestones": "ascending, 1 or more",
    "addons": f"{', '.join(f'`{name}`' for name in addons.ADDONS)}, separated by commas, or nothing"}
# As method.md writes them.
SYMBOLS = {"ρ": r"\rho", "η": r"\eta", "λ": r"\lambda", "π": r"\pi", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma",
           "w_kd": r"w_{\mathrm{kd}}"}


class Entry(NamedTuple):
  """A key or an option as the code has it.

  Attributes:
    type: of its values.
    optional: whether it can be None.
    default: None, or of the type.
    accepts: whether a value of the type is in the range.
    words: the range in words, if it is neither names nor numbers.
    names: the strings that it can be.
    free: whether it may change between two starts.
  """
  type: type
  optional: bool
  default: Any
  accepts: Callable[[Any], bool]
  words: str | None = None
  names: tuple[str, ...] | None = None
  free: bool = False


def accepted(check, *arguments):
  """Whether a check passes."""
  try:
    check(*arguments)
  except UserError:
    return False
  return True


def model_names():
  """Every backbone that can be built."""
  make = functools.partial(models.make_backbone, platform="cpu")
  return tuple(name for name in (f"resnet{depth}" for depth in range(200)) if accepted(make, name))


def entry_of_key(key):
  there, of_key = configuration.KEYS[key], {"dataset": catalogue.NAMES, "method": methods.NAMES, "model": model_names()}
  defaults = configuration.flatten(runs.get_config("folder_lt" if key.startswith("folder.") else "base"))
  return Entry(there.type, there.optional, defaults[key], there.inside, WORDS.get(key),
               of_key.get(key, there.allowed), key in configuration.FREE_KEYS)


def entry_of_option(key, option):
  return Entry(type(option.default), False, option.default, lambda value: accepted(options.checked, key, option, value),
               names=option.allowed)


def entries():
  """(title of its table, key) -> Entry; "" is the title of the keys that are no options."""
  tables = {f"`{name}`": choices for name, (_, choices) in methods.METHODS.items()}
  tables |= {"Parts that combine": combining.OPTIONS}
  tables |= {f"Add-on `{name}`": addons.options_of(name) for name in addons.ADDONS}
  return {**{("", key): entry_of_key(key) for key in configuration.KEYS},
          **{(title, f"{configuration.OPTIONS}.{key}"): entry_of_option(key, option)
             for title, choices in tables.items() for key, option in choices.items()}}


ENTRIES = entries()


def rows(page):
  """(title of its table, key, the other cells) of every row of the tables of keys."""
  title, inside, named = "", False, False
  for line in page.splitlines():
    if line.startswith("#"):
      named = line.startswith("## Options of the methods") or (named and line.startswith("### "))
      title = line.removeprefix("### ") if named else ""
    if not line.startswith("|"):
      inside = False
      continue
    cells = tuple(cell.strip() for cell in re.split(r"(?<= )\|", line.strip()[1:-1] + " "))
    inside = inside or cells == HEADER
    if inside and cells != HEADER and not set(line) <= set("|-"):
      yield title, cells[0].strip("`"), cells[1:]


def shown(value):
  """A default as the page has it; numbers are compared as numbers."""
  if isinstance(value, tuple):
    return ", ".join(map(str, value))
  return f"`{value!r}`" if value == "" else f"`{value}`"


def is_number(kind):
  return kind in (int, float)


def same_default(cell, entry):
  if entry.default is None or not is_number(entry.type):
    return cell == shown(entry.default)
  try:
    return entry.type(fractions.Fraction(cell) if entry.type is float else cell) == entry.default
  except ValueError:
    return False


def same_numbers(cell, entry):
  """Whether a range such as "0 or more, below 1" is that of the code, tried at its ends and far outside."""
  low, _, below = cell.partition(", below ")
  match = re.fullmatch(r"(above )?([\d.]+)( or more)?", low)
  if match is None or bool(match[1]) == bool(match[3]):
    return False
  least, most = float(match[2]), float(below or "inf")
  step = 1 if entry.type is int else 1e-9
  probes = [end + shift for end in (least, most, 0, 1) if end < float("inf") for shift in (-step, 0, step)]
  return all(entry.accepts(entry.type(value)) == (
      (value > least if match[1] else value >= least) and value < most) for value in (*probes, -1e6, 1e6)) and (
          entry.type is int or not any(entry.accepts(value) for value in (float("inf"), float("nan"))))


def same_range(cell, entry):
  if entry.words is not None:
    return cell == entry.words
  if is_number(entry.type):
    return same_numbers(cell, entry)
  return sorted(cell.split(", ")) == sorted(f"`{name}`" for name in (
      ("True", "False") if entry.type is bool else entry.names))


@functools.cache
def wrong_cells(title, key, cells):
  """Which cells of a row differ from the code."""
  if (title, key) not in ENTRIES:
    return ["key"]
  if len(cells) != len(HEADER) - 1:
    return ["number of cells"]
  (kind, allowed, default, meaning, _), entry = cells, ENTRIES[title, key]
  wrong = {
      "type": kind != TYPES[entry.type] + (" or `None`" if entry.optional else ""),
      "range": not same_range(allowed, entry), "default": not same_default(default, entry),
      "meaning": not meaning or meaning.startswith("*free*") != entry.free}
  return [name for name, differs in wrong.items() if differs]


def disagreements(given):
  """What the rows of a page say otherwise than the code; [] if they agree."""
  wrong = [f"{key} ({title}): {cell}" for title, key, cells in given for cell in wrong_cells(title, key, cells)]
  number = collections.Counter((title, key) for title, key, _ in given)
  return wrong + [f"{key} ({title}): {number[title, key]} rows" for title, key in ENTRIES if number[title, key] != 1]


def test_the_page_has_every_key_as_it_is():
  assert disagreements(list(rows(PAGE))) == []


def test_defaults_are_the_papers_protocol_but_for_two_keys():
  """As the page says above its tables."""
  base, paper = (configuration.flatten(runs.get_config(name)) for name in ("base", "cifar100_lt"))
  assert {key: paper[key] for key in paper if paper[key] != base[key]} == {
      "dataset": "cifar100", "scenario.first_task_classes": 50}
  assert "two keys: `dataset`, `cifar100` there, and `scenario.first_task_classes`, 50." in PAGE


OTHER_RANGES = ("0 or more", "1 or more", "2 or more", "above 0", "0 or more, below 1", "0 or more, below 2", "")


def altered(title, key, cells):
  """Rows that are wrong in place of a right one: "" for none, another key, type, range or default, another *free*."""
  kind, allowed, default, meaning, symbol = cells
  entry = ENTRIES[title, key]
  row = lambda *others: "| `{}` | {} |".format(others[0], " | ".join(others[1:])).replace("|  |", "| |")
  ranges = [f"{allowed}, `other`", allowed.rpartition(",")[0]]
  defaults = ["7", "", "`None`", "`other`"]
  if is_number(entry.type):
    # Of whole numbers, "above 0" says the same as "1 or more".
    ranges = [other for other in OTHER_RANGES if other != allowed and (entry.type, allowed, other) != (
        int, "1 or more", "above 0")]
    defaults += [f"{default}1"] if entry.default else []
  yield from ("", f"{row(key, *cells)}\n{row(key, *cells)}", row(f"{key}s", *cells), row(key, "colour", *cells[1:]))
  yield row(key, kind.removesuffix(" or `None`") if entry.optional else f"{kind} or `None`", *cells[1:])
  yield row(key, kind, allowed, default, meaning[7:] if entry.free else f"*free*. {meaning}", symbol)
  yield from (row(key, kind, other, default, meaning, symbol) for other in ranges)
  yield from (row(key, kind, allowed, other, meaning, symbol) for other in defaults if other != default)


def test_any_other_row_is_a_disagreement():
  """In every table, with one row at a time altered; a row is also left out, and stands twice."""
  given = list(rows(PAGE))
  for number, (title, key, cells) in enumerate(given):
    head = f"## Options of the methods\n### {title}" if title else "## Keys"
    for text in altered(title, key, cells):
      others = rows(f"{head}\n| {' | '.join(HEADER)} |\n|---|\n{text}")
      lines = disagreements([*given[:number], *others, *given[number + 1:]])
      assert any(key in line for line in lines), text


def test_a_table_of_no_method_or_with_another_header_is_a_disagreement():
  ghost = PAGE.replace("### `finetune`", "### `ghost`\n\n" + PAGE[PAGE.index("### `lwf`"):PAGE.index("### `icarl`")]
                       .partition("\n")[2] + "\n### `finetune`")
  assert disagreements(list(rows(ghost))) == [
      "method_options.weight (`ghost`): key", "method_options.temperature (`ghost`): key"]
  before = PAGE.replace("| range | default |", "| default | range |", 1)
  assert "dataset (): 0 rows" in disagreements(list(rows(before)))


def test_the_words_for_ranges_are_those_of_the_code():
  assert all(accepted(processes.parse, text) for text in ("off", "auto", "10.0.0.1:9876,2,0"))
  assert not accepted(processes.parse, "on")
  assert accepted(addons.names, ",".join(addons.ADDONS)) and accepted(addons.names, "")
  for milestones, right in (((), True), ((1, 2), True), ((0, 1), False), ((2, 1), False), ((1, 1), False)):
    assert accepted(configuration.check, runs.get_config("digits_lt", milestones=milestones)) == right


def test_symbols_are_those_of_the_specification():
  mathematics = " ".join(re.findall(r"\$`.*?`\$|```math\n.*?```", METHOD_PAGE, re.DOTALL))
  given = {symbol for title, _, cells in rows(PAGE) if title in ("", "`gr`", "Parts that combine")
           for symbol in filter(None, cells[-1].split(", "))}
  assert {"ρ", "m", "N", "η", "λ", "γ", "T", "π"} <= given
  for symbol in given:
    assert re.search(rf"(?<![A-Za-z\\]){re.escape(SYMBOLS.get(symbol, symbol))}(?![A-Za-z])", mathematics), symbol


def test_the_table_of_methods_has_every_method():
  table = PAGE[PAGE.index("| method | what it is |"):PAGE.index("### `gr`")]
  assert sorted(re.findall(r"^\| `(\w+)` \| \S", table, re.MULTILINE)) == sorted(methods.METHODS)


def test_old_names_stand_with_new_ones():
  table = PAGE[PAGE.index("## Old and new names"):]
  assert dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|$", table, re.MULTILINE)) == {
      key: f"method_options.{key}" for key in configuration.MOVED} == configuration.MOVED


def test_which_methods_need_exemplars():
  """The sentence beside memory.per_class, by the methods' own numbers."""
  sentence, = re.findall(r"exemplars of each class\. (.*?) FACIL", (runs.ROOT / "gr_jax/docs/config.md").read_text())
  form = r"(.*) need 1 or more, and so does the add-on `lws`; `(\w+)` needs (\d+)\."
  one, other, count = re.match(form, sentence).groups()
  needs = {name: methods.make(name, {}, memory=20).min_memory for name in methods.NAMES}
  assert set(re.findall(r"`(\w+)`", one)) == {name for name, least in needs.items() if least == 1}
  assert {other: int(count)} == {
      name: least for name, least in needs.items() if least > 1}
