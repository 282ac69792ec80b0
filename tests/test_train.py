"""Whole runs on the digits: what they write, resuming, evaluating, compiling, refusing."""

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gr_jax
from gr_jax import config as configuration
from gr_jax import evaluate, origin, train
from gr_jax.data.sources import digits
from gr_jax.devices import convolution_library, parallel, processor
from gr_jax.errors import UserError
from gr_jax.runs import console, events, loop
from gr_jax.runs import workdir as workdirs
from gr_jax.scenario.plan import rows_of
from gr_jax.training import evaluation, pictures, program, programs
from gr_jax.training import experiment as experiments


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run of three short tasks: (workdir, what train returned)."""
  workdir = tmp_path_factory.mktemp("finished") / "run"
  return workdir, train.train(runs.short(tensorboard=True), workdir)


def test_results_have_every_part(finished):
  workdir, returned = finished
  results = runs.results(workdir)
  assert results == json.loads(json.dumps(returned))
  assert (results["method"], results["addons"], results["seed"]) == ("gr", "", 0) and results["tasks_done"] == 3
  assert results["scenario_digest"] == json.loads((workdir / "scenario.json").read_text())["digest"]
  assert {"jax", "flax", "optax", "gr_jax"} <= set(results["versions"])
  assert results["versions"]["convolutions"] == convolution_library.in_use()
  assert results["processor"] == processor.describe() and results["versions"].get("commit") == origin.commit()
  for name in ("accuracy_matrix", "accuracy_matrix_task_aware"):
    matrix = results[name]
    assert [len(row) for row in matrix] == [3, 3, 3]
    assert all((matrix[t][u] is None) == (u > t) for t in range(3) for u in range(3))
  for name in ("task_accuracies", "task_mean_accuracies", "forgetting", "backward_transfer"):
    assert len(results[name]) == 3
  assert results["forgetting"][0] is None and results["backward_transfer"][0] is None
  # Tasks of 4, 3 and 3 classes with 50 test images each: ACC_t weighs by images, the task mean does not.
  matrix = np.asarray([[np.nan if a is None else a for a in row] for row in results["accuracy_matrix"]])
  assert results["task_accuracies"][2] == pytest.approx((4 * matrix[2, 0] + 3 * matrix[2, 1:].sum()) / 10)
  assert results["task_mean_accuracies"][2] == pytest.approx(matrix[2].mean())
  assert results["average_incremental_accuracy"] == pytest.approx(np.mean(results["task_accuracies"]))
  assert results["last_accuracy"] == results["task_accuracies"][2]
  groups = [group for group in results["many_medium_few"].values() if group]
  assert sum(group["classes"] for group in groups) == 10 and sum(g["images"] for g in groups) == 500


def test_learning_happens(finished):
  _, results = finished
  # Four classes, and three passes over them: far above the 25 % of guessing.
  assert results["task_accuracies"][0] > 0.4
  assert results["accuracy_matrix_task_aware"][2][2] > 0.4


def test_metrics_rows(finished):
  workdir, results = finished
  epochs, tasks = runs.rows(workdir, "epoch"), runs.rows(workdir, "task")
  assert [(row["task"], row["epoch"]) for row in epochs] == [(t, e) for t in (1, 2, 3) for e in (1, 2, 3)]
  steps = [row["global_step"] for row in epochs]
  assert steps == sorted(steps) and [row["global_step"] for row in tasks] == steps[2::3]
  for row in epochs:
    assert row["loss"] == pytest.approx(row["cross_entropy"] + row["distillation"])
    assert row["learning_rate"] == pytest.approx(0.01 if row["epoch"] == 3 else 0.1)
    assert 0 < row["alpha"] <= 1 and 0 < row["r_old"] <= 1 and 0 < row["r_new"] <= 1
    assert (row["beta"] == 0 and row["distillation"] == 0) == (row["task"] == 1)
  for number, row in enumerate(tasks):
    seen = (4, 7, 10)[number]
    for name in ("gradient_norms", "phi", "alpha", "column", "classifier_norms", "correct", "exemplars"):
      assert len(row[name]) == seen, name
    assert row["exemplars"] == [5] * seen
    assert row["task_accuracies"] == results["task_accuracies"][number] == sum(row["correct"]) / (50 * seen)


def test_event_files_hold_what_metrics_jsonl_holds(finished):
  workdir, _ = finished
  board = EventAccumulator(str(workdir / events.FOLDER), size_guidance={"scalars": 0})
  board.Reload()
  rows = [(row["global_step"], events.scalars(row)) for row in runs.rows(workdir)]
  for tag in board.Tags()["scalars"]:
    assert [(point.step, point.value) for point in board.Scalars(tag)] == [
        (step, pytest.approx(points[tag])) for step, points in rows if tag in points], tag
  assert set(board.Tags()["scalars"]) == {tag for _, points in rows for tag in points} > {
      "train/loss", "train/alpha", "after_task/accuracy", "accuracy_of_task/3"}


def test_config_and_scenario_are_saved(finished):
  workdir, _ = finished
  saved = json.loads((workdir / "config.json").read_text())
  assert saved == json.loads(json.dumps(configuration.to_dict(configuration.check(runs.short(tensorboard=True)))))
  assert saved["method_options"]["distillation"] == "dakd"
  drawn = json.loads((workdir / "scenario.json").read_text())
  assert sum(drawn["counts"]) == 438 and sum(drawn["holdout_counts"]) == 48
  assert [len(ids) for ids in drawn["train_ids"]] == drawn["counts"]
  assert [task["images_present"] for task in drawn["tasks"]][1] == drawn["tasks"][1]["new_images"] + 20


def test_exemplars_are_training_images_of_their_class_without_repetition(finished):
  workdir, _ = finished
  counts = json.loads((workdir / "scenario.json").read_text())["counts"]
  stops = np.cumsum(counts)
  _, record = runs.newest(workdir)
  for j, rows in enumerate(record["exemplars"]):
    assert len(set(rows)) == 5 and all(stops[j] - counts[j] <= row < stops[j] for row in rows)


def test_phi_column_and_momentum_are_in_a_checkpoint_inside_a_stage_and_in_no_other(finished):
  # Both begin anew with the next stage.
  records = runs.records(finished[0])
  inside, between = ([record["digests"]["training"] for record in records.values() if bool(record["epoch"]) is epochs]
                     for epochs in (True, False))
  assert inside and len(between) == 3
  for digests in inside:
    assert any("phi" in path for path in digests) and any("column" in path for path in digests)
    assert any("trace" in path for path in digests)
  assert [list(digests) for digests in between] == [["['step']"]] * 3


def test_a_finished_run_is_not_trained_again(finished, capsys):
  workdir, returned = finished
  before = (workdir / "metrics.jsonl").read_bytes()
  assert train.train(runs.short(), workdir) == json.loads(json.dumps(returned))
  assert (workdir / "metrics.jsonl").read_bytes() == before
  assert "nothing to train" in capsys.readouterr().out


@pytest.mark.parametrize("task", [None, 1, 2])
def test_evaluation_equals_the_run(finished, task, capsys):
  workdir, results = finished
  numbers = evaluate.evaluate(workdir, task)
  number = (task or 3) - 1
  for name in ("task_accuracies", "task_mean_accuracies", "forgetting", "backward_transfer", "accuracy_matrix",
               "accuracy_matrix_task_aware"):
    assert numbers[name][number] == results[name][number], name
  out = capsys.readouterr().out
  assert console.task_line(number, results) in out and "counts are equal to those of the run" in out


@pytest.mark.parametrize("devices", ["1", "2", "3"])
def test_evaluation_counts_are_equal_on_any_number_of_devices(finished, devices):
  workdir, results = finished
  # Three devices cannot share the batch of training; evaluating does not need it.
  done = runs.run("evaluate", f"--workdir={workdir}", "--task=3", JAX_NUM_CPU_DEVICES=devices)
  assert done.returncode == 0, done.stderr
  assert console.task_line(2, results) in done.stdout and "counts are equal to those of the run" in done.stdout


def test_evaluation_of_the_held_out_images(finished):
  workdir, _ = finished
  numbers = evaluate.evaluate(workdir, split="holdout")
  held = json.loads((workdir / "scenario.json").read_text())["holdout_counts"]
  assert numbers["task"] == 3 and (numbers["accuracy"] * sum(held)) == pytest.approx(
      round(numbers["accuracy"] * sum(held)))
  assert len(numbers["by_task"]) == len(numbers["by_task_aware"]) == 3
  # The mean over classes, from the predictions for each picture.
  source, model = digits.load(), gr_jax.load(workdir)
  accuracies = [np.mean([name == str(source.train.labels[rows[0]]) for name in model(
      [source.train.image(row) for row in rows]).names]) for rows in experiments.load(runs.short()).scenario.holdout
      if rows]
  assert numbers["classes"] == len(accuracies) == np.count_nonzero(held)
  assert numbers["class_mean"] == pytest.approx(np.mean(accuracies))
  assert numbers["class_error"] == pytest.approx(np.std(accuracies, ddof=1) / np.sqrt(len(accuracies)))


@pytest.mark.parametrize("task", [0, 4])
def test_evaluation_of_a_task_that_is_not_there(finished, task):
  with pytest.raises(UserError, match=f"--task is {task}; .* after task 1, 2, 3"):
    evaluate.evaluate(finished[0], task)


def test_evaluation_of_a_folder_without_a_run(tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    evaluate.evaluate(tmp_path)


def test_stopping_after_a_task_and_going_on_equals_an_unbroken_run(finished, tmp_path):
  workdir, unbroken = finished
  part = train.train(runs.short(stop_after_task=1), tmp_path / "run")
  assert part["tasks_done"] == 1 and part["task_accuracies"][1:] == [None, None]
  assert part["task_accuracies"][0] == unbroken["task_accuracies"][0]
  whole = train.train(runs.short(), tmp_path / "run")
  assert runs.timeless(whole) == runs.timeless(unbroken)
  runs.assert_equal(workdir, tmp_path / "run")


_COUNT = """
import jax, sys
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None)
import runs
from gr_jax import train
train.train(runs.short(**{"scenario.num_tasks": int(sys.argv[1]), "epochs": 2, "milestones": ()}), sys.argv[2])
print("compiled", len(compiled))
"""


def test_a_third_task_compiles_nothing(tmp_path, monkeypatch):
  compiled, before = [], []
  # Of its own, traced anew: what this file's runs share could hide a program of the third task.
  monkeypatch.setattr(programs, "make_programs", programs.make_programs.__wrapped__)
  monkeypatch.setattr(evaluation, "make_evaluator", evaluation.make_evaluator.__wrapped__)
  run_stage = loop.run_stage

  def counting(*args):
    before.append(len(compiled))
    return run_stage(*args)

  def count(name, *_, **__):
    compiled.extend([name] * name.endswith("backend_compile_duration"))

  monkeypatch.setattr(loop, "run_stage", counting)
  # Programs that come from the compilation cache count too.
  jax.monitoring.register_event_duration_secs_listener(count)
  train.train(runs.short(), tmp_path)
  first, second, third = before
  assert first < second < third == len(compiled), before


@pytest.mark.slow
def test_ten_tasks_compile_no_more_than_two(tmp_path):
  counts = {}
  for tasks in (2, 10):
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, str(tasks), str(tmp_path / str(tasks))], text=True, capture_output=True,
        # Without the suite's cache: what is fetched from it might not be counted.
        env=runs.environment(PYTHONPATH=f"{runs.ROOT}:{runs.ROOT / 'tests'}", JAX_COMPILATION_CACHE_DIR=""),
        timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    counts[tasks] = int(done.stdout.split()[-1])
  assert counts[10] <= counts[2], counts


def test_another_config_is_refused_with_the_difference(finished):
  with pytest.raises(UserError, match=r"another config:\n  epochs: 3 -> 4\n  memory.per_class: 5 -> 6\n"):
    train.train(runs.short(epochs=4, **{"memory.per_class": 6}), finished[0])


def test_where_things_are_may_change(finished):
  train.train(runs.short(checkpoint_every_epochs=2, steps_per_call=7), finished[0])


def test_other_images_are_refused(finished, tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  for name in ("config.json", "scenario.json", "metrics.jsonl"):
    (workdir / name).write_text((finished[0] / name).read_text())
  drawn = json.loads((workdir / "scenario.json").read_text())
  (workdir / "scenario.json").write_text(json.dumps({**drawn, "digest": "0" * 64}))
  with pytest.raises(UserError, match="a run on other images"):
    train.train(runs.short(), workdir)


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    train.train(runs.short(), tmp_path / "file" / "run")


def test_a_checkpoint_that_cannot_be_read(tmp_path, capsys):
  workdir = tmp_path / "run"
  # Saved at the ends of tasks alone.
  train.train(runs.short(checkpoint_every_epochs=10, stop_after_task=1), workdir)
  newest = max((workdir / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
  for file in newest.rglob("*"):
    if file.is_file() and "model" in file.parts and file.stat().st_size > 1000:
      file.write_bytes(file.read_bytes()[:100])
  # Evaluating changes nothing in the folder; training sets the checkpoint aside and begins anew, to the same end.
  with pytest.raises(UserError, match="cannot be read"):
    evaluate.evaluate(workdir)
  assert newest.is_dir()
  mended = train.train(runs.short(checkpoint_every_epochs=10), workdir)
  assert f"warning: checkpoint {newest.name} is damaged" in capsys.readouterr().out
  assert (workdir / "damaged" / newest.name).is_dir()
  unbroken = train.train(runs.short(checkpoint_every_epochs=10), tmp_path / "unbroken")
  assert runs.timeless(mended) == runs.timeless(unbroken)
  runs.assert_equal(tmp_path / "unbroken", workdir)


def test_diverging_training_stops_and_names_the_place(tmp_path):
  """The first step's loss is finite, what it makes of the weights is not: nothing of it is ever saved."""
  done = runs.run("main", *runs.SHORT, f"--workdir={tmp_path / 'run'}", "--config.learning_rate=1e30",
                  "--config.weight_decay=1e30")
  assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
  assert re.search(r"diverged: .* in task 1, epoch 1, step [23] .*params.* became non-finite in the previous step; the "
                   r"last checkpoint is kept", done.stderr), done.stderr
  assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("changes", [
    {"memory.per_class": 0}, {"memory.selection": "random"},
    {"method_options.reweighting": "none", "method_options.prior": False, "method_options.distillation": "none"},
    {"scenario.num_tasks": 1, "scenario.kind": "natural", "scenario.order": "seeded"}])
