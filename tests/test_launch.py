"""The launch scripts: valid shell, usage on top, and a real start of the local one."""

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
