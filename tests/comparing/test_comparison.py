"""Whole comparisons with stand-ins for the runs: what is run, when, how often; the choice; what fails."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import runs
import stand_in

from gr_jax import config as configuration
from gr_jax.comparing import comparison, entries, plan, probe, progress
from gr_jax.errors import UserError

FILE = pathlib.Path("configs/digits_lt.py")


@pytest.fixture
def stand_ins(monkeypatch):
  """Runs are stand_in.py; the machine has no GPU, and pictures stay on the device."""
  asked = []

  def look(missing, finished):
    assert all((folder / "results.json").exists() for folder, _ in finished.values())
    asked.append((set(missing), set(finished)))
    return probe.Report(["cpu"], dict.fromkeys(missing, stand_in.STEPS), True)

  monkeypatch.setattr(plan, "_MAIN", "stand_in")
  monkeypatch.setattr(probe, "probe", look)
  monkeypatch.setenv("PYTHONPATH", f"{runs.ROOT}:{pathlib.Path(__file__).parent}")
  return asked


def request(root, methods, *, seeds=2, tune=(), jobs=1, **changes):
  base = configuration.check(runs.get_config("digits_lt", **{"learning_rate": 0.2, **changes}))
  requested = comparison.Comparison(FILE, entries.parse(methods, base), seeds, list(tune), [1, 2], root, jobs)
  comparison.check(requested)
  return requested


def steps(root):
  """Folder of each run -> its steps in the order in which they were taken."""
  return {path.parent.relative_to(root).as_posix(): path.read_text().split() for path in root.rglob("steps.log")}


def test_every_entry_with_every_seed_once(tmp_path, stand_ins):
  root = tmp_path / "all"
  text, failures = comparison.compare(request(root, "gr,wa"))
  assert not failures and text == (root / "table.md").read_text().rstrip("\n") and "learned tasks" not in text
  expected = {f"runs/{name}/seed-{seed}": ["1", "2"] for name in ("gr", "wa") for seed in (0, 1)}
  assert steps(root) == expected
  # The seeds of an entry were replicas of one process.
  assert (root / "runs" / "gr" / "started").read_text() == "test 2\n"
  # The table is that of the runs' files.
  table = {row["method"]: row for row in csv.DictReader((root / "table.csv").read_text().splitlines())}
  for name in ("gr", "wa"):
    results = [json.loads((root / "runs" / name / f"seed-{seed}" / "results.json").read_text()) for seed in (0, 1)]
    averages = [100 * one["average_incremental_accuracy"] for one in results]
    assert float(table[name]["average_incremental_mean"]) == pytest.approx(np.mean(averages))
    assert float(table[name]["average_incremental_standard_deviation"]) == pytest.approx(np.std(averages, ddof=1))
    assert f"| {name} | 2 | {np.mean(averages):.2f} ± {np.std(averages, ddof=1):.2f} |" in text
  # A second time there is nothing to do, and nothing to look at.
  again, failures = comparison.compare(request(root, "gr,wa"))
  assert not failures and again == text and steps(root) == expected and len(stand_ins) == 1
  # Another method and another seed: only what is missing.
  comparison.compare(request(root, "gr,wa,lwf", seeds=3))
  assert steps(root) == {f"runs/{name}/seed-{seed}": ["1", "2"] for name in ("gr", "wa", "lwf") for seed in range(3)}
  assert stand_ins[1] == ({"gr, seed 2", "wa, seed 2", "lwf, seed 0", "lwf, seed 1", "lwf, seed 2"},
                          {"gr, seed 0", "gr, seed 1", "wa, seed 0", "wa, seed 1"})


def test_a_failing_method_is_reported_and_the_others_go_on(tmp_path, stand_ins, monkeypatch, capsys):
  root = tmp_path / "all"
  monkeypatch.setenv("FAILING", "gr")
  text, failures = comparison.compare(request(root, "gr,wa"))
  assert failures == [f"gr, seeds 0 to 1: failed with exit code 1, see {root / 'runs' / 'gr'}.log"]
  assert "cannot" in (root / "runs" / "gr.log").read_text()
  assert "| gr | 0 of 2 | - |" in text and "| wa | 2 | 50.50" in text and f"- {failures[0]}" in text
  assert "gr, seeds 0 to 1: FAILED with code 1" in capsys.readouterr().out
  monkeypatch.setenv("FAILING", "")
  _, failures = comparison.compare(request(root, "gr,wa"))
  assert not failures and (root / "runs" / "wa" / "started").read_text() == "test 2\n"


def test_settings_are_chosen_by_held_out_images_alone(tmp_path, stand_ins):
  """Runs that tune are told to evaluate on the hold-out, on other draws; 0.05 is better there, 0.2 is the config's."""
  root = tmp_path / "all"
  text, failures = comparison.compare(request(root, "gr,wa", seeds=1, tune=["learning_rate=0.2,0.05"]))
  assert not failures
  tuned = sorted(path for path in steps(root) if path.startswith("tuning"))
  assert tuned == [f"tuning/{name}/learning_rate={rate}/scenario-{seed}" for name in ("gr", "wa")
                   for rate in ("0.05", "0.2") for seed in (1, 2)]
  assert {(root / path / "started").read_text() for path in tuned} == {"holdout 1\n"}
  assert {(root / path / "started").read_text() for path in steps(root) if path not in tuned} == {"test 1\n"}
  # Two classes with images (accuracies 0.5 and 0.5, or 0.4 and 0.5), a third without.
  record = json.loads((root / "tuning.json").read_text())["gr"]
  better, worse = record["settings"][1], record["settings"][0]
  assert (better["accuracy"], better["standard_error"]) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))
  assert worse["accuracy"] == pytest.approx(0.45)
  assert worse["standard_error"] == pytest.approx(np.std([0.4, 0.5], ddof=1) / np.sqrt(2))
  assert record["chosen"] == record["best"] == {"learning_rate": "0.05"} and record["scenario_seeds"] == [1, 2]
  assert (worse["classes"], worse["classes_left_out"]) == (2, 1)
  assert ("- gr: learning_rate=0.05, chosen on held-out images: 50.00 ± 0.00 % (mean over 2 classes and its standard "
          "error; 1 without held-out images left out; scenario seeds 1, 2), the best of 2 settings") in text