def test_other_settings_run_to_their_end(tmp_path, changes):
  results = train.train(runs.short(**changes), tmp_path / "run")
  assert results["tasks_done"] == changes.get("scenario.num_tasks", 3)
  assert results["task_accuracies"][-1] is not None


def test_seed_changes_the_run_but_not_the_scenario(finished, tmp_path):
  other = train.train(runs.short(seed=1, stop_after_task=1), tmp_path / "run")
  assert other["scenario_digest"] == finished[1]["scenario_digest"]
  rows, others = runs.rows(finished[0], "epoch"), runs.rows(tmp_path / "run", "epoch")
  assert rows[0]["loss"] != others[0]["loss"]


def compiled(experiment):
  return programs.make_programs(experiment, pictures.load(experiment, "train", lambda items, **_: items))


def test_the_teacher_is_a_copy_of_the_previous_model():
  experiment = experiments.load(runs.short())
  made = compiled(experiment)
  state, context = made.init(experiment.root), experiment.plans[1].stages[0].context
  params, teacher = made.begin_task(state.params, state.batch_stats, context, experiment.root)
  jax.tree.map(np.testing.assert_array_equal, teacher["params"], state.params)
  jax.tree.map(np.testing.assert_array_equal, teacher["batch_stats"], state.batch_stats)
  # Neither what the next step overwrites, nor the running statistics of the state that it comes from.
  for ours, theirs in zip(jax.tree.leaves((params["backbone"], state.batch_stats)),
                          jax.tree.leaves((teacher["params"]["backbone"], teacher["batch_stats"])), strict=True):
    assert _buffers(ours).isdisjoint(_buffers(theirs))
  new = context.new
  kernel = np.asarray(params["classifier"]["kernel"])
  assert (kernel[:, ~new] == 0).all() and (np.abs(kernel[:, new]) <= 64 ** -0.5).all()
  assert (kernel[:, new] != 0).all()


