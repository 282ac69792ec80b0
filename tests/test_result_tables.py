"""The tables of the pages agree with the committed runs."""

import csv
import json

import pytest
import speed_tables
import tables

from gr_jax.comparing import sweeps


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_tables_agree_with_the_runs(page):
  text = page.read_text()
  assert text == tables.rebuilt(text), "run: python tests/tables.py --write"


def test_the_readme_says_how_far_from_published_the_full_protocol_is():
  *_, row = tables.published(("gr",))
  published, here = ([float(number) for number in cell.split("/")] for cell in row.split("|")[2:4])
  average, last = (round(ours - theirs, 2) for ours, theirs in zip(here, published))
  assert average < 0 < last
  assert (f"the average is {-average:.1f} points below the published one, and the last accuracy {last:.1f} above it"
          ) in " ".join((tables.ROOT / "README.md").read_text().split())


# Table -> its runs under results/.
_RUNS = {
    "equal_budget": "precision/float32-*", "equal_budget_by_task": "precision/float32-*",
    "full_protocol": "published/*", "published": "published/*", "cifar100_parts": "parts/*",
    "cifar100_choice": "choice/*", "methods": "methods/*",
    "precision": "precision/*", "digits_parts": "digits_parts/*", "digits_precision": "digits_precision/*"}


@pytest.mark.parametrize("name", _RUNS)
def test_the_page_says_what_the_runs_recorded(name):
  """In or beside a table: precision and jaxlib's version of its runs, and the commits and dates that a run recorded.

  Runs collected before 2026-11-23 recorded neither commit nor date.
  """
  page = next(text for path in tables.PAGES if f"<!-- table: {name} -->" in (text := path.read_text()))
  before, after = page.split(f"<!-- table: {name} -->")
  table, after = after.split("<!-- end -->", 1)
  beside = " ".join(" ".join([*before.split("\n\n")[-2:], table, *after.split("\n\n")[:2]]).lower().split())
  finished = list(tables.RESULTS.glob(f"{_RUNS[name]}/results.json"))
  assert finished or all(tables.NOT_RUN in row for row in table.split("\n")[3:-1])
  for path in finished:
    run, start = json.loads(path.read_text()), path.parent / "start.json"
    assert f"jaxlib {run['versions']['jaxlib']}" in beside and run["precision"] in beside, path
    for one in json.loads(start.read_text()).get("starts", ()) if start.exists() else ():
      assert "commit" in one["versions"], f"{start} does not name a commit: train from a checkout"
      commit, *changed = one["versions"]["commit"].split(" ", 1)
      assert all(words in beside for words in (commit[:7], one["date"], *changed)), start


def test_every_table_stands_in_a_page():
  text = "\n".join(page.read_text() for page in tables.PAGES)
  for name in tables.TABLES:
    assert text.count(f"<!-- table: {name} -->") == 1


def test_no_committed_run_names_a_folder_of_one_machine():
  for path in tables.RESULTS.rglob("*.json*"):
    assert '"/' not in path.read_text(), path


def finished_run(folder, *, config=None, results=None, **files):
  """The files of a run of two tasks that `tables.collect` reads, and further JSON files by name."""
  folder.mkdir(parents=True)
  (folder / "metrics.jsonl").write_text('{"kind": "epoch"}\n')
  for name, content in {"config": {"scenario": {"num_tasks": 2}, **(config or {})},
                        "results": {"tasks_done": 2, **(results or {})}, **files}.items():
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_finished_runs_are_collected_without_their_folders(tmp_path):
  for name in ("a-s0", "b-s0"):
    finished_run(tmp_path / "runs" / name, config={"data_dir": "/somewhere", "cache_dir": "off", "seed": 0})
  (tmp_path / "runs" / "b-s0" / "results.json").unlink()
  assert tables.collect(tmp_path / "runs", tmp_path / "kept") == (["a-s0"], [])
  assert not (tmp_path / "kept" / "a-s0" / "holdout.json").exists()
  assert [path.name for path in (tmp_path / "kept").iterdir()] == ["a-s0"]
  assert json.loads((tmp_path / "kept" / "a-s0" / "config.json").read_text()) == {
      "data_dir": None, "cache_dir": "off", "seed": 0, "scenario": {"num_tasks": 2}}


