"""A list of runs: completes, skips what is done, tabulates, names what failed."""

import json
import pathlib
import time

import pytest
import runs

from gr_jax import config as configuration
from gr_jax import evaluate, methods
from gr_jax.comparing import sweeps
from gr_jax.errors import UserError
from gr_jax.methods import addons
from gr_jax.runs import workdir

SWEEP = sweeps.Sweep("configs/digits_lt.py", (0, 1), {"full": {}, "no_prior": {"method_options.prior": False}})


def test_every_row_with_every_seed(tmp_path):
  made = sweeps.make_runs(SWEEP, tmp_path, [], ["epochs=2"])
  assert [(run.row, run.seed) for run in made] == [("full", 0), ("no_prior", 0), ("full", 1), ("no_prior", 1)]
  assert made[1].workdir == tmp_path / "no_prior-s0"
  assert list(made[3].flags) == [
      "--config=configs/digits_lt.py", f"--workdir={tmp_path / 'no_prior-s1'}", "--config.method_options.prior=False",
      "--config.epochs=2", "--config.seed=1"]


def test_bad_requests(tmp_path):
  with pytest.raises(UserError, match="--only has unknown rows: half; rows are full, no_prior"):
    sweeps.make_runs(SWEEP, tmp_path, ["half"], [])
  with pytest.raises(UserError, match="--set is 'epochs'"):
    sweeps.make_runs(SWEEP, tmp_path, [], ["epochs"])
  with pytest.raises(UserError, match="no such file"):
    sweeps.load(str(tmp_path / "none.py"))


def test_table_of_known_results(tmp_path):
  made = sweeps.make_runs(SWEEP, tmp_path, [], [])
  for run, average in zip(made, (0.5, 0.4, 0.6, None)):
    if average is not None:
      run.workdir.mkdir()
      (run.workdir / "results.json").write_text(json.dumps({
          "average_incremental_accuracy": average, "last_accuracy": average - 0.1,
          "forgetting": [None, 0.25, None], "tasks_done": 2, "seconds": 90.0}))
  lines = sweeps.table(made).splitlines()
  assert lines[2] == "| full | 2 | 55.00 ± 7.07 | 45.00 ± 7.07 | 25.00 ± 0.00 | 1.5 |"
  assert lines[3] == "| no_prior | 1 of 2 | 40.00 | 30.00 | 25.00 | 1.5 |"


def test_held_out_images_have_columns_of_their_own(tmp_path):
  made = sweeps.make_runs(SWEEP, tmp_path, [], [])
  for run, accuracies in zip(made[:3], ([None, 0.5, 0.3], None, [0.8, 0.6, 0.5])):
    finish(run.workdir, tasks=3)
    if accuracies:
      (run.workdir / "holdout.json").write_text(json.dumps({
          "holdout_accuracies": accuracies, "class_means": [None, 0.1, accuracies[2] / 2],
          "class_errors": [None, 0.1, 0.02]}))
  lines = sweeps.table(made).splitlines()
  assert lines[0].endswith("| held out: average | held out: last | held out: last, classes alike |")
  assert lines[1].count("---") == 9
  # In the first seed, no class of the first task has held-out images.
  assert lines[2].endswith("| 51.67 ± 16.50 | 40.00 ± 14.14 | 20.00 ± 2.00 |")
  assert lines[3].endswith("| - | - |")
  assert {line.count("|") for line in lines} == {10}
  # A run that has learned more tasks since is not shown with numbers of before.
  finish(made[2].workdir, tasks=4)
  assert sweeps.table(made).splitlines()[2].endswith("| 40.00 | 30.00 | 15.00 ± 2.00 |")


def finish(folder, tasks):
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps({"validation_fraction": 0.1}))
  (folder / "results.json").write_text(json.dumps({
      "average_incremental_accuracy": 0.5, "last_accuracy": 0.5, "forgetting": [None] * tasks, "seconds": 90.0,
      "tasks_done": tasks}))


def test_held_out_images_that_cannot_be_evaluated_are_named(tmp_path):
  """A folder without checkpoints; the numbers of another run stay."""
  made = sweeps.make_runs(SWEEP, tmp_path, ["full"], [])
  for run, tasks in zip(made, (2, 3)):
    finish(run.workdir, tasks)
    (run.workdir / "holdout.json").write_text(json.dumps({"holdout_accuracies": [0.5, 0.3]}))
  failures = sweeps.evaluate_holdout(made)
  assert len(failures) == 1 and failures[0].startswith("full seed 1: its held-out images cannot be evaluated: error: ")
  assert "| full | 2 |" in sweeps.table(made)


