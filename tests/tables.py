"""Rebuilds the tables of README.md and gr_jax/docs that show the runs in gr_jax/docs/results.

  python tests/tables.py                        # says which tables disagree with the files; exit code 1 if one does
  python tests/tables.py --write                # writes them anew
  python tests/tables.py --collect=FOLDER=NAME  # first copies the finished runs under FOLDER to results/NAME/

It needs gr_jax installed. A table stands between `<!-- table: NAME -->` and `<!-- end -->`. A run that has not been
done is "not run".
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import pathlib
import re
import runpy
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import speed_tables

from gr_jax.comparing import choice, tuning

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "gr_jax" / "docs" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "gr_jax" / "docs").glob("*.md")))
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# Config keys that are folders of one machine.
_PLACES = ("data_dir", "cache_dir")
_METHODS = ("finetune_without_memory", "simplecil", "finetune", "lwf", "il2m", "icarl", "eeil", "bic", "wa", "ssil",
            "lucir", "podnet", "gr", "dynamic_distillation", "der", "foster", "mafdrc", "lucir_lws", "lucir_gvalign",
            "lucir_gpa", "lucir_with_gr", "wa_with_gr", "podnet_with_gr", "joint", "joint_with_prior")
# Rows of configs/sweeps/cifar100_published.py -> scenario, number of tasks and method of the published number, or
# that number where no table has it (docs/method.md section 8).
PUBLISHED = {"gr": ("lt", "6", "gr"), "none_of_the_three": "-", "gr_cosine_head": "-", "lucir": ("lt", "6", "lucir"),
             "gr_ordered": ("ltio", "6", "gr"), "gr_10_increments": ("lt", "11", "gr"),
             "gr_from_scratch_20": "34.35 / -"}
PARTS = ("full", "no_reweighting", "no_prior", "plain_distillation", "none_of_the_three", "symmetric_task_ratio")
# Those of configs/sweeps/digits_parts.py.
DIGITS_PARTS = PARTS[:-1]
NOT_RUN = "not run"


def collect(runs: pathlib.Path, target: pathlib.Path) -> tuple[list[str], list[str]]:
  """Copies config, results, metrics and held-out accuracies of every finished run, without folders of this machine.

  Of the scenario of a run on held-out images: only their number in each class. Such files of a run collected before
  are removed where this one has none.

  Returns:
    The names of the runs that were copied, and of those that were left out, with the reason.
  """
  copied, left_out = [], []
  for path in sorted(runs.glob("*/results.json")):
    source, folder = path.parent, target / path.parent.name
    results, config = (json.loads((source / name).read_text()) for name in ("results.json", "config.json"))
    done, tasks = results["tasks_done"], config["scenario"]["num_tasks"]
    if "seeds" in results or done < tasks:
      left_out.append(f"{source.name} ({'replicas' if 'seeds' in results else f'{done} of {tasks} tasks'})")
      continue
    folder.mkdir(parents=True, exist_ok=True)
    config |= {key: None for key in _PLACES if config.get(key) not in (None, "off")}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    for name in ("start.json", "results.json", "metrics.jsonl", "holdout.json"):
      # Earlier runs have no start.json; held-out images are evaluated by a command of its own.
      if name in ("results.json", "metrics.jsonl") or (source / name).exists():
        (folder / name).write_text((source / name).read_text())
      else:
        (folder / name).unlink(missing_ok=True)
    if config.get("evaluate_on") == "holdout":
      drawn = json.loads((source / "scenario.json").read_text())
      kept = {key: drawn[key] for key in ("digest", "class_order", "holdout_counts")}
      (folder / "scenario.json").write_text(json.dumps(kept) + "\n")
    else:
      (folder / "scenario.json").unlink(missing_ok=True)
    copied.append(source.name)
  return copied, left_out


def read(name: str) -> dict[str, Any] | None:
  """results.json of a run under RESULTS; None if it is not there."""
  path = RESULTS / name / "results.json"
  return json.loads(path.read_text()) if path.exists() else None


def stage_seconds(name: str) -> dict[str, float]:
  """Seconds of each stage of a run, by its name, summed over the tasks; the last entry is what lies between them.

  A task's are its median epoch times its epochs: in some epochs a run compiled, or waited for other work.
  """
  rows = [json.loads(line) for line in (RESULTS / name / "metrics.jsonl").read_text().splitlines()]
  epochs: dict[tuple[str, int], list[float]] = {}
  before, further = 0.0, 0.0
  for row in rows:
    if row["kind"] == "epoch":
      epochs.setdefault((row["stage"], row["task"]), []).append(row["seconds"] - before)
    else:
      further += row["seconds"] - before
    before = row["seconds"]
  spent: dict[str, float] = {}
  for (stage, _), times in epochs.items():
    spent[stage] = spent.get(stage, 0.0) + statistics.median(times) * len(times)
  return {**spent, "evaluation, exemplars": further}


def percent(value: float) -> str:
  """A share in per cent, two digits."""
  return f"{100 * value:.2f}"


def precision() -> list[str]:
  """float32 beside the others: one row a seed, then mean and standard deviation, then the differences from float32."""
  kinds, seeds = ("float32", "mixed", "bfloat16"), range(5)
  lines = [f"| average / last | {' | '.join(kinds)} |", f"|{'---|' * (len(kinds) + 1)}"]
  results = {(kind, seed): run and _averages(run) for kind in kinds for seed in seeds
             for run in [read(f"precision/{kind}-s{seed}")]}
  lines += [f"| seed {seed} | " + " | ".join(
      " / ".join(map(percent, run)) if (run := results[kind, seed]) else NOT_RUN for kind in kinds) + " |"
            for seed in seeds]
  # Two numbers of each run of a kind, and their differences from float32's with the same seed.
  columns, gaps = [], []
  for kind in kinds:
    paired = [(run, exact) for seed in seeds if (run := results[kind, seed]) and (exact := results["float32", seed])]
    enough = len(paired) > 1
    columns.append(" / ".join(_spread([run[place] for run, _ in paired]) for place in range(2)) if enough else NOT_RUN)
    gaps.append("" if kind == "float32" else " / ".join(
        _spread([run[place] - exact[place] for run, exact in paired], math.sqrt(len(paired))) for place in range(2))
        + f", {len(paired)} seeds" if enough else NOT_RUN)
  return [*lines, f"| mean ± standard deviation | {' | '.join(columns)} |",
          f"| minus float32, mean ± standard error | {' | '.join(gaps)} |"]


def digits_precision() -> list[str]:
  """float32 beside bfloat16 on the digits: mean and standard deviation over the seeds."""
  lines = ["| digits, seeds 0 to 2 | average | last |", "|---|---|---|"]
  for kind in ("float32", "bfloat16"):
    runs = [run for seed in range(3) if (run := read(f"digits_precision/{kind}-s{seed}")) is not None]
    lines.append(f"| {kind} | " + (f"{NOT_RUN} | |" if len(runs) < 3 else " | ".join(
        _spread([_averages(run)[place] for run in runs]) for place in range(2)) + " |"))
  return lines


class Trained(NamedTuple):
  """What was trained at a budget.

  Attributes:
    code: whose.
    epochs: of a task.
    digits: with which its accuracies are shown.
    accuracies: ACC after each task, in per cent, of each seed.
  """
  code: str
  epochs: int
  digits: int
  accuracies: Sequence[Sequence[float]]

  @property
  def name(self) -> str:
    count = len(self.accuracies)
    return f"{self.epochs} epochs: {self.code}, {'seed 0' if count == 1 else f'mean of {count} seeds'}"

  def columns(self) -> list[str]:
    """ACC after each task, average, last: the mean over the seeds, with the standard deviation of several."""
    columns = [*zip(*self.accuracies), [statistics.mean(run) for run in self.accuracies],
               [run[-1] for run in self.accuracies]]
    return [f"{statistics.mean(column):.{self.digits}f}" + (
        f" ± {statistics.stdev(column):.{self.digits}f}" if len(column) > 1 else "") for column in columns]


def at_equal_budget() -> list[Trained]:
  """gr_jax and the authors' release on CIFAR-100-LT; equal_budget.csv has the runs whose files were not kept."""
  runs = [run for seed in range(5) if (run := read(f"precision/float32-s{seed}")) is not None]
  ours = [[100 * accuracy for accuracy in run["task_accuracies"]] for run in runs]
  with (RESULTS / "equal_budget.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  return [Trained("gr_jax", 10, 2, ours)] * bool(ours) + [
      Trained(row["code"], int(row["epochs"]), int(row["digits"]), [[float(row[str(task)]) for task in range(1, 7)]])
      for row in rows]


