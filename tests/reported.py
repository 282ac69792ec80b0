"""Files of runs as a report reads them, made up in a moment: nothing is trained."""

import json

import numpy as np
import runs

from gr_jax import calibration
from gr_jax.runs import journal, results
from gr_jax.training.evaluation import GROUPS, VARIANTS

NAMES = ("cat", "<b>dog</b>", "\"owl\" & 'co'", "Käfer", "$x$", "鳥", "frog")
TASKS = ((0, 1, 2), (3, 4), (5, 6))
COUNTS = (300, 50, 12, 120, 9, 40, 15)


def run(folder, *, method="gr", seed=0, done=3, digest="a" * 64, recorded=True, calibrated=True, **changes):
  """Writes the workdir of a run of three tasks, of which the first `done` are finished; returns it."""
  rng = np.random.default_rng((seed, len(method)))
  config = json.loads(json.dumps(runs.get_config("digits_lt", **{
      "method": method, "seed": seed, "scenario.num_tasks": 3, "epochs": 2, "milestones": (), **changes}).to_dict()))
  config["method_options"] = {"weight": 1.0} if method == "lwf" else {}
  folder.mkdir(parents=True, exist_ok=True)
  write(folder / "config.json", config)
  write(folder / "scenario.json", {
      "digest": digest, "dataset": "digits", "class_order": list(range(7)), "class_names": list(NAMES),
      "counts": list(COUNTS), "holdout_counts": [count // 10 for count in COUNTS],
      "tasks": [{"classes": list(classes)} for classes in TASKS]})
  versions = {"python": "3.13.0", "jaxlib": "0.12.0", "commit": "f00d with changes"}
  write(folder / "start.json", {"precision": "mixed", "platform": "cpu", "starts": [
      {"date": "2026-11-22", "versions": versions, "devices": "1 x cpu", "processor": "A Processor, 2 cores"}]})
  rows, step, matrix = [], 0, [[None] * 3 for _ in range(3)]
  for task in range(1, done + 2 if done < 3 else 4):
    for epoch in (1, 2):
      step += 5
      rows.append({"kind": "epoch", "task": task, "epoch": epoch, "stage": "train", "global_step": step,
                   "loss": 2.0 / step, "cross_entropy": 1.5 / step, "distillation": 0.5 / step,
                   "learning_rate": 0.1, **({"alpha": 0.5, "r_old": 1.0, "r_new": 0.8, "beta": 0.3}
                                            if method == "gr" else {}), "seconds": 1.0, "start": 1})
    if task > done:
      break
    matrix[task - 1][:task] = rng.uniform(0.5, 1, task).tolist()
    row = task_row(task, matrix, method, rng)
    if recorded:
      figures, arrays = evaluation(task, rng, calibrated)
      row |= figures
      journal.write_arrays(results.arrays_file(folder, task), arrays)
    rows.append({**row, "global_step": step, "seconds": 2.0, "start": 1})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  if done == 3:
    write(folder / "results.json", {"tasks_done": 3, "task_accuracies": [sum(row[:t + 1]) / (t + 1)
                                                                         for t, row in enumerate(matrix)]})
  return folder


def task_row(task, matrix, method, rng):
  seen = TASKS[task - 1][-1] + 1
  accuracies = matrix[task - 1]
  return {
      "kind": "task", "task": task, "task_accuracies": sum(accuracies[:task]) / task,
      "forgetting": None if task == 1 else 0.05, "accuracy_matrix": list(accuracies),
      "accuracy_matrix_task_aware": [value and (1 + value) / 2 for value in accuracies],
      "many_medium_few": {name: {"accuracy": value, "classes": 1, "images": 10}
                          for name, value in (("many", 0.9), ("medium", 0.7), ("few", 0.4))},
      **({"gradient_norms": rng.uniform(0.1, 1, seen).tolist()} if method == "gr" else {}),
      "classifier_norms": rng.uniform(0.5, 1, seen).tolist(), "exemplars": [5] * seen}


def evaluation(task, rng, calibrated):
  """(figures, arrays) of made-up predictions."""
  seen, images = TASKS[task - 1][-1] + 1, 60
  variants = VARIANTS if calibrated else VARIANTS[:1]
  labels, confidence = rng.integers(0, seen, images), rng.uniform(0.3, 1, images)
  correct = rng.uniform(size=images) < confidence * 0.8
  bins = np.zeros((seen, calibration.BINS, 3))
  bins[:, -1] = images, 5, 5
  one = calibration.figures({"confidence": confidence, "nll": 1 - confidence, "brier": 1 - confidence}, correct, bins)
  groups = {name: None if name == "old" and task == 1 else one for name in GROUPS}
  collapse = {"nc1": 1.0 / task, "nc2": {which: {"norms": 0.1, "cosines": 0.2, "angle": 0.3}
                                         for which in ("means", "classifier")},
              "nc3": 0.5, "nc4": 0.1, "classes": seen, "images": images}
  confusion = np.zeros((seen, seen), np.int32)
  np.add.at(confusion, (labels, np.where(correct, labels, rng.integers(0, seen, images))), 1)
  reliability = np.tile(calibration.reliability_bins(confidence, correct), (len(variants), len(GROUPS), 1, 1))
  fitted = {"images": 20, "classes": seen, "one": 1.3, "old": None if task == 1 else 1.2, "new": 1.5}
  figures = {"calibration": {"temperatures": fitted if calibrated else None, **dict.fromkeys(VARIANTS), **{
      name: groups for name in variants}},
             "neural_collapse": {name: None if groups[name] is None else collapse for name in GROUPS}}
  return figures, {"confusion": confusion, "reliability": reliability, "variants": np.asarray(variants),
                   "groups": np.asarray(GROUPS), "class_bins": np.tile(bins, (len(variants), 1, 1, 1))}


def write(path, content):
  path.write_text(json.dumps(content))
