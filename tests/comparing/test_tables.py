"""The table against the runs' files, in its three forms; published numbers."""

import csv
import io
import json

import numpy as np
import pytest
import runs
import stand_in

from gr_jax import config as configuration
from gr_jax import methods
from gr_jax.comparing import published, tables


def make_rows():
  """Two seeds of one method, one of three of another, and a method without a finished run."""
  finished = [stand_in.results(seed, average) for seed, average in ((0, 0.41), (1, 0.47), (0, 0.30))]
  return [tables.Row("gr", 2, finished[:2], published.Published(40.18, 34.54, 160, "a paper, table 1", "a remark")),
          tables.Row("wa:temperature=1", 3, finished[2:]), tables.Row("lwf_50%", 1, [])], finished


def test_markdown_has_mean_and_deviation_of_every_measure():
  rows, _ = make_rows()
  lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.markdown(rows).splitlines()]
  assert lines[0] == ["method", "seeds", "average incremental", "last", "forgetting", "many", "medium", "few",
                      "seconds", "parameters", "memory, MB", "published: average incremental", "published: last"]
  averages = 100 * np.array([0.41, 0.47])
  assert lines[2] == ["gr", "2", f"{averages.mean():.2f} ± {averages.std(ddof=1):.2f}", "34.00 ± 4.24", "20.00 ± 0.00",
                      "44.00 ± 4.24", "-", "24.00 ± 4.24", "10 ± 1", "1024", "1.500", "40.18", "34.54"]
  assert lines[3] == ["wa:temperature=1", "1 of 3", "30.00", "20.00", "20.00", "30.00", "-", "10.00", "10", "1024",
                      "1.500", "-", "-"]
  assert lines[4] == ["lwf_50%", "0 of 1", *["-"] * 11]
  without = tables.markdown([row._replace(published=None) for row in rows])
  assert "published" not in without


def test_csv_has_full_precision():
  rows, finished = make_rows()
  read = list(csv.DictReader(io.StringIO(tables.comma_separated(rows))))
  assert [row["method"] for row in read] == ["gr", "wa:temperature=1", "lwf_50%"]
  last = [100 * one["last_accuracy"] for one in finished[:2]]
  assert float(read[0]["last_mean"]) == pytest.approx(np.mean(last), abs=1e-12)
  assert float(read[0]["last_standard_deviation"]) == pytest.approx(np.std(last, ddof=1), abs=1e-12)
  assert read[0]["published_last"] == "34.54" and read[0]["seeds"] == "2" and read[0]["medium_mean"] == ""
  assert read[1]["last_standard_deviation"] == "" and read[2]["average_incremental_mean"] == ""


def test_latex_is_escaped_and_even():
  text = tables.latex(make_rows()[0])
  assert text.startswith("\\begin{tabular}{l" + "r" * 12 + "}\n\\toprule") and text.endswith("\\end{tabular}")
  body = [line for line in text.splitlines() if line.endswith(r"\\")]
  assert len(body) == 4 and {line.count(" & ") for line in body} == {12}
  assert "44.00 $\\pm$ 4.24" in body[1] and "lwf\\_50\\%" in body[3]


def test_notes_name_sources_and_a_different_number_of_epochs():
  rows, _ = make_rows()
  lines = tables.notes(rows, {"epochs": 10})
  assert lines[-1] == "gr, published: a paper, table 1; 160 epochs a task, ours 10; a remark"
  assert tables.notes(rows, {"epochs": 160})[-1] == "gr, published: a paper, table 1; 160 epochs a task; a remark"


def test_notes_say_where_precisions_differ():
  rows = [tables.Row(name, 2, [{"precision": one, "tasks_done": 2} for one in used]) for name, used in (
      ("gr", ("float32", "mixed")), ("wa", ("mixed", "mixed")))]
  assert tables.notes(rows, {"epochs": 10})[-1].startswith("Precisions differ: gr float32 and mixed, wa mixed; set")
  assert "recisions" not in " ".join(tables.notes(rows[1:], {"epochs": 10}))


def cifar(**changes):
  return configuration.flatten(configuration.check(runs.get_config("cifar100_lt", **changes)))


def test_published_numbers_are_those_of_the_same_setting():
  assert published.find(cifar(), "gr", ())[:3] == (40.18, 34.54, 160)
  assert published.find(cifar(**{"scenario.num_tasks": 11}), "gr", ())[:2] == (39.11, 33.97)
  assert published.find(cifar(**{"scenario.kind": "ltio"}), "lucir", ("lws",))[:2] == (45.88, 30.50)
  assert published.find(cifar(), "podnet", ())[:2] == (36.64, 30.20) and "34.64" in published.find(
      cifar(), "podnet", ()).note
  for changes in ({"scenario.imbalance": 50.0}, {"memory.per_class": 10}, {"model": "resnet20"},
                  {"memory.per_class": None, "memory.total": 2000}, {"scenario.first_task_classes": None}):
    assert published.find(cifar(**changes), "gr", ()) is None
  assert published.find(cifar(), "finetune", ()) is None
  imagenet = configuration.flatten(configuration.check(runs.get_config("imagenetsubset_lt")))
  assert published.find(imagenet, "gr", ())[:3] == (48.00, 38.50, 90)


def test_the_file_of_published_numbers_is_complete_and_plausible():
  rows = published._table()
  assert len({json.dumps({**row, "average": 0, "last": 0, "source": "", "note": ""}) for row in rows}) == len(rows)
  for row in rows:
    assert 20 < float(row["last"]) < float(row["average"]) < 80 and row["source"]
    assert row["dataset"] in ("cifar100", "imagenet_subset") and row["kind"] in ("lt", "ltio")
  assert {"gr", "lucir"} <= {row["method"] for row in rows} & set(methods.NAMES)