def test_cut_runs_and_replicas_are_left_out_by_name(tmp_path, monkeypatch, capsys):
  """A run cut by stop_after_task has results.json as well; that of replicas is their mean, without metrics.jsonl."""
  finished_run(tmp_path / "runs" / "a-s0")
  finished_run(tmp_path / "runs" / "cut-s0", results={"tasks_done": 1})
  finished_run(tmp_path / "runs" / "many", results={"seeds": [0, 1]})
  (tmp_path / "runs" / "many" / "metrics.jsonl").unlink()
  finished_run(tmp_path / "runs" / "z-s0")
  monkeypatch.setattr(tables, "RESULTS", tmp_path)
  monkeypatch.setattr(tables, "PAGES", ())
  assert tables.main([f"--collect={tmp_path / 'runs'}=kept"]) == 0
  assert capsys.readouterr().out == "kept: a-s0, z-s0; left out: cut-s0 (1 of 2 tasks), many (replicas)\n"
  assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["a-s0", "z-s0"]


def test_files_of_the_run_collected_before_do_not_stay(tmp_path):
  drawn = {"digest": "d", "class_order": [0], "holdout_counts": [1]}
  finished_run(tmp_path / "before" / "a-s0", config={"evaluate_on": "holdout"}, start={}, holdout={}, scenario=drawn)
  finished_run(tmp_path / "after" / "a-s0", scenario=drawn)
  names = {"config.json", "metrics.jsonl", "results.json"}
  for runs, further in (("before", {"start.json", "holdout.json", "scenario.json"}), ("after", set())):
    tables.collect(tmp_path / runs, tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept" / "a-s0").iterdir()} == names | further


def test_held_out_accuracies_are_collected_and_ordered(tmp_path, monkeypatch):
  for name, mean in (("lucir", 0.1), ("gr", 0.3)):
    finished_run(tmp_path / "runs" / f"{name}-s0",
                 results={"average_incremental_accuracy": 0.4, "last_accuracy": 0.25},
                 holdout={"class_means": [0.9, mean], "class_errors": [0.1, 0.02]})
  monkeypatch.setattr(tables, "RESULTS", tmp_path)
  tables.collect(tmp_path / "runs", tmp_path / "methods")
  assert tables.methods_held_out()[2:] == ["| gr | 30.00 ± 2.00 | 25.00 |", "| lucir | 10.00 ± 2.00 | 25.00 |"]


def test_numbers_of_the_tables(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, "RESULTS", tmp_path)
  values = {("float32", 0): 0.10, ("float32", 1): 0.20, ("bfloat16", 0): 0.12, ("bfloat16", 1): 0.18}
  for (kind, seed), value in values.items():
    folder = tmp_path / "precision" / f"{kind}-s{seed}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(
        {"average_incremental_accuracy": value, "last_accuracy": value / 2}))
  assert tables.precision()[2:] == [
      "| seed 0 | 10.00 / 5.00 | not run | 12.00 / 6.00 |", "| seed 1 | 20.00 / 10.00 | not run | 18.00 / 9.00 |",
      *[f"| seed {seed} | not run | not run | not run |" for seed in (2, 3, 4)],
      "| mean ± standard deviation | 15.00 ± 7.07 / 7.50 ± 3.54 | not run | 15.00 ± 4.24 / 7.50 ± 2.12 |",
      "| minus float32, mean ± standard error |  | not run | 0.00 ± 2.00 / 0.00 ± 1.00, 2 seeds |"]


