"""The code of docs/using_results.md runs."""

import re
import tarfile

import numpy as np
import PIL.Image
import runs

import gr_jax
from gr_jax.data.sources import digits
from gr_jax.serving import exported

PAGE = (runs.ROOT / "gr_jax" / "docs" / "using_results.md").read_text()


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  with tarfile.open(runs.ROOT / "tests" / "fixtures" / "run_of_format_2.tar.gz") as archive:
    archive.extractall(tmp_path / "runs" / "digits_lt-s0", filter="data")
  test = digits.load().test
  for name, row in (("picture.png", 0), ("other.png", 1)):
    PIL.Image.fromarray(test.image(row)[..., 0]).save(name)
  loading, recorded, deploying = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
  names = {"views": np.stack([test.image(row) for row in (0, 1)])}
  exec(loading, names)
  assert names["predictions"].probabilities.shape == (2, 10)
  exec(recorded, names)
  assert names["run"].results["accuracy_matrix"].shape == (3, 3)
  exported.export(gr_jax.load("runs/digits_lt-s0"), tmp_path / "model.bin")
  exec(deploying, names)
  np.testing.assert_allclose(names["probabilities"], names["predictions"].probabilities, atol=1e-5)
  assert names["about"]["classes"] == list(names["model"].classes)
  assert "task_accuracies" in capsys.readouterr().out