def _buffers(array):
  return {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}


def test_replicas_equal_the_same_seeds_alone(tmp_path):
  both = train.train(runs.short(replicas=2, seed=3), tmp_path / "both")
  assert both["seeds"] == [3, 4] and len(both["replicas"]) == 2
  for number, seed in enumerate((3, 4)):
    # Replicas take a device each, so the run alone has one device too.
    done = runs.run("main", *runs.SHORT, f"--workdir={tmp_path / str(seed)}", f"--config.seed={seed}")
    assert done.returncode == 0, done.stderr
    alone, replica = runs.rows(tmp_path / str(seed), "epoch"), runs.rows(tmp_path / f"both/seed-{seed}", "epoch")
    for ours, theirs in zip(alone, replica, strict=True):
      # Rounding differs, and later a ReLU may change sides (with AVX2, beta differed by 5e-4). Seeds differ by 4 %.
      rel = 1e-4 if ours["task"] == 1 else 1e-2
      for name in ("loss", "alpha", "r_old", "r_new", "beta"):
        assert ours[name] == pytest.approx(theirs[name], rel=rel), name
    assert both["replicas"][number]["task_accuracies"] == pytest.approx(
        runs.results(tmp_path / str(seed))["task_accuracies"], abs=0.01)
  values = [one["last_accuracy"] for one in both["replicas"]]
  assert both["last_accuracy"] == pytest.approx(np.mean(values))
  assert both["standard_deviation"]["last_accuracy"] == pytest.approx(np.std(values, ddof=1))
  assert both["standard_deviation"]["accuracy_matrix"][0][1] is None
  # Each is a run of its own: it can be evaluated, and goes on alone.
  numbers = evaluate.evaluate(tmp_path / "both" / "seed-4")
  assert numbers["last_accuracy"] == values[1]
  (tmp_path / "both" / "results.json").unlink()
  (tmp_path / "both" / "seed-4" / "results.json").unlink()
  again = train.train(runs.short(replicas=2, seed=3), tmp_path / "both")
  assert again["standard_deviation"]["last_accuracy"] == both["standard_deviation"]["last_accuracy"]


