"""The comparisons from end to end on tiny tasks, with real processes: a minute or two."""

import importlib.util
import json
import sys

import against_torch
import builders
import pytest
import sides
import whole_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the PyTorch side needs torch in this interpreter")]


def test_steps_of_both_sides(monkeypatch, tmp_path, capsys):
  every = sides.make_sides(against_torch.parse_options(["--bfloat16"]))
  # Compilation by PyTorch would take minutes.
  few = {name: side for name, side in every.items() if "compiled" not in name}
  monkeypatch.setattr(sides, "make_sides", lambda options: few)
  monkeypatch.setattr(sys, "argv", ["against_torch.py", "--steps=1", "--rounds=1", "--batch=16", "--bfloat16",
                                    f"--json={tmp_path / 'found.json'}"])
  against_torch.main()
  measured = json.loads((tmp_path / "found.json").read_text())
  assert str(tmp_path) not in (tmp_path / "found.json").read_text() and sys.executable not in str(measured)
  for name in few:
    assert measured["sides"][name]["failed"] == {}
    assert measured["seconds_per_step"]["plain"][name][0] > 0 and measured["seconds_per_step"]["augmented"][name][0] > 0
  assert measured["sides"][sides.OURS]["about"]["convolutions"].startswith("convolutions: ")
  assert "bfloat16, without augmentation" in capsys.readouterr().out


def test_whole_runs_of_both_sides(monkeypatch, tmp_path, capsys):
  builders.cifar100(tmp_path / "data", per_class=4, test_per_class=1)
  config = tmp_path / "tiny.py"
  config.write_text("""
from configs import cifar100_lt

def get_config():
  config = cifar100_lt.get_config().unlock()
  config.model, config.scenario.kind, config.memory.per_class = "resnet8", "natural", 2
  return config.lock()
""")
  monkeypatch.setattr(sys, "argv", [
      "whole_run.py", f"--config={config}", f"--data_dir={tmp_path / 'data'}", "--epochs=2", "--milestones=1",
      f"--json={tmp_path / 'found.json'}"])
  whole_run.main()
  measured = json.loads((tmp_path / "found.json").read_text())
  assert str(tmp_path / "data") not in str(measured) and sys.executable not in str(measured)
  assert list(measured["sides"]) == [whole_run.FIRST, whole_run.SECOND, whole_run.RELEASED]
  for side in measured["sides"].values():
    assert len(side["task_accuracies"]) == 6 and min(side["parts"].values()) > 0
    assert sum(side["parts"].values()) == pytest.approx(side["seconds"])
  # The cache changes the time, not the run.
  assert measured["sides"][whole_run.FIRST]["task_accuracies"] == measured["sides"][whole_run.SECOND]["task_accuracies"]
  assert "with a filled one" in capsys.readouterr().out