def test_numbers_of_the_equal_budget(tmp_path, monkeypatch):
  """Runs with files, and those that equal_budget.csv has; the page of the method has them task by task."""
  monkeypatch.setattr(tables, "RESULTS", tmp_path)
  (tmp_path / "equal_budget.csv").write_text("code,epochs,digits,1,2,3,4,5,6\nthe release,40,1,30,20,20,20,20,10\n")
  assert tables.equal_budget()[2:] == ["| 40 epochs: the release, seed 0 | 20.0 / 10.0 |"]
  for seed, accuracies in enumerate(([0.1, 0.2, 0.3, 0.2, 0.2, 0.2], [0.3, 0.4, 0.5, 0.4, 0.4, 0.4])):
    folder = tmp_path / "precision" / f"float32-s{seed}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"task_accuracies": accuracies}))
  assert tables.equal_budget()[2:] == [
      "| 10 epochs: gr_jax, mean of 2 seeds | 30.00 ± 14.14 / 30.00 ± 14.14 |",
      "| 40 epochs: the release, seed 0 | 20.0 / 10.0 |"]
  cells = " | ".join(f"{mean}.00 ± 14.14" for mean in (20, 30, 40, 30, 30, 30, 30, 30))
  assert tables.equal_budget_by_task()[2:] == [
      f"| 10 epochs: gr_jax, mean of 2 seeds | {cells} |",
      "| 40 epochs: the release, seed 0 | 30.0 | 20.0 | 20.0 | 20.0 | 20.0 | 10.0 | 20.0 | 10.0 |"]


def test_numbers_of_the_full_protocol_and_of_the_parts(tmp_path, monkeypatch):
  """What was run stands beside what was published; a mean needs two seeds."""
  monkeypatch.setattr(tables, "RESULTS", tmp_path)
  run = {"average_incremental_accuracy": 0.4, "last_accuracy": 0.35, "task_accuracies": [0.45, 0.35],
         "forgetting": [None, 0.1], "seconds": 9000.0, "precision": "tf32"}
  for folder in ("published/gr-s0", "parts/full-s0", "parts/full-s1", "parts/no_prior-s0"):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "results.json").write_text(json.dumps(run))
  lines = tables.published()
  assert lines[-1] == "| gr from scratch 20 | 34.35 / - | not run | | | |"
  assert lines[2:4] == [
      "| gr | 40.18 / 34.54 | 40.00 / 35.00 | 45.00 35.00 | tf32 | 2.5 |", "| none of the three | - | not run | | | |"]
  assert tables.parts("parts", tables.PARTS)[2:5] == [
      "| full | 2 | 40.00 ± 0.00 | 35.00 ± 0.00 | 10.00 ± 0.00 |",
      "| no reweighting | 0 | not run | | |", "| no prior | 1 | not run | | |"]


def held_out_run(folder, rates):
  """A finished run on held-out images: 10 classes of 20 such images, and one of none."""
  finished_run(folder, config={"evaluate_on": "holdout"}, scenario={
      "class_order": [*range(10, -1, -1)], "holdout_counts": [20] * 10 + [0], "digest": "d", "train": [[1]]})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (
      {"kind": "task", "correct": [1] * 5}, {"kind": "epoch"},
      {"kind": "task", "correct": [20 * rate for rate in rates] + [0]})))


def test_the_choice_is_the_simplest_within_one_standard_error(tmp_path, monkeypatch):
  """Rates of the classes are mean +- 0.3 in turn: 0.316 over the root of 10 classes, a standard error of 10 %."""
  monkeypatch.setattr(tables, "RESULTS", tmp_path)
  rates = lambda mean: [mean + 0.3 * (-1) ** number for number in range(10)]
  assert [line.split(" | ")[2:] for line in tables.cifar100_choice()[2:]] == [["0", "not run", "", " |"]] * 7
  means = {"gr": 0.35, "gr_cosine_schedule": 0.44, "gr_cosine_head": 0.31, "gr_more_weight_decay": 0.45,
           "gr_cutout": 0.5, "dynamic_distillation": 0.3, "lucir_gvalign": 0.32}
  for name, mean in means.items():
    for draw in (1, 2)[:1 if name == "lucir_gvalign" else 2]:
      held_out_run(tmp_path / "runs" / f"{name}_draw_{draw}-s0", rates(mean))
  tables.collect(tmp_path / "runs", tmp_path / "choice")
  kept = json.loads((tmp_path / "choice" / "gr_draw_1-s0" / "scenario.json").read_text())
  assert "train" not in kept and kept["digest"] == "d"
  lines = tables.cifar100_choice()[2:]
  assert lines[:2] == [
      "| gr cutout | `augmentation=pad_resized_crop_flip_cutout` | 2 | 50.00 ± 10.00 | 27.50 | best |",
      "| gr more weight decay | `weight_decay=0.001` | 2 | 45.00 ± 10.00 | 25.00 | chosen |"]
  assert lines[2].startswith("| gr cosine schedule | `schedule=cosine`, `milestones=()` | 2 | 44.00")
  assert [line for line in lines if line.startswith("| lucir gvalign | `method=lucir`, `addons=gvalign`, `method_opt")
          and " | 1 | 32.00" in line]
  assert sum(line.endswith(" |  |") for line in lines) == 5