@pytest.mark.parametrize("changes, settings, message", [
    ({"epoch": 3}, [], "row 'late': unknown config key 'epoch'; did you mean 'epochs'"),
    ({"epochs": "three"}, [], "row 'late': config key 'epochs' is 'three'"),
    ({"method_options.priors": False}, [], "row 'late': no method .* method_options.priors; did you mean .*prior"),
    ({"seed": 5}, [], "row 'late': a list of runs sets seed itself.*remove seed=5"),
    ({}, ["replicas=2"], "row 'early': a list of runs sets replicas itself"),
    ({}, ["memory.per_clas=3"], "row 'early': unknown config key 'memory.per_clas'")])
def test_keys_are_checked_before_the_first_run(tmp_path, changes, settings, message):
  """Not when their row's turn comes, after days."""
  with pytest.raises(UserError, match=message):
    sweeps.make_runs(SWEEP._replace(rows={"early": {}, "late": changes}), tmp_path, [], settings)


def test_a_seed_that_is_named_twice_is_refused(tmp_path):
  for seeds in (("0", "0"), ("1", "2", "01")):
    with pytest.raises(UserError, match=r"seeds are \d.*name each once"):
      sweeps.make_runs(sweeps.with_seeds(SWEEP, seeds), tmp_path, [], [])


def test_the_command_completes_skips_and_reports(tmp_path):
  file = tmp_path / "short.py"
  content = {"config": "configs/digits_lt.py", "seeds": (7, 8), "rows": {"full": {}}}
  file.write_text(f"def get_sweep():\n  return {content}\n")
  flags = (f"--sweep={file}", f"--root={tmp_path}", "--seeds=0",
           *(flag.replace("--config.", "--set=") for flag in runs.SHORT[1:]))
  done = runs.run("sweep", *flags)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1].startswith("| full | 1 |")
  assert (tmp_path / "table.md").read_text() in done.stdout
  stamp = (tmp_path / "full-s0" / "metrics.jsonl").stat().st_mtime
  held = runs.run("sweep", *flags, "--holdout")
  assert held.returncode == 0 and "held out: last" in held.stdout, held.stderr
  assert stamp == (tmp_path / "full-s0" / "metrics.jsonl").stat().st_mtime
  accuracies = json.loads((tmp_path / "full-s0" / "holdout.json").read_text())["holdout_accuracies"]
  last = evaluate.evaluate(tmp_path / "full-s0", split="holdout")
  assert len(accuracies) == 3 and accuracies[-1] == last["accuracy"]
  with workdir.locked(tmp_path):
    second = runs.run("sweep", *flags)
  assert second.returncode == 2 and "another job is using" in second.stderr and "another --root" in second.stderr
  # The folder holds a run of another config by now.
  failing = runs.run("sweep", *flags, "--set=scenario.num_tasks=2")
  assert failing.returncode == 2 and "1 of 1 runs failed" in failing.stderr


def test_a_list_that_is_ended_takes_its_runs_along(tmp_path):
  process = runs.start("sweep", "--sweep=configs/sweeps/digits_parts.py", "--only=full", f"--root={tmp_path}")
  rows, deadline = tmp_path / "full-s0" / "metrics.jsonl", time.monotonic() + 120
  while not (rows.exists() and rows.stat().st_size) and time.monotonic() < deadline:
    time.sleep(0.05)
  process.terminate()
  assert process.wait(timeout=60) == 75
  # The folder's lock is free, so nobody is at work there any more.
  with workdir.locked(tmp_path / "full-s0"):
    assert not (tmp_path / "full-s0" / "results.json").exists()


@pytest.mark.parametrize("path", sorted((runs.ROOT / "configs" / "sweeps").glob("*.py")), ids=lambda p: p.stem)
def test_sweep_files_set_known_keys(path):
  sweep = sweeps.load(str(path))
  assert (runs.ROOT / sweep.config).is_file()
  for changes in sweep.rows.values():
    prefix = f"{configuration.OPTIONS}."
    assert {key for key in changes if not key.startswith(prefix)} <= set(configuration.KEYS)
    # As on the command line: options of the row's method and add-ons, with values that they take.
    method = changes.get("method", runs.get_config(pathlib.Path(sweep.config).stem).method)
    methods.parse(method, {key.removeprefix(prefix): str(value) for key, value in changes.items()
                           if key.startswith(prefix)}, addons.names(changes.get("addons", "")))


def test_options_of_a_method_that_the_recipe_registers_are_known(tmp_path):
  recipe = tmp_path / "mine.py"
  recipe.write_text("from gr_jax import methods\nfrom configs import digits_lt\n\ndef get_config():\n"
                    "  if 'mine' not in methods.METHODS:\n"
                    "    methods.register('mine', lambda *, tau: None, {'tau': methods.Option(1.0)})\n"
                    "  return digits_lt.get_config()\n")
  sweep = SWEEP._replace(config=str(recipe), rows={"one": {"method_options.tau": 2.0}})
  try:
    assert len(sweeps.make_runs(sweep, tmp_path, [], [])) == 2
  finally:
    methods.METHODS.pop("mine", None)