def test_killed_before_the_summary(finished, tmp_path):
  """All checkpoints are there, results.json is not: nothing is trained, the summary is written."""
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  (workdir / "results.json").unlink()
  before = (workdir / "metrics.jsonl").read_text()
  assert runs.timeless(train.train(runs.short(), workdir)) == runs.timeless(finished[1])
  assert (workdir / "metrics.jsonl").read_text() == before


def test_a_second_job_is_refused(finished):
  with workdirs.locked(finished[0]), pytest.raises(UserError, match="another job is using"):
    train.train(runs.short(), finished[0])


def test_a_run_that_began_while_the_data_were_loaded_is_not_changed(finished, tmp_path, monkeypatch):
  load = experiments.load

  def slowly(config, **options):
    experiment = load(config, **options)
    shutil.copytree(finished[0], tmp_path / "run", dirs_exist_ok=True)
    return experiment

  monkeypatch.setattr(experiments, "load", slowly)
  with pytest.raises(UserError, match=r"another config:\n  learning_rate: 0.1 -> 0.5"):
    train.train(runs.short(learning_rate=0.5), tmp_path / "run")


def test_holdout_of_a_run_without_one():
  with pytest.raises(UserError, match="held out no images"):
    pictures.load(experiments.load(runs.short(validation_fraction=0.0)), "holdout", lambda items, **_: items)