@pytest.mark.parametrize("sweep, names", [
    ("cifar100_published", tables.PUBLISHED), ("cifar100_parts", tables.PARTS), ("digits_parts", tables.DIGITS_PARTS)])
def test_tables_have_the_rows_of_their_sweeps(sweep, names):
  assert list(sweeps.load(str(tables.ROOT / "configs" / "sweeps" / f"{sweep}.py")).rows) == list(names)


def test_a_recipe_says_what_the_runs_gave():
  ours = tables.at_equal_budget()[0]
  average, last = (float(column.partition(" ")[0]) for column in ours.columns()[-2:])
  recipe = " ".join((tables.ROOT / "configs" / "cifar100_lt.py").read_text().split())
  assert len(ours.accuracies) == 5 and f"{average:.1f} % and {last:.1f} % (float32, mean of five seeds)" in recipe
  full = tables.read("published/gr-s0")
  numbers = " and ".join(f"{100 * full[key]:.2f} %" for key in ("average_incremental_accuracy", "last_accuracy"))
  assert f"Here: {numbers} (float32, seed {full['seed']}; {full['seconds'] / 3600:.1f} hours" in recipe


def test_numbers_of_the_digits_in_both_precisions(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, "RESULTS", tmp_path)
  for seed in range(3):
    folder = tmp_path / "digits_precision" / f"float32-s{seed}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(
        {"average_incremental_accuracy": 0.8 + seed / 100, "last_accuracy": 0.5}))
  assert tables.digits_precision()[2:] == [
      "| float32 | 81.00 ± 1.00 | 50.00 ± 0.00 |", "| bfloat16 | not run | |"]


def test_numbers_of_the_table_of_methods(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, "RESULTS", tmp_path)
  folder = tmp_path / "methods" / "bic-s0"
  folder.mkdir(parents=True)
  (folder / "results.json").write_text(json.dumps({
      "average_incremental_accuracy": 0.3, "last_accuracy": 0.2, "forgetting": [None, 0.05],
      "many_medium_few": {"many": {"accuracy": 0.4}, "medium": {"accuracy": 0.3}, "few": {"accuracy": 0.1}}}))
  # One epoch waited for 97 seconds.
  rows = [("epoch", 1, "train", 10), ("epoch", 1, "train", 115), ("epoch", 1, "train", 123),
          ("epoch", 1, "correct_bias", 128), ("task", 1, None, 132), ("epoch", 2, "train", 138), ("task", 2, None, 139)]
  (folder / "metrics.jsonl").write_text("".join(
      json.dumps({"kind": kind, "task": task, "stage": stage, "seconds": seconds}) + "\n"
      for kind, task, stage, seconds in rows))
  assert ("| bic | 30.00 | 20.00 | 5.00 | 40.00 / 30.00 / 10.00 | train 36, correct_bias 5, "
          "evaluation, exemplars 5 |") in tables.methods()
  folder = tmp_path / "digits"
  folder.mkdir()
  names = ("average_incremental", "last", "forgetting", "many", "medium", "few")
  cells = {"method": "lucir+lws", "seconds_mean": "12.6", "memory_megabytes_mean": "0.0026"}
  cells |= {f"{name}_{part}": str(value + 0.125) for value, name in enumerate(names)
            for part in ("mean", "standard_deviation")}
  (folder / "table.csv").write_text(f"{','.join(cells)}\n{','.join(cells.values())}\n")
  assert tables.digits()[2:] == [
      "| lucir+lws | 0.12 ± 0.12 | 1.12 ± 1.12 | 2.12 ± 2.12 | 3.12 ± 3.12 | 4.12 ± 4.12 | 5.12 ± 5.12 | 13 | 0.00 |"]


