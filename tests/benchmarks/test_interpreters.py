"""Interpreters are checked before anything starts; sides answer over pipes; the parents need no JAX or PyTorch."""

import json
import subprocess
import sys
import time

import against_torch
import interpreters
import pytest
import sides
import whole_run

# Stands in for sides.py: prints noise, as libraries do, and answers in its own time.
FAKE_SIDE = """
import sys
sys.path.insert(0, {folder!r})
import interpreters

def answer(question):
  print("noise that is no answer")
  if question == {{"run": "death"}}:
    sys.exit(7)
  if "side" in question:
    slow = question["options"]["slow"] if question["side"] == "slow" else 1.0
    answer.seconds = slow
    return {{"about": {{"python": "3", "jax": "1"}}, "first call": {{"plain": 0.0}}, "failed": {{"augmented": "no"}}}}
  return {{"seconds": answer.seconds, "idle": 0.001}}

interpreters.serve(answer)
"""


@pytest.fixture
def fake_side(tmp_path):
  path = tmp_path / "fake.py"
  path.write_text(FAKE_SIDE.format(folder=str(interpreters.FOLDER)))
  return path


@pytest.fixture
def bare_python(tmp_path):
  """An interpreter without any package."""
  path = tmp_path / "bare-python"
  path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
  path.chmod(0o755)
  return str(path)


@pytest.mark.parametrize("framework, package", [("jax", "jax"), ("torch", "torch")])
def test_interpreter_without_the_package_is_named_with_the_remedy(bare_python, framework, package):
  start = time.perf_counter()
  with pytest.raises(SystemExit) as ended:
    interpreters.check(framework, bare_python, [package])
  assert time.perf_counter() - start < 10
  message = str(ended.value)
  assert f"--{framework}-python" in message and bare_python in message and "lacks " + package in message
  assert "pip install" in message and (package != "torch" or "torch>=" in message)


@pytest.mark.parametrize("python, said", [("/no/such/python", "no such program"), ("false", "does not work")])
def test_what_is_no_interpreter_is_refused(python, said):
  with pytest.raises(SystemExit, match=f"--torch-python is {python}.*{said}"):
    interpreters.check("torch", python, ["torch"])


def test_an_interpreter_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
  path = tmp_path / "asleep"
  path.write_text("#!/bin/sh\nexec sleep 60\n")
  path.chmod(0o755)
  monkeypatch.setattr(interpreters, "_PATIENCE", 0.2)
  with pytest.raises(SystemExit, match="--jax-python is .*TimeoutExpired"):
    interpreters.check("jax", str(path), ["jax"])


def test_a_good_interpreter_tells_its_versions():
  path, versions = interpreters.check("jax", sys.executable, ["jax", "ml_collections"])
  assert path == sys.executable
  assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
  assert versions["jax"] and versions["ml_collections"]


def test_gr_jax_is_that_of_this_checkout(tmp_path):
  printed = subprocess.run([sys.executable, "-c", "import gr_jax; print(gr_jax.__file__)"], cwd=tmp_path, text=True,
                           env=interpreters.environment({}), capture_output=True, check=True).stdout
  assert printed.strip() == str(interpreters.ROOT / "gr_jax/__init__.py")


def test_parents_import_neither_framework():
  code = ("import sys; sys.path.insert(0, '.'); import against_torch, whole_run; against_torch.sides.make_sides("
          "against_torch.parse_options(['--bfloat16'])); print(sorted({'jax', 'torch', 'gr_jax'} & set(sys.modules)))")
  printed = subprocess.run([sys.executable, "-c", code], cwd=interpreters.FOLDER, text=True, capture_output=True,
                           check=True).stdout
  assert printed.strip() == "[]"


def test_a_side_answers_over_its_pipe(fake_side):
  with interpreters.Worker("fake", sys.executable, fake_side, {}) as worker:
    assert worker.ask({"side": "slow", "options": {"slow": 3.0}})["failed"] == {"augmented": "no"}
    assert worker.ask({"run": "plain"}) == {"seconds": 3.0, "idle": 0.001}


def test_a_side_that_dies_is_named_with_its_code(fake_side):
  with interpreters.Worker("fake", sys.executable, fake_side, {}) as worker:
    with pytest.raises(RuntimeError, match="'fake' ended with code 7"):
      worker.ask({"run": "death"})
    with pytest.raises(RuntimeError, match="'fake' ended with code 7"):
      worker.ask({"run": "plain"})


def test_rounds_and_ratios(fake_side, monkeypatch):
  """The whole parent with sides whose seconds are known."""
  monkeypatch.setattr(against_torch, "_PAUSE", 0)
  options = against_torch.parse_options(["--steps=2", "--rounds=3"])
  with interpreters.Worker("a", sys.executable, fake_side, {}) as ours, \
      interpreters.Worker("b", sys.executable, fake_side, {}) as theirs:
    workers = {sides.OURS: ours, "slow": theirs}
    answers = {name: worker.ask({"side": name, "options": {"slow": 3.0}}) for name, worker in workers.items()}
    seconds, idle = against_torch.take_turns(workers, answers, options)
  assert seconds == {(sides.OURS, "plain"): [0.5] * 3, ("slow", "plain"): [1.5] * 3}
  assert idle == {sides.OURS: 0.001, "slow": 0.001}
  assert " 3.00 (3.00-3.00)" in against_torch.row("slow", seconds["slow", "plain"], seconds[sides.OURS, "plain"], 128)


