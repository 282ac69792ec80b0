"""The exported file works without this package."""

import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import runs

import gr_jax
from gr_jax.data.sources import digits
from gr_jax.errors import UserError
from gr_jax.serving import exported

# Importing the package, or what it is built on, fails in this process.
ALONE = """
import sys
for name in ("gr_jax", "flax", "optax", "orbax"):
  sys.modules[name] = None
import json, jax, jax.export, numpy as np
about = json.load(open("model.json"))
function = jax.export.deserialize(bytearray(open(about["file"], "rb").read()))
assert list(function.platforms) == about["platforms"], function.platforms
views = np.load("views.npy")
np.save("found.npy", np.asarray(function.call(views)))
np.save("one.npy", np.asarray(function.call(views[:1])))
print(about["classes"])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("old")
  with tarfile.open(runs.ROOT / "tests" / "fixtures" / "run_of_format_2.tar.gz") as archive:
    archive.extractall(folder / "run", filter="data")
  return gr_jax.load(folder / "run")


def test_it_gives_the_same_probabilities_in_a_process_that_cannot_import_the_package(model, tmp_path):
  views = np.stack([digits.load().test.image(row) for row in range(5)])
  np.save(tmp_path / "views.npy", views)
  assert exported.export(model, tmp_path / "model.bin") == tmp_path / "model.json"
  done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=runs.environment(PYTHONPATH=""),
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == str(list(model.classes))
  expected = model(views).probabilities
  np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)
  np.testing.assert_allclose(np.load(tmp_path / "one.npy"), expected[:1], atol=1e-5)
  about = json.loads((tmp_path / "model.json").read_text())
  assert about["calibrated"] is False and about["input"].startswith("uint8 [batch, 8, 8, 1]")
  assert "unless it is 8 x 8 pixels" in " ".join(about["preprocessing"])


def test_places_that_cannot_be_written(model, tmp_path):
  with pytest.raises(UserError, match="takes that name"):
    exported.export(model, tmp_path / "model.json")
  with pytest.raises(UserError, match="does not exist"):
    exported.export(model, tmp_path / "nowhere" / "model.bin")
  (tmp_path / "other.json").mkdir()
  for name, folder in ((".", tmp_path), ("other.bin", tmp_path / "other.json")):
    with pytest.raises(UserError, match=f"{folder} is a folder"):
      exported.export(model, tmp_path / name)