def test_replicas_are_evaluated_one_by_one(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(runs.short(replicas=2, seed=3).to_dict()))
  with pytest.raises(UserError, match="holds 2 replicas; choose one of them: .*seed-3"):
    evaluate.evaluate(tmp_path)


def test_a_damaged_config_is_named(finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / "run")
  (tmp_path / "run" / "config.json").write_text("{")
  for attempt in (lambda: train.train(runs.short(), tmp_path / "run"), lambda: evaluate.evaluate(tmp_path / "run")):
    with pytest.raises(UserError, match="config.json cannot be read"):
      attempt()


def test_a_call_of_the_train_program_moves_nothing_between_host_and_device():
  experiment = experiments.load(runs.short())
  made = compiled(experiment)
  plan, (stage,), (run,) = experiment.plans[1].stages[0], experiment.method.stages, made.stages
  state = made.init(experiment.root)
  params, teacher = made.begin_task(state.params, state.batch_stats, plan.context, experiment.root)
  rows = np.concatenate(rows_of(stage, plan, experiment.scenario.counts, [np.arange(5, dtype=np.int32)] * 4, 0,
                                seed=0))
  state, _ = run.begin(state.replace(params=params).between_stages(), {}, plan.context, rows, experiment.root)
  teacher = made.fold_teacher(teacher)
  context, window = parallel.replicate(
      (plan.context, program.Window(programs.pool(rows, experiment.capacity), experiment.root, np.int32(0), np.int32(0),
                                    np.int32(2))), experiment.devices)
  # The first call places constants; from then on the device is on its own.
  state, _ = run.run(state, teacher, context, made.data, window)
  with jax.transfer_guard("disallow"):
    state, metrics = run.run(state, teacher, context, made.data, window)
    jax.block_until_ready(metrics)
  assert int(state.step) == 4
