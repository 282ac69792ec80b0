"""A list of runs: completes, skips what is done, tabulates, names what failed."""

import json

import pytest

import runs
from gr_jax import sweep
from gr_jax.errors import UserError

SWEEP = sweep.Sweep("configs/digits_lt.py", (0, 1), {"full": {}, "no_prior": {"prior": False}})


def test_every_row_with_every_seed(tmp_path):
  made = sweep.make_runs(SWEEP, tmp_path, [], ["epochs=2"])
  assert [(run.row, run.seed) for run in made] == [("full", 0), ("no_prior", 0), ("full", 1), ("no_prior", 1)]
  assert made[1].workdir == tmp_path / "no_prior-s0"
  assert list(made[3].command[3:]) == [
      "--config=configs/digits_lt.py", f"--workdir={tmp_path / 'no_prior-s1'}", "--config.prior=False",
      "--config.epochs=2", "--config.seed=1"]


def test_bad_requests(tmp_path):
  with pytest.raises(UserError, match="--only names half; rows are full, no_prior"):
    sweep.make_runs(SWEEP, tmp_path, ["half"], [])
  with pytest.raises(UserError, match="--set is 'epochs'"):
    sweep.make_runs(SWEEP, tmp_path, [], ["epochs"])
  with pytest.raises(UserError, match="no such file"):
    sweep.load(str(tmp_path / "none.py"))


def test_table_of_known_results(tmp_path):
  made = sweep.make_runs(SWEEP, tmp_path, [], [])
  for run, average in zip(made, (0.5, 0.4, 0.6, None)):
    if average is not None:
      run.workdir.mkdir()
      (run.workdir / "results.json").write_text(json.dumps({
          "average_incremental_accuracy": average, "last_accuracy": average - 0.1,
          "forgetting": [None, 0.25], "seconds": 90.0}))
  lines = sweep.table(made).splitlines()
  assert lines[2] == "| full | 2 | 55.00 ± 7.07 | 45.00 ± 7.07 | 25.00 ± 0.00 | 1.5 |"
  assert lines[3] == "| no_prior | 1 of 2 | 40.00 | 30.00 | 25.00 | 1.5 |"


def test_the_command_completes_skips_and_reports(tmp_path):
  flags = ("--sweep=configs/sweeps/digits_parts.py", f"--root={tmp_path}", "--only=full", "--set=epochs=1",
           "--set=milestones=()", "--set=scenario.num_tasks=2")
  done = runs.run("sweep", *flags)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1].startswith("| full | 3 |")
  assert (tmp_path / "table.md").read_text() in done.stdout
  stamps = [(tmp_path / f"full-s{seed}" / "metrics.jsonl").stat().st_mtime for seed in range(3)]
  assert runs.run("sweep", *flags).returncode == 0
  assert stamps == [(tmp_path / f"full-s{seed}" / "metrics.jsonl").stat().st_mtime for seed in range(3)]
  failing = runs.run("sweep", *flags[:-1], "--set=scenario.num_tasks=20")
  assert failing.returncode == 2 and "3 of 3 runs failed" in failing.stderr
