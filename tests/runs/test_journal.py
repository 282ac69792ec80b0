"""metrics.jsonl and the JSON files of a run."""

import json

import pytest

from gr_jax.errors import UserError
from gr_jax.runs import journal


def test_rows_after_the_checkpoint_are_dropped_and_starts_are_counted(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with journal.Metrics(path, step=0) as log:
    for step in (1, 2, 3):
      log.write(kind="epoch", global_step=step)
  with journal.Metrics(path, step=2) as log:
    log.write(kind="epoch", global_step=3)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [(row["global_step"], row["start"]) for row in rows] == [(1, 1), (2, 1), (3, 2)]


# Cut short by a kill; blocks of zeros are what a file system may leave after a power cut.
@pytest.mark.parametrize("end", [b'{"global_st', bytes(40), b'{"global_step": 2, "start": 1, "note": "\xff"}\n'],
                         ids=["cut", "zeros", "not text"])
def test_a_last_line_that_is_no_row_is_dropped(tmp_path, end):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"global_step": 1, "start": 1}\n' + end)
  with journal.Metrics(path, step=1):
    pass
  assert path.read_text() == '{"global_step": 1, "start": 1}\n'


@pytest.mark.parametrize(
    "damaged", [b'{"global_st', b'{"global_step": 1, "ctart": 1}', b'{"global_step": "\xff"}', b"1"])
def test_damage_elsewhere_is_an_error(tmp_path, damaged):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(damaged + b'\n{"global_step": 1, "start": 1}\n')
  with pytest.raises(UserError, match="line 1 of .* cannot be read"):
    journal.Metrics(path, step=1)


def test_json_files(tmp_path):
  path = tmp_path / "results.json"
  journal.write_json(path, {"a": [1, None]})
  assert journal.read_json(path) == {"a": [1, None]} and list(tmp_path.iterdir()) == [path]
  for content in ("{", "[]", "null", '{"b": 1}', ""):
    path.write_text(content)
    with pytest.raises(UserError, match="results.json cannot be read"):
      journal.read_json(path, "a")
