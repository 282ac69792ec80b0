"""Shows that the tests notice wrong variants of the method. A script, not a test:

  python tests/mutations.py [part of a name ...]

Each variant is put into a temporary copy of the project by replacing one piece of source text,
which must stand there exactly once. The named tests must pass in the untouched copy and fail in the
wrong one. Exit status 0 only if every chosen variant was noticed.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPIED = ("gr_jax", "tests", "configs", "pyproject.toml", "README.md")


class Mutation(NamedTuple):
  """A wrong variant: `old` stands once in `file` and becomes `new`."""

  name: str
  file: str
  old: str
  new: str
  tests: str  # arguments of pytest, separated by spaces


MUTATIONS = (
  Mutation(
    "norms taken before the mean over devices",
    "gr_jax/training/step.py",
    """\
    mean = (backbone_grads, ce_grads, kd_grads, ce, kd)
    if axis_name is not None:
      mean = jax.lax.pmean(mean, axis_name)
    backbone_grads, ce_grads, kd_grads, ce, kd = mean

    head_grads, method_state, ratios = method.classifier_gradient(state.method, ce_grads, kd_grads, facts)
""",
    """\
    scaled = method.classifier_gradient(state.method, ce_grads, kd_grads, facts)
    mean = (backbone_grads, scaled, ce, kd)
    if axis_name is not None:
      mean = jax.lax.pmean(mean, axis_name)
    backbone_grads, (head_grads, method_state, ratios), ce, kd = mean

""",
    "tests/training/test_step.py::test_recorded_trajectory",
  ),
  Mutation(
    "Phi updated after the ratios",
    "gr_jax/reweighting.py",
    """\
  state = accumulate(state, ce_grads, seen)
  phi = state.phi
""",
    """\
  phi = state.phi
  state = accumulate(state, ce_grads, seen)
""",
    "tests/test_reweighting.py",
  ),
  Mutation(
    "r_o = 1",
    "gr_jax/reweighting.py",
    "r_old = jnp.minimum(1.0, new_over_old)",
    "r_old = jnp.ones(())",
    "tests/test_reweighting.py",
  ),
  Mutation(
    "h without 0.001",
    "gr_jax/losses.py",
    "shifted = jnp.where(old, lost + _LOST_OFFSET, 0.0)",
    # 0 log 0 = 0, so that the variant is wrong but finite.
    "shifted = jnp.where(old, jnp.maximum(lost, 1e-30), 0.0)",
    "tests/test_losses.py",
  ),
  Mutation(
    "beta over all columns",
    "gr_jax/reweighting.py",
    'ce, kd = _masked(ce_grads["kernel"], seen), _masked(kd_grads["kernel"], old)',
    'ce, kd = ce_grads["kernel"], kd_grads["kernel"]',
    "tests/test_reweighting.py",
  ),
  Mutation(
    "biases not scaled",
    "gr_jax/reweighting.py",
    "total = column * _masked(ce, seen)",
    "total = (column if ce.ndim > 1 else 1.0) * _masked(ce, seen)",
    "tests/test_reweighting.py",
  ),
  Mutation(
    "hold-out counted in n_j",
    "gr_jax/scenario/draw.py",
    "return np.asarray([len(rows) for rows in self.train], np.int64)",
    "return np.asarray([len(t) + len(h) for t, h in zip(self.train, self.holdout)], np.int64)",
    "tests/scenario/test_scenario.py",
  ),
)


def copy_project(target):
  """Copies what the tests need to `target`."""
  for name in COPIED:
    source = ROOT / name
    if source.is_dir():
      ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
      shutil.copytree(source, target / name, ignore=ignored)
    elif source.exists():
      shutil.copy(source, target / name)


def run_tests(project, tests):
  """(exit status of pytest in `project`, its last line). 0 = passed, 1 = a test failed."""
  environment = os.environ | {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
  # An installed copy of the package must not be tested in place of the one that was changed.
  where = subprocess.run(
    [sys.executable, "-c", "import gr_jax; print(gr_jax.__file__)"],
    cwd=project, env=environment, capture_output=True, text=True, check=True,
  )
  if not where.stdout.strip().startswith(str(project)):
    sys.exit(f"gr_jax comes from {where.stdout.strip()}, not from the copy in {project}")
  pytest = [sys.executable, "-m", "pytest", "-o", "addopts=-q", "-p", "no:cacheprovider"]
  done = subprocess.run(
    [*pytest, "-m", "not slow", "--tb=no", *tests.split()],
    cwd=project, env=environment, capture_output=True, text=True, check=False,
  )
  lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
  return done.returncode, lines[-1]


def examine(mutation, project, baseline):
  """(noticed, what happened). `baseline` holds the results of the untouched copy by tests."""
  path = project / mutation.file
  source = path.read_text()
  found = source.count(mutation.old)
  if found != 1:
    return False, f"ADAPT: the text to replace stands {found} times in {mutation.file}"
  if mutation.tests not in baseline:
    baseline[mutation.tests] = run_tests(project, mutation.tests)
  status, line = baseline[mutation.tests]
  if status != 0:
    return False, f"the tests do not pass without the change: {line}"
  try:
    path.write_text(source.replace(mutation.old, mutation.new))
    status, line = run_tests(project, mutation.tests)
  finally:
    path.write_text(source)
  if status == 1:
    return True, f"noticed: {line}"
  return False, f"{'NOT NOTICED' if status == 0 else f'pytest ended with {status}'}: {line}"


def main(chosen):
  """Examines the variants whose names contain one of `chosen`, all by default."""
  selected = [m for m in MUTATIONS if not chosen or any(part in m.name for part in chosen)]
  if not selected:
    sys.exit(f"no such variant; there are: {', '.join(m.name for m in MUTATIONS)}")
  baseline, unnoticed = {}, 0
  with tempfile.TemporaryDirectory() as folder:
    project = pathlib.Path(folder).resolve()
    copy_project(project)
    for mutation in selected:
      noticed, report = examine(mutation, project, baseline)
      unnoticed += not noticed
      print(f"{mutation.name:<42} {report}", flush=True)
  sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
  main(sys.argv[1:])
