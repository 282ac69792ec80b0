"""The process around a run: its nice value counts against other sessions."""

import os
import pathlib
import subprocess
import sys

import pytest

_GROUP = pathlib.Path("/proc/self/autogroup")
_SCRIPT = f"""
import os, pathlib
print(os.nice(0), pathlib.Path("{_GROUP}").read_text().split()[-1])
"""


@pytest.mark.skipif(not os.access(_GROUP, os.W_OK), reason="this kernel does not schedule by session, or not here")
def test_a_nice_value_counts_against_other_sessions(tmp_path):
  (tmp_path / "shows_its_group.py").write_text(_SCRIPT)
  environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
  reader, writer = os.pipe()
  leash = [sys.executable, "-m", "gr_jax.comparing.leash", str(reader), "all", "shows_its_group"]
  try:
    for more in (0, 3):
      value = str(max(0, min(os.nice(0) + more, 19)))
      done = subprocess.run(["nice", "-n", str(more), *leash], env=environment, text=True, capture_output=True,
                            check=True, start_new_session=True, pass_fds=[reader])
      assert (done.stdout.split(), done.stderr) == ([value, value], "")
  finally:
    os.close(reader)
    os.close(writer)