def test_a_choice_waits_for_a_run_that_failed_but_not_for_one_that_diverged(tmp_path, stand_ins, monkeypatch):
  """Killed for its memory, say: a rerun completes it, and may then choose otherwise."""
  root = tmp_path / "all"
  monkeypatch.setenv("LEAVING", "gr/learning_rate=0.05")
  monkeypatch.setenv("LEAVING_CODE", "137")
  text, failures = comparison.compare(request(root, "gr,wa", seeds=1, tune=["learning_rate=0.2,0.05"]))
  assert [line.split(":")[0] for line in failures] == [
      *(f"gr, tuning learning_rate=0.05, scenario seed {seed}" for seed in (1, 2)), "gr"]
  assert "no setting is chosen before" in failures[-1] and "| gr | 0 of 1 |" in text and "| wa | 1 |" in text
  assert set(json.loads((root / "tuning.json").read_text())) == {"wa"} and not (root / "runs" / "gr").exists()
  # The loss of both is not finite.
  monkeypatch.setenv("LEAVING_CODE", "3")
  text, failures = comparison.compare(request(root, "gr,wa", seeds=1, tune=["learning_rate=0.2,0.05"]))
  assert not failures and "- gr: learning_rate=0.2, chosen" in text
  assert "failed and left out: learning_rate=0.05" in text


def test_rows_with_other_numbers_of_tasks_are_noted(tmp_path, stand_ins):
  comparison.compare(request(tmp_path, "gr,wa"))
  path = tmp_path / "runs" / "gr" / "seed-1" / "results.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "tasks_done": 2}))
  text, _ = comparison.compare(request(tmp_path, "gr,wa", stop_after_task=2))
  assert "Numbers of learned tasks differ, so the rows cannot be compared: gr 2 and 5, wa 5; rerun" in text


def test_a_simpler_setting_within_one_standard_error_is_taken_and_the_table_says_so(tmp_path, stand_ins):
  """The config's own rate of 0.2 needs no change; 0.05 is better by 0.05, which is less than a standard error there."""
  root = tmp_path / "all"
  asked = request(root, "gr", seeds=1, tune=["learning_rate=0.2,0.05"])
  comparison.compare(asked)
  # As the stand-in would have it with more spread: accuracies 1 and 0 against 0.9 and 0.
  for rate, right in (("0.05", 10), ("0.2", 9)):
    for seed in (1, 2):
      folder = root / "tuning" / "gr" / f"learning_rate={rate}" / f"scenario-{seed}"
      (folder / "metrics.jsonl").write_text(json.dumps({"kind": "task", "correct": [right, 0, 0]}) + "\n")
  text, _ = comparison.compare(asked)
  assert "- gr: learning_rate=0.2, chosen on held-out images: 45.00 ± 45.00 %" in text
  assert ("; learning_rate=0.05 has 50.00 ± 50.00 %, but within one standard error the simpler setting is taken"
          ) in text


def test_what_the_data_do_not_allow_is_refused_before_anything_is_trained(tmp_path):
  """BiC would hold out the only image of a class. Without stand-ins: a process of its own looks at the data."""
  asked = request(tmp_path, "gr,bic", seeds=1, **{"scenario.imbalance": 100.0, "memory.per_class": 20})
  with pytest.raises(UserError, match="bic, seed 0: method 'bic' holds out 2 images of each class, but class"):
    comparison.compare(asked)
  assert not (tmp_path / "runs").exists()


