"""What an older run did not record, from its checkpoint and data."""

import pathlib
import tarfile

import numpy as np
import reported

from gr_jax.report import exemplars, recomputed, records
from gr_jax.runs import workdir as workdirs

FILE = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "run_of_format_2.tar.gz"


def test_a_run_of_format_2(tmp_path):
  """Its last task's checkpoint was kept; the others cannot be computed, and the page says so."""
  with tarfile.open(FILE) as archive:
    archive.extractall(tmp_path, filter="data")
  before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  with workdirs.locked(tmp_path):
    old = records.read(tmp_path)
    run = recomputed.completed(old)
    shown = exemplars.of(old)
  assert not old.arrays and old.after(3, "calibration") is None
  assert set(run.arrays) == {3} and run.after(2, "calibration") is None
  # The same predictions as those that the run counted.
  np.testing.assert_array_equal(np.diag(run.arrays[3]["confusion"]), run.after(3, "correct"))
  assert run.after(3, "calibration", "uncalibrated", "all", "accuracy") == run.after(3, "task_accuracies")
  assert [note for note in run.notes if "task 1 cannot be recomputed" in note]
  assert len(shown.classes) == 10 and {len(pictures) for _, pictures in shown.classes} == {5}
  assert all(address.startswith("data:image/png;base64,") for _, pictures in shown.classes for address in pictures)
  assert {path: path.read_bytes() for path in before} == before


def test_data_that_are_not_there_are_noted(tmp_path):
  with tarfile.open(FILE) as archive:
    archive.extractall(tmp_path, filter="data")
  text = (tmp_path / "config.json").read_text()
  (tmp_path / "config.json").write_text(text.replace('"dataset": "digits"', '"dataset": "cifar100"').replace(
      '"image_size": 8', '"image_size": 32'))
  run = recomputed.completed(records.read(tmp_path), str(tmp_path / "nowhere"))
  assert "nothing can be recomputed: " in run.notes[-1] and not run.arrays


def test_test_pictures_are_not_evaluated_for_a_run_on_held_out_ones(tmp_path, monkeypatch):
  loaded = []
  monkeypatch.setattr(recomputed.experiments, "load", lambda *args, **kwargs: loaded.append(args))
  old = records.read(reported.run(tmp_path / "run", recorded=False, evaluate_on="holdout"))
  run = recomputed.completed(old)
  assert not loaded and run.tasks == old.tasks and not run.arrays
  assert run.notes[:-1] == old.notes and "nothing is recomputed: the run was evaluated on its held-out" in run.notes[-1]
  assert not [note for note in old.notes if "--recompute computes" in note]
