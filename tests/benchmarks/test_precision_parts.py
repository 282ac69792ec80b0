"""The measurement of bfloat16's parts runs on a run's folder; its errors are those of eight bits of mantissa."""

import re
import sys
import tarfile

import precision_parts
import pytest
import runs


@pytest.mark.slow
def test_errors_of_every_part(tmp_path, monkeypatch, capsys):
  with tarfile.open(runs.ROOT / "tests" / "fixtures" / "run_of_format_3.tar.gz") as archive:
    archive.extractall(tmp_path, filter="data")
  monkeypatch.setattr(sys, "argv", ["precision_parts.py", f"--workdir={tmp_path}", "--batches=1"])
  precision_parts.main()
  rows = re.findall(r"\| (.*?) \| ([\d.]+) % \|", capsys.readouterr().out)
  errors = {name: float(error) / 100 for name, error in rows}
  parts = [errors[name] for name in precision_parts.PARTS]
  whole, another = errors["all of it (precision=bfloat16)"], errors["another batch, float32"]
  # A rounding is at most 2^-9 of a value; all of it is more than a part, and far less than other pictures.
  assert all(2**-12 < part < 2**-3 for part in parts) and max(parts) < 2 * whole and whole < another / 3