def test_folders_of_another_comparison_are_refused(tmp_path, stand_ins):
  asked = request(tmp_path, "gr", seeds=1)
  run, = plan.final_runs(asked.entries[0], asked.entries[0].config, 1, tmp_path)
  run.folder.mkdir(parents=True)
  (run.folder / "config.json").write_text(json.dumps(configuration.to_dict(asked.entries[0].config)))
  request(tmp_path, "gr", seeds=1)
  with pytest.raises(UserError, match="seed-0 holds a run with another config:\n  epochs: 30 -> 31\n"):
    request(tmp_path, "gr", seeds=1, epochs=31)
  # What "auto" stood for there is known once the run has begun.
  (run.folder / "start.json").write_text(json.dumps({"precision": "mixed"}))
  request(tmp_path, "gr", seeds=1)
  request(tmp_path, "gr", seeds=1, precision="mixed")
  with pytest.raises(UserError, match="precision: 'mixed' -> 'float32'\n"):
    request(tmp_path, "gr", seeds=1, precision="float32")


def test_processes_for_what_is_missing(tmp_path):
  """Together where all missing seeds follow each other; flags that give every key."""
  base = configuration.check(runs.get_config("digits_lt"))
  entry, = entries.parse("wa:temperature=1", base)
  made = plan.final_runs(entry, entry.config, 3, tmp_path)
  assert [run.folder.name for run in made] == ["seed-0", "seed-1", "seed-2"]
  whole, = plan.make_jobs(FILE, made, together=True)
  assert whole.label == "wa:temperature=1, seeds 0 to 2" and whole.folder == made[0].folder.parent
  assert "--config.replicas=3" in whole.flags and "--config.method_options.temperature=1.0" in whole.flags
  assert len(plan.make_jobs(FILE, made, together=False)) == 3
  made[1].folder.mkdir(parents=True)
  (made[1].folder / "results.json").write_text(json.dumps({"tasks_done": 5}))
  assert [job.label for job in plan.make_jobs(FILE, made, together=True)] == [
      "wa:temperature=1, seed 0", "wa:temperature=1, seed 2"]
  (made[1].folder / "results.json").write_text(json.dumps({"tasks_done": 4}))
  assert len(plan.make_jobs(FILE, made, together=True)) == 1


def test_flags_give_the_config_back(tmp_path):
  """As the command reads them, tuples and None included, whatever the config file says."""
  base = configuration.check(runs.get_config("digits_lt", milestones=(), stop_after_task=2, **{
      "memory.per_class": None, "memory.total": 30}))
  entry, = entries.parse("lucir+lws:lws_scale_rate=0.2:milestones=(4,)", base)
  code = ("import json, sys; from gr_jax import config, flags; flags.parse(sys.argv[:1] + sys.argv[2:]); "
          "print(json.dumps(config.flatten(flags.config())))")
  config_flag, _, *others = plan.flags(FILE, entry.config, tmp_path)
  done = subprocess.run([sys.executable, "-c", code, "", config_flag, *others], cwd=runs.ROOT, text=True,
                        capture_output=True, check=False, env=runs.environment())
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout) == json.loads(json.dumps(configuration.flatten(entry.config)))


def test_replicas_where_they_pay(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
  def together(gpus, resident=True, jobs=1):
    asked = request(tmp_path, "gr,wa", seeds=4, jobs=jobs)
    made = [run for entry in asked.entries for run in plan.final_runs(entry, entry.config, 4, tmp_path)]
    return comparison._together(asked, made, probe.Report(["gpu"] * gpus or ["cpu"], {}, resident))
  assert together(0) and together(1) and together(2)
  # Two processes would leave two of four GPUs without work; and replicas need pictures on the device.
  assert not together(4) and not together(0, resident=False)
  # The same on a CPU whose cores are shared out.
  assert together(0, jobs=2) and not together(0, jobs=3)


def test_time_left():
  # Half of one run in ten seconds; half of it and a whole one are left.
  assert progress.time_left([0.0, 0.0], [0.5, 0.0], [1.0, 1.0], 10.0) == pytest.approx(30.0)
  # What was done before this start gives no speed; a run three times as long takes three times as long.
  assert progress.time_left([1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 3.0], 10.0) == pytest.approx(30.0)
  assert progress.time_left([0.5], [0.5], [1.0], 10.0) is None
  assert progress.time_left([0.0], [1.0], [1.0], 10.0) == 0.0
  assert progress.relative_costs(["a", "a", "b", "c"], [10.0, None, 40.0, None]) == [10.0, 10.0, 40.0, 25.0]
  assert progress.relative_costs(["a"], [None]) == [1.0]


def test_the_progress_line(tmp_path):
  asked = request(tmp_path, "gr", seeds=3)
  made = plan.final_runs(asked.entries[0], asked.entries[0].config, 3, tmp_path)
  line = progress.Line(made, {run.label: 200 for run in made})
  assert line.text(5.0) == "comparison: 0 of 3 runs done; 0:05 spent, time left not known yet"
  for run in made[:2]:
    run.folder.mkdir(parents=True)
  (made[0].folder / "results.json").write_text(json.dumps({"tasks_done": 5, "seconds": 8.0}))
  (made[1].folder / "metrics.jsonl").write_text(
      '{"kind": "epoch", "global_step": 90}\n{"kind": "epoch", "global_step": 100}\n{"kind": "ep')
  assert line.text(10.0) == ("comparison: 1 of 3 runs done, 1 running (gr, seed 1: 50 %); 0:10 spent, about 0:10 left")