def equal_budget() -> list[str]:
  """gr_jax beside the authors' release: average / last."""
  return ["| average / last | |", "|---|---|",
          *[f"| {trained.name} | {' / '.join(trained.columns()[-2:])} |" for trained in at_equal_budget()]]


def equal_budget_by_task() -> list[str]:
  """The same after every task."""
  return ["| ACC after task | 1 | 2 | 3 | 4 | 5 | 6 | average | last |", f"|{'---|' * 9}",
          *[f"| {trained.name} | {' | '.join(trained.columns())} |" for trained in at_equal_budget()]]


def methods() -> list[str]:
  """Every method on CIFAR-100-LT at 10 epochs a task."""
  lines = ["| method | average | last | forgetting | many / medium / few | seconds by stage |",
           "|---|---|---|---|---|---|"]
  for name in _METHODS:
    run = read(f"methods/{name}-s0")
    shown = name.replace("_", " ")
    if run is None:
      lines.append(f"| {shown} | {NOT_RUN} | | | | |")
      continue
    groups = " / ".join(percent(run["many_medium_few"][group]["accuracy"]) for group in ("many", "medium", "few"))
    seconds = ", ".join(f"{stage} {value:.0f}" for stage, value in stage_seconds(f"methods/{name}-s0").items())
    lines.append(f"| {shown} | {' | '.join(map(percent, (*_averages(run), run['forgetting'][-1])))} | {groups} | "
                 f"{seconds} |")
  return lines