def test_numbers_of_the_tables_beside_pytorch(tmp_path):
  """Files as the benchmarks write them; a ratio is the median of those within a round."""
  sides = {"gr_jax": [0.2, 0.4, 0.3], "released step": [0.5, 0.6, 0.6], "best step, eager": [0.2, 0.2, 0.6],
           "best step, compiled": [0.1, 0.2, 0.3]}
  seconds = sides | {f"{name}, bfloat16": [0.1 * time for time in times] for name, times in sides.items()}
  (tmp_path / "against_torch.json").write_text(json.dumps({"seconds_per_step": {"plain": seconds, "augmented": {
      name: [2 * time for time in times] for name, times in seconds.items()}}}))
  run = {"seconds": 60.4, "parts": {"training": 40.0, "rest": 20.4}}
  (tmp_path / "whole_run.json").write_text(json.dumps({
      "options": {"precision": "float32", "epochs": 3}, "sides": {
          "gr_jax, empty compilation cache": run, "gr_jax, filled compilation cache": run | {"seconds": 50.0},
          "PyTorch, structured as the release": run | {"seconds": 100.0}}}))
  assert speed_tables.beside_torch(tmp_path) == [
      "| | step, float32 | step, bfloat16 | whole run, float32, 3 epochs a task |", "|---|---|---|---|",
      "| gr_jax | 300 ms | 30 ms | 50 s, 60 s with an empty compilation cache |",
      "| PyTorch, structured as the release | 600 ms | 60 ms | 100 s |",
      "| PyTorch, the best plain step that we could write, eager | 200 ms | 20 ms |  |",
      "| the same, compiled | 200 ms | 20 ms |  |"]
  table = speed_tables.steps(tmp_path / "against_torch.json", "float32")
  assert table[2:4] == [
      "| gr_jax | 300 (200 to 400) | 1 | 600 (400 to 800) | 1 |",
      "| structured as the release | 600 (500 to 600) | 2.00 (1.50 to 2.50) "
      "| 1200 (1000 to 1200) | 2.00 (1.50 to 2.50) |"]
  half = speed_tables.steps(tmp_path / "against_torch.json", "bfloat16")
  assert half[4].startswith("| best plain PyTorch, eager | 20 (20 to 60) | 1.00 (0.50 to 2.00) | 40 ")
  assert speed_tables.whole_run(tmp_path)[0] == "| seconds | in all | training | rest |"
  assert speed_tables.whole_run(tmp_path)[3] == "| gr_jax, filled compilation cache | 50 | 40 | 20 |"


def test_the_digits_agree_wherever_they_stand():
  """Gradient Reweighting with three seeds in three tables; seed 0 on the README's first screen and in the recipe."""
  pages = {path.name: path.read_text() for path in tables.PAGES}
  with (tables.RESULTS / "digits" / "table.csv").open(newline="") as file:
    row, = (row for row in csv.DictReader(file) if row["method"] == "gr")
  average, last, forgetting = (
      f"{float(row[f'{name}_mean']):.2f} ± {float(row[f'{name}_standard_deviation']):.2f}"
      for name in ("average_incremental", "last", "forgetting"))
  assert f"\n| float32 | {average} | {last} |\n" in pages["speed.md"]
  assert f"\n| full | 3 | {average} | {last} | {forgetting} |\n" in pages["method.md"]
  run = tables.read("digits_precision/float32-s0")
  average, last = (f"{100 * run[name]:.2f}" for name in ("average_incremental_accuracy", "last_accuracy"))
  assert f"\naverage incremental accuracy {average} %, last {last} %; " in pages["README.md"]
  recipe = (tables.ROOT / "configs" / "digits_lt.py").read_text()
  assert f"average incremental accuracy {average} %, last {last} % (seed 0, jax {run['versions']['jax']})" in recipe
