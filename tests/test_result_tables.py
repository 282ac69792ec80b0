"""The tables of the pages agree with the committed runs."""

import json

import pytest
import tables


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_tables_agree_with_the_runs(page):
  text = page.read_text()
  assert text == tables.rebuilt(text), "run: python tests/tables.py --write"


def test_every_table_stands_in_a_page():
  text = "\n".join(page.read_text() for page in tables.PAGES)
  for name in tables.TABLES:
    assert text.count(f"<!-- table: {name} -->") == 1


def test_no_committed_run_names_a_folder_of_one_machine():
  for path in tables.RESULTS.rglob("*.json*"):
    assert '"/' not in path.read_text(), path


def test_finished_runs_are_collected_without_their_folders(tmp_path):
  for name, finished in (("a-s0", True), ("b-s0", False)):
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"data_dir": "/somewhere", "cache_dir": "off", "seed": 0}))
    (folder / "metrics.jsonl").write_text('{"kind": "epoch"}\n')
    if finished:
      (folder / "results.json").write_text('{"last_accuracy": 0.5}\n')
  assert tables.collect(tmp_path / "runs", tmp_path / "kept") == ["a-s0"]
  assert [path.name for path in (tmp_path / "kept").iterdir()] == ["a-s0"]
  assert json.loads((tmp_path / "kept" / "a-s0" / "config.json").read_text()) == {
      "data_dir": None, "cache_dir": "off", "seed": 0}


def test_numbers_of_the_tables(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, "RESULTS", tmp_path)
  values = {("float32", 0): 0.10, ("float32", 1): 0.20, ("bfloat16", 0): 0.12, ("bfloat16", 1): 0.18}
  for (kind, seed), value in values.items():
    folder = tmp_path / "precision" / f"{kind}-s{seed}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(
        {"average_incremental_accuracy": value, "last_accuracy": value / 2}))
  assert tables.precision()[2:] == [
      "| seed 0 | 10.00 / 5.00 | 12.00 / 6.00 |", "| seed 1 | 20.00 / 10.00 | 18.00 / 9.00 |",
      *[f"| seed {seed} | not run | not run |" for seed in (2, 3, 4)],
      "| mean ± standard deviation | 15.00 ± 7.07 / 7.50 ± 3.54 | 15.00 ± 4.24 / 7.50 ± 2.12 |",
      "| bfloat16 − float32, mean ± standard error, 2 seeds | | 0.00 ± 2.00 / 0.00 ± 1.00 |"]
  folder = tmp_path / "methods" / "bic-s0"
  folder.mkdir(parents=True)
  (folder / "results.json").write_text(json.dumps({
      "average_incremental_accuracy": 0.3, "last_accuracy": 0.2, "forgetting": [None, 0.05],
      "many_medium_few": {"many": {"accuracy": 0.4}, "medium": {"accuracy": 0.3}, "few": {"accuracy": 0.1}}}))
  rows = [("epoch", "train", 10), ("epoch", "train", 25), ("epoch", "correct_bias", 30), ("task", None, 34),
          ("epoch", "train", 40), ("task", None, 41)]
  (folder / "metrics.jsonl").write_text("".join(
      json.dumps({"kind": kind, "stage": stage, "seconds": seconds}) + "\n" for kind, stage, seconds in rows))
  assert ("| bic | 30.00 | 20.00 | 5.00 | 40.00 / 30.00 / 10.00 | train 31, correct_bias 5, "
          "evaluation, exemplars 5 |") in tables.methods()
  folder = tmp_path / "digits"
  folder.mkdir()
  names = ("average_incremental", "last", "forgetting", "many", "medium", "few")
  cells = {"method": "lucir+lws", "seconds_mean": "12.6", "memory_megabytes_mean": "0.0026"}
  cells |= {f"{name}_{part}": str(value + 0.125) for value, name in enumerate(names)
            for part in ("mean", "standard_deviation")}
  (folder / "table.csv").write_text(f"{','.join(cells)}\n{','.join(cells.values())}\n")
  assert tables.digits()[2:] == [
      "| lucir+lws | 0.12 ± 0.12 | 1.12 ± 1.12 | 2.12 ± 2.12 | 3.12 ± 3.12 | 4.12 ± 4.12 | 5.12 ± 5.12 | 13 | 0.00 |"]