def published(rows: Sequence[str] = tuple(PUBLISHED)) -> list[str]:
  """The full protocol on CIFAR-100-LT beside the published numbers."""
  with (ROOT / "gr_jax" / "comparing" / "published.csv").open(newline="") as file:
    numbers = {(row["kind"], row["num_tasks"], row["method"]): f"{row['average']} / {row['last']}"
               for row in csv.DictReader(file) if row["dataset"] == "cifar100" and row["imbalance"] == "100.0"}
  lines = ["| average / last | published | here | ACC after each task | precision | hours |",
           "|---|---|---|---|---|---|"]
  for name in rows:
    run, source = read(f"published/{name}-s0"), PUBLISHED[name]
    cells = f"{NOT_RUN} | | |" if run is None else " | ".join((
        " / ".join(map(percent, _averages(run))), " ".join(map(percent, run["task_accuracies"])), run["precision"],
        f"{run['seconds'] / 3600:.1f}"))
    shown = source if isinstance(source, str) else numbers[source]
    lines.append(f"| {name.replace('_', ' ')} | {shown} | {cells} |")
  return lines


def parts(folder: str, rows: Sequence[str]) -> list[str]:
  """What each part brings: mean and standard deviation over the seeds."""
  lines = ["| | seeds | average incremental | last | forgetting |", "|---|---|---|---|---|"]
  for name in rows:
    runs = [run for seed in range(3) if (run := read(f"{folder}/{name}-s{seed}")) is not None]
    numbers = [(*_averages(run), run["forgetting"][-1]) for run in runs]
    cells = " | ".join(map(_spread, zip(*numbers))) if len(runs) > 1 else f"{NOT_RUN} | |"
    lines.append(f"| {name.replace('_', ' ')} | {len(runs)} | {cells} |")
  return lines


def cifar100_choice() -> list[str]:
  """Settings at 40 epochs a task by their held-out images, the best first; the rule is that of gr_jax.compare."""
  columns = ("setting", "other keys than gr's", "draws", "held out, mean over classes ± standard error",
             "mean over tasks")
  lines = [f"| {' | '.join(columns)} | |", "|---|---|---|---|---|---|"]
  sweep = runpy.run_path(str(ROOT / "configs" / "sweeps" / "cifar100_choice.py"))
  rows, means = [], {}
  for name, changes in sweep["SETTINGS"].items():
    folders = [RESULTS / "choice" / f"{name}_draw_{draw}-s0" for draw in sweep["DRAWS"]]
    finished = [folder for folder in folders if (folder / "results.json").exists()]
    counts = [tuning.held_out_counts(folder) for folder in finished]
    means[name] = percent(statistics.mean(map(_held_out_mean, finished))) if finished else ""
    rows.append((name, changes, len(counts), choice.score(counts) if counts else None))
  # Chosen among the settings with most draws, when every setting was tried: a further draw is for the best ones alone.
  complete = [row for row in rows if row[2] == max(draws for _, _, draws, _ in rows)]
  places = choice.choose([row[3] for row in complete], [len(row[1]) for row in complete]) if all(
      row[2] for row in rows) and complete else ()
  marks = dict(zip((complete[place][0] for place in reversed(places)), ("best", "chosen")))
  for name, changes, draws, score in sorted(rows, key=lambda row: -1.0 if row[3] is None else -row[3].mean):
    shown = NOT_RUN if score is None else f"{percent(score.mean)} ± {percent(score.error)}"
    keys = ", ".join(f"`{key}={value}`" for key, value in changes.items())
    lines.append(f"| {name.replace('_', ' ')} | {keys} | {draws} | {shown} | {means[name]} | {marks.get(name, '')} |")
  return lines


def _held_out_mean(folder: pathlib.Path) -> float:
  """The mean over tasks of the mean over the seen classes of accuracies on held-out images."""
  images = json.loads((folder / "scenario.json").read_text())["holdout_counts"]
  rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  return statistics.mean(
      statistics.mean(right / number for right, number in zip(row["correct"], images) if number)
      for row in rows if row["kind"] == "task")


