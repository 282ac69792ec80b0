"""gr_jax.load_results: files of a run as values, finished or not."""

import json

import numpy as np
import pytest

import gr_jax
from gr_jax.errors import UserError

ROWS = [{"kind": "epoch", "task": 1, "epoch": 1, "loss": 0.5, "stage": "train"},
        {"kind": "task", "task": 1, "correct": [3, 4], "accuracy_matrix": [1.0, None]},
        {"kind": "epoch", "task": 2, "epoch": 1, "loss": 0.25, "stage": "train", "alpha": 1.5}]


def write(folder, results=None, end=""):
  (folder / "config.json").write_text('{"seed": 1}')
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + end)
  if results is not None:
    (folder / "results.json").write_text(json.dumps(results))


def test_everything_as_arrays(tmp_path):
  write(tmp_path, {"accuracy_matrix": [[1.0, None], [0.5, 0.25]], "seed": 1, "seeds": [1, 2], "names": ["a", "b"],
                   "many_medium_few": {"many": {"accuracy": 0.5}, "few": None}, "ragged": [[1.0], [1.0, 2.0]]})
  run = gr_jax.load_results(tmp_path)
  assert run.config == {"seed": 1} and run.scenario == {} and run.folder == tmp_path
  np.testing.assert_array_equal(run.results["accuracy_matrix"], [[1, np.nan], [0.5, 0.25]])
  assert run.results["seeds"].dtype == np.int64 and run.results["names"] == ["a", "b"]
  assert run.results["many_medium_few"] == {"many": {"accuracy": 0.5}, "few": None}
  assert [part.tolist() for part in run.results["ragged"]] == [[1.0], [1.0, 2.0]]
  np.testing.assert_array_equal(run.rows[1]["accuracy_matrix"], [1, np.nan])
  columns = run.columns("epoch")
  np.testing.assert_array_equal(columns["loss"], [0.5, 0.25])
  assert columns["alpha"].tolist() == [None, 1.5] and columns["stage"].tolist() == ["train", "train"]
  assert run.columns("task")["correct"][0].tolist() == [3, 4]


def test_arrays_of_an_evaluation(tmp_path):
  write(tmp_path)
  (tmp_path / "evaluation").mkdir()
  np.savez(tmp_path / "evaluation" / "task_1.npz", confusion=np.eye(2, dtype=np.int32))
  (tmp_path / "evaluation" / "task_2.npz").write_bytes(b"PK damaged")
  run = gr_jax.load_results(tmp_path)
  np.testing.assert_array_equal(run.evaluation(1)["confusion"], np.eye(2))
  for task in (2, 3):
    with pytest.raises(UserError, match=f"task_{task}.npz cannot be read"):
      run.evaluation(task)


def test_frames(tmp_path, monkeypatch):
  write(tmp_path)
  run = gr_jax.load_results(tmp_path)
  frame = run.frame()
  assert frame[["task", "loss"]].to_numpy().tolist() == [[1, 0.5], [2, 0.25]]
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install pandas"):
    run.frame()


def test_an_unfinished_run_and_a_row_that_is_being_written(tmp_path):
  write(tmp_path, end='{"kind": "epo')
  run = gr_jax.load_results(tmp_path)
  assert run.results == {} and len(run.rows) == 3


def test_folders_that_hold_no_run_and_damaged_files(tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    gr_jax.load_results(tmp_path)
  write(tmp_path, end='{"kind": "epo\n{"kind": "task"}\n')
  with pytest.raises(UserError, match="line 4 of .*metrics.jsonl cannot be read"):
    gr_jax.load_results(tmp_path)
  write(tmp_path)
  (tmp_path / "results.json").write_text("[1")
  with pytest.raises(UserError, match="results.json cannot be read"):
    gr_jax.load_results(tmp_path)