def measured_steps(options):
  """What `measure` returns, with made-up seconds: bfloat16 takes half, PyTorch twice."""
  seconds = {}
  for name, side in sides.make_sides(options).items():
    seconds[name] = [(1.0 if side.framework == "jax" else 2.0) * (0.25 if side.bfloat16 else 1.0)]
  about = {name: {"about": {"python": "3.13", side.framework: "1.0", "device": "d"}, "first call": {}, "failed": {}}
           for name, side in sides.make_sides(options).items()}
  return {"options": vars(options), "date": "today", "cores": 2, "load_before": 0.0, "sides": about,
          "idle_cpu_seconds": dict.fromkeys(about, 0.0),
          "seconds_per_step": {sides.PLAIN: seconds, sides.AUGMENTED: dict(seconds), sides.CHEAP: {
              name: times for name, times in seconds.items() if name.startswith(sides.OURS)}}}


@pytest.mark.parametrize("bfloat16", [False, True])
def test_each_precision_has_tables_of_its_own(bfloat16):
  options = against_torch.parse_options(["--bfloat16"] if bfloat16 else [])
  text = against_torch.report(measured_steps(options))
  tables = text.split("\n\n")
  plain = [table for table in tables if "without augmentation" in table]
  assert [table.split(",")[0] for table in plain] == (["float32", "bfloat16"] if bfloat16 else ["float32"])
  for table in plain:
    rows = table.splitlines()[2:]
    assert len(rows) == 4 and all(("bfloat16" in row) == table.startswith("bfloat16") for row in rows)
    # Against gr_jax in the same precision, PyTorch takes twice as long; across them it would be half.
    assert "1.00 (1.00-1.00)" in rows[0] and all("2.00 (2.00-2.00)" in row for row in rows[1:])
  assert "gr_jax: python 3.13, jax 1.0" in text and "PyTorch: python 3.13, torch 1.0" in text
  json.dumps(measured_steps(options))


def test_a_failed_side_leaves_a_hole_not_a_crash():
  options = against_torch.parse_options(["--bfloat16"])
  measured = measured_steps(options)
  for program in measured["seconds_per_step"].values():
    del program[sides.OURS + sides.BFLOAT16]
  measured["sides"][sides.OURS + sides.BFLOAT16]["failed"] = {sides.PLAIN: "Error: no such type"}
  text = against_torch.report(measured)
  assert "failed: Error: no such type" in text and "no ratio: gr_jax, bfloat16 failed" in text


# ------------------------------------------------------------------------------------------------- the whole run


def test_parts_of_a_run_add_up(tmp_path):
  rows = [{"kind": "epoch", "seconds": 10.0}, {"kind": "epoch", "seconds": 15.0}, {"kind": "task", "seconds": 17.0},
          {"kind": "epoch", "seconds": 20.0}, {"kind": "task", "seconds": 24.0}]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "results.json").write_text(json.dumps({
      "task_accuracies": [0.5, 0.4], "scenario_digest": "x", "devices": "1 x cpu", "precision": "float32",
      "processor": "a name, 2 cores", "versions": {"commit": "f00"}}))
  parts, entry = whole_run.jax_results(tmp_path, ["words", "precision: float32; convolutions: oneDNN"])
  assert parts == {whole_run.TRAINING: 18.0, whole_run.LOOKING: 6.0}
  assert entry["computation"] == "precision: float32; convolutions: oneDNN"
  assert (entry["processor"], entry["commit"]) == ("a name, 2 cores", "f00")


def test_both_sides_are_given_the_same_settings(tmp_path):
  options = whole_run.parse_options(["--epochs=4", "--milestones=2,3", "--precision=bfloat16", "--data_dir=~/data"])
  ours = whole_run.jax_command(options, tmp_path, tmp_path / "0")
  theirs = whole_run.torch_command(options, tmp_path, tmp_path / "1")
  assert {"--config.epochs=4", "--config.milestones=(2, 3,)", "--config.precision=bfloat16"} <= set(ours)
  assert {"--epochs=4", "--milestones=2,3", "--precision=bfloat16"} <= set(theirs)
  assert options.data_dir.endswith("/data") and options.data_dir.startswith("/")
  assert "--config.milestones=()" in whole_run.jax_command(whole_run.parse_options([]), tmp_path, tmp_path)


def test_a_failed_run_shows_its_last_lines():
  options = whole_run.parse_options([])
  command = [sys.executable, "-c", "import sys; print('why it failed'); sys.exit(3)"]
  with pytest.raises(SystemExit, match="(?s)why it failed.*the side ended with code 3"):
    whole_run.timed("the side", command, options)


def test_report_of_whole_runs():
  side = {"parts": {whole_run.TRAINING: 60.0, whole_run.LOOKING: 20.0, whole_run.REST: 20.0}, "load_before": 0.1,
          "task_accuracies": [0.2, 0.125], "device": "d", "versions": {"python": "3.13", "jax": "1"}}
  measured = {"options": vars(whole_run.parse_options([])), "date": "today", "cores": 2, "sides": {
      whole_run.FIRST: {**side, "seconds": 100.0, "computation": "precision: float32"},
      whole_run.SECOND: {**side, "seconds": 80.0},
      whole_run.RELEASED: {**side, "seconds": 200.0, "workers": 0, "own_clock": {"training": 60.0}}},
      "ratios": {whole_run.FIRST: 2.0, whole_run.SECOND: 2.5}}
  text = whole_run.report(measured)
  assert "2.00 with an empty compilation cache, 2.50 with a filled one" in text and "20.00  12.50" in text
