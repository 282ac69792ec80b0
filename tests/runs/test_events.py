"""Event files hold what metrics.jsonl holds, whatever happened before; TensorBoard reads them."""

import pytest
import runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gr_jax import train
from gr_jax.errors import UserError
from gr_jax.runs import events, journal


def points(folder):
  """{tag: [(step, value)]}, as TensorBoard shows them."""
  board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
  board.Reload()
  return {tag: [(point.step, point.value) for point in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def epoch(step, **changes):
  return {"kind": "epoch", "task": 1, "epoch": step, "stage": "train", "global_step": step, "seconds": float(step),
          "loss": 1 / step, **changes}


def test_a_resumed_run_has_no_point_twice(tmp_path):
  path, folder = tmp_path / "metrics.jsonl", tmp_path / "events"
  with journal.Metrics(path, step=0, events=folder) as log:
    for step in (1, 2, 3):
      log.write(**epoch(step))
    # TensorBoard sees a row as soon as it is written.
    assert points(folder)["train/loss"] == [(step, pytest.approx(1 / step)) for step in (1, 2, 3)]
  with journal.Metrics(path, step=2, events=folder) as log:
    log.write(**epoch(3, loss=9.0))
  assert [(step, round(value, 2)) for step, value in points(folder)["train/loss"]] == [(1, 1.0), (2, 0.5), (3, 9.0)]
  # A start without event files, then one with: nothing is missing.
  with journal.Metrics(path, step=3) as log:
    log.write(**epoch(4))
  with journal.Metrics(path, step=4, events=folder):
    pass
  assert [step for step, _ in points(folder)["train/loss"]] == [1, 2, 3, 4]
  assert len(list(folder.iterdir())) == 1


def test_what_is_plotted():
  task = {"kind": "task", "task": 2, "global_step": 9, "seconds": 1.0, "task_accuracies": 0.5, "forgetting": None,
          "task_mean_accuracies": 0.5, "backward_transfer": -0.1, "average_incremental_accuracy": 0.75,
          "accuracy_matrix": [0.25, 0.75, None], "correct": [1, 2],
          "calibration": {"temperatures": None, "uncalibrated": {"all": {"ece": 0.2}}, "one_temperature": None,
                          "without_images": {"all": None}},
          "many_medium_few": {"many": {"accuracy": 0.5, "classes": 1}, "few": None}}
  assert events.scalars(task) == {
      "after_task/accuracy": 0.5, "after_task/mean_of_tasks": 0.5, "after_task/backward_transfer": -0.1,
      "after_task/average_incremental_accuracy": 0.75, "accuracy_of_task/1": 0.25, "accuracy_of_task/2": 0.75,
      "many_medium_few/many": 0.5, "calibration_error/uncalibrated": 0.2}
  assert events.scalars(epoch(2, stage="correct_bias", alpha=1.5)) == {"correct_bias/loss": 0.5,
                                                                      "correct_bias/alpha": 1.5}


def test_without_the_writer(tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match="tensorboardX is not installed; run: pip install"):
    train.train(runs.short(tensorboard=True), tmp_path)