def methods_held_out() -> list[str]:
  """The same runs by their held-out images, the best first."""
  lines = ["| method | held out, mean over classes ± standard error | test images: last |", "|---|---|---|"]
  rows = []
  for name in _METHODS:
    path = RESULTS / "methods" / f"{name}-s0" / "holdout.json"
    if path.exists():
      held = json.loads(path.read_text())
      rows.append((held["class_means"][-1], held["class_errors"][-1], name))
  for mean, error, name in sorted(rows, reverse=True):
    last = read(f"methods/{name}-s0")["last_accuracy"]
    lines.append(f"| {name.replace('_', ' ')} | {percent(mean)} ± {percent(error)} | {percent(last)} |")
  return lines


def method_steps() -> list[str]:
  """A step of each stage of every method, and its time over that of finetuning."""
  report = json.loads((RESULTS / "method_steps.json").read_text())
  lines = ["| method | ms a step, by stage | over `finetune`'s |", "|---|---|---|"]
  for name in _METHODS:
    if row := report["methods"].get(name):
      milliseconds = ", ".join(f"{stage} {1000 * seconds:.0f}" for stage, seconds in row["stages"].items())
      ratios = ", ".join(f"{seconds / row['finetune']:.2f}" for seconds in row["stages"].values())
      lines.append(f"| {name.replace('_', ' ')} | {milliseconds} | {ratios} |")
  return lines


def digits() -> list[str]:
  """Every method on the digits: the CSV file of `gr_jax.compare`, some of its columns rounded."""
  path = RESULTS / "digits" / "table.csv"
  columns = ("average_incremental", "last", "forgetting", "many", "medium", "few")
  lines = [f"| method | {' | '.join(name.replace('_', ' ') for name in columns)} | seconds | memory, MB |",
           f"|{'---|' * (len(columns) + 3)}"]
  with path.open(newline="") as file:
    for row in csv.DictReader(file):
      cells = [f"{float(row[f'{name}_mean']):.2f} ± {float(row[f'{name}_standard_deviation']):.2f}" for name in columns]
      lines.append(f"| {row['method']} | {' | '.join(cells)} | {float(row['seconds_mean']):.0f} | "
                   f"{float(row['memory_megabytes_mean']):.2f} |")
  return lines


def _averages(run: dict[str, Any]) -> tuple[float, float]:
  return run["average_incremental_accuracy"], run["last_accuracy"]


def _spread(values: Sequence[float], over: float = 1.0) -> str:
  # Adding 0 turns -0.00 into 0.00.
  return f"{round(100 * statistics.mean(values), 2) + 0:.2f} ± {100 * statistics.stdev(values) / over:.2f}"


TABLES: dict[str, Callable[[], list[str]]] = {
    "precision": precision, "digits_precision": digits_precision, "methods": methods,
    "methods_held_out": methods_held_out, "method_steps": method_steps, "digits": digits, "published": published,
    "full_protocol": lambda: published(("gr", "none_of_the_three", "gr_cosine_head")),
    "cifar100_parts": lambda: parts("parts", PARTS), "digits_parts": lambda: parts("digits_parts", DIGITS_PARTS),
    "cifar100_choice": cifar100_choice, "equal_budget": equal_budget, "equal_budget_by_task": equal_budget_by_task,
    "steps_avx2": lambda: speed_tables.steps(RESULTS / "against_torch_avx2.json", "float32")}


def rebuilt(page: str) -> str:
  """A page with its tables made anew.

  Raises:
    KeyError: a table of that name is not known.
  """
  return _TABLE.sub(lambda match: match[1] + "\n".join(TABLES[match[2]]()) + "\n" + match[3], page)


def main(arguments: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--write", action="store_true")
  parser.add_argument("--collect", action="append", default=[], metavar="FOLDER=NAME")
  options = parser.parse_args(arguments)
  for item in options.collect:
    folder, _, name = item.rpartition("=")
    copied, left_out = collect(pathlib.Path(folder), RESULTS / name)
    print(f"{name}: {', '.join(copied) or 'no finished run'}" + (
        f"; left out: {', '.join(left_out)}" if left_out else ""))
  stale = [page for page in PAGES if rebuilt(page.read_text()) != page.read_text()]
  for page in stale:
    if options.write:
      page.write_text(rebuilt(page.read_text()))
    print(f"{page.relative_to(ROOT)}: {'written' if options.write else 'tables disagree with the files'}")
  return 1 if stale and not options.write else 0


if __name__ == "__main__":
  sys.exit(main())
