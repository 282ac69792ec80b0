"""The times of all methods' stages are taken, on tiny networks; that they are right only a person can judge."""

import sys

import method_steps
import pytest
import tiny

from gr_jax import models


def test_every_stage_of_the_second_task_is_timed(monkeypatch, capsys):
  monkeypatch.setattr(models, "make_backbone", lambda name, **options: tiny.PixelBackbone())
  sweep = method_steps.rows_of_the_sweep()
  report = method_steps.timings(
      {name: sweep[name] for name in ("eeil", "simplecil", "der", "lucir_gvalign")},
      config="configs/digits_lt.py", calls=1, steps=1,
      **{"scenario.num_tasks": 2, "epochs": 1, "milestones": (), "precision": "float32"})
  assert {name: set(of["stages"]) for name, of in report["methods"].items()} == {
      "eeil": {"train", "balance"}, "simplecil": {"class_means"}, "der": {"train"},
      "lucir_gvalign": {"train", "align"}}
  assert all(seconds > 0 for of in report["methods"].values() for seconds in (*of["stages"].values(), of["finetune"]))
  assert report["precision"] == "float32" and capsys.readouterr().out.count("finetune") == 4


def test_an_unknown_row_is_refused(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["method_steps.py", "--methods=gr,wat"])
  with pytest.raises(SystemExit):
    method_steps.main()
  assert "--methods has wat; the sweep has gr, finetune" in capsys.readouterr().err
