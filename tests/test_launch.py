"""The launch scripts: valid shell, usage on top, and a real start of the local one."""

import functools
import os
import subprocess
import sys

import pytest
import runs

SCRIPTS = sorted((runs.ROOT / "launch").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_valid_shell_with_usage(script):
  assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
  lines = script.read_text().splitlines()
  assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines and os.access(script, os.X_OK)
  assert any(line.startswith("#   ") and f"launch/{script.name}" in line for line in lines[:10])
  done = subprocess.run([script], text=True, capture_output=True, check=False)
  assert done.returncode == 2 and "usage:" in done.stderr


def test_local_starts_the_program():
  done = subprocess.run(
      [runs.ROOT / "launch" / "local.sh", "configs/digits_lt.py", "--dry_run"], cwd=runs.ROOT, text=True,
      capture_output=True, env=runs.environment(PYTHON=sys.executable), check=False)
  assert done.returncode == 0 and "nothing was trained" in done.stdout, done.stderr


def test_slurm_hands_its_flags_on(tmp_path):
  """A stand-in for srun that prints what it was asked to start."""
  srun = tmp_path / "srun"
  srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
  srun.chmod(0o755)
  done = subprocess.run(
      [runs.ROOT / "launch" / "slurm.sh", "configs/digits_lt.py", "--workdir=a b"], cwd=runs.ROOT, text=True,
      capture_output=True, env=runs.environment(PATH=f"{tmp_path}:{os.environ['PATH']}"), check=False)
  assert done.stdout.splitlines()[-2:] == ["--config=configs/digits_lt.py", "--workdir=a b"]


def test_gpu_report_runs_its_stages_in_order_and_each_once(tmp_path):
  """A stand-in for Python that prints what it is asked to run, and fails where the file `fail` is."""
  python = tmp_path / "python"
  python.write_text('#!/usr/bin/env bash\necho "$@"\ntest ! -e "$(dirname "$0")/fail"\n')
  python.chmod(0o755)
  report = functools.partial(
      subprocess.run, [runs.ROOT / "launch" / "gpu_report.sh", tmp_path / "out"], text=True, capture_output=True,
      env=runs.environment(PYTHON=str(python)), check=False)
  (tmp_path / "fail").touch()
  assert report().returncode == 1 and not (tmp_path / "out" / "correctness.txt").exists()
  (tmp_path / "fail").unlink()
  first, second = report(), report()
  asked = [line for line in first.stdout.splitlines() if not line.startswith("==")]
  assert [line.split()[0:2][-1] if line.startswith("-m") else line.split()[0] for line in asked] == [
      "tests/on_device.py", "gr_jax.benchmark", "tests/benchmarks/against_torch.py", "gr_jax.sweep"]
  for line in asked:
    for path in (part for word in line.split() for part in word.split("=") if part.endswith(".py")):
      assert (runs.ROOT / path).is_file()
  assert [line for line in second.stdout.splitlines() if "gr_jax" in line] == asked[-1:]


@pytest.mark.slow
def test_the_check_on_devices_really_runs():
  done = subprocess.run(
      [sys.executable, "tests/on_device.py", "cpu"], cwd=runs.ROOT, text=True, capture_output=True, check=False,
      env=runs.environment(JAX_NUM_CPU_DEVICES="1"))
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert len([line for line in lines if "recorded trajectory" in line]) == 1
  assert len([line for line in lines if "ResNet-32 step" in line]) == 1
