"""Shows that the tests notice wrong variants of the method. A script, not a test:

  python tests/mutations.py [part of a name ...]

Each variant replaces functions of the package while pytest starts, before any test imports them, so that it depends on
what they do and not on how they are written. The named tests must pass without the change and fail with it, by an
assertion. Exit status 0 only if every chosen variant was noticed.

It is also the pytest plugin that makes the change: `-p mutations`, with the variant's name in GR_JAX_TESTS_MUTATION.
"""

import os
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
_CHOSEN = "GR_JAX_TESTS_MUTATION"

# Of a test that ended otherwise than by a comparison: then the variant itself is broken.
_BROKEN = ("TypeError", "AttributeError", "NameError", "KeyError", "UnexpectedTracerError", "ImportError")


def norms_before_the_mean():
  """The rule sees this device's gradients alone; what it makes of them is averaged."""
  import jax
  import optax

  from gr_jax import reweighting
  from gr_jax.devices import parallel
  mean, make, averaged = jax.lax.pmean, reweighting.gradient_reweighting, []

  def remembering(tree, axis_name, **options):
    averaged.append(tree)
    return mean(tree, axis_name, **options)

  def local(form):
    """The newest thing of this form among all that was averaged."""
    newest, waiting = None, list(averaged)
    while waiting:
      node = waiting.pop(0)
      if isinstance(node, dict | list | tuple):
        newest = node if jax.tree.structure(node) == form else newest
        waiting += node.values() if isinstance(node, dict) else node
    assert newest is not None, "the step averages no gradients of the head"
    return newest

  def variant(*args, **options):
    rule = make(*args, **options)

    def update(updates, state, params=None, *, gradients, **extra):
      here = local(jax.tree.structure(gradients))
      return mean(rule.update(updates, state, params, gradients=here, **extra), parallel.AXIS)
    return optax.GradientTransformationExtraArgs(rule.init, update)

  jax.lax.pmean, reweighting.gradient_reweighting = remembering, variant


def phi_after_the_ratios():
  import jax.numpy as jnp

  from gr_jax import reweighting
  update, accumulate = reweighting.update, reweighting.accumulate

  def variant(state, ce_grads, kd_grads, *, old, new, **options):
    reweighting.accumulate = lambda state, *_: state
    try:
      grads, after, ratios = update(state, ce_grads, kd_grads, old=old, new=new, **options)
    finally:
      reweighting.accumulate = accumulate
    phi = accumulate(state, ce_grads, jnp.asarray(old) | jnp.asarray(new)).phi
    return grads, after._replace(phi=phi), ratios

  reweighting.update = variant


def old_ratio_of_one():
  import jax.numpy as jnp

  from gr_jax import reweighting
  ratios = reweighting._inter_phase
  reweighting._inter_phase = lambda *args, **options: (jnp.ones(()), ratios(*args, **options)[1])


def evenness_without_offset():
  from gr_jax import losses
  assert losses._LOST_OFFSET == 1e-3
  # Nothing beside any count, and 0 log 0 = 0, so that the variant is wrong but finite.
  losses._LOST_OFFSET = 1e-30


def beta_over_all_columns():
  import jax.numpy as jnp

  from gr_jax import reweighting
  ratio = reweighting._distillation_ratio

  def variant(ce_grads, kd_grads, column, old, seen, eps):
    return ratio(ce_grads, kd_grads, column, jnp.ones_like(old), jnp.ones_like(seen), eps)

  reweighting._distillation_ratio = variant


def biases_not_scaled():
  import jax.numpy as jnp

  from gr_jax import reweighting
  combine = reweighting.combine

  def variant(ce_grads, kd_grads, *, column, **options):
    combined = combine(ce_grads, kd_grads, column=column, **options)
    if "bias" not in ce_grads:
      return combined
    return {**combined, "bias": combine(ce_grads, kd_grads, column=jnp.ones_like(column), **options)["bias"]}

  reweighting.combine = variant


def holdout_counted():
  import numpy as np

  from gr_jax.scenario import draw
  assert isinstance(draw.Scenario.counts, property)
  draw.Scenario.counts = property(
      lambda self: np.asarray([len(train) + len(held) for train, held in zip(self.train, self.holdout)], np.int64))


class Mutation(NamedTuple):
  """A wrong variant: its name, the function that puts it in place, and arguments of pytest, separated by spaces."""

  name: str
  apply: object
  tests: str


MUTATIONS = (
    Mutation("norms taken before the mean over devices", norms_before_the_mean,
             "tests/training/test_step.py::test_recorded_trajectory"),
    Mutation("Phi updated after the ratios", phi_after_the_ratios, "tests/test_reweighting.py"),
    Mutation("r_o = 1", old_ratio_of_one, "tests/test_reweighting.py"),
    Mutation("h without 0.001", evenness_without_offset, "tests/test_losses.py"),
    Mutation("beta over all columns", beta_over_all_columns, "tests/test_reweighting.py"),
    Mutation("biases not scaled", biases_not_scaled, "tests/test_reweighting.py"),
    Mutation("hold-out counted in n_j", holdout_counted, "tests/scenario/test_scenario.py"),
)


def pytest_sessionstart(session):
  """After conftest.py has chosen the devices, before a test module is imported."""
  del session
  name = os.environ.get(_CHOSEN)
  if name:
    next(mutation for mutation in MUTATIONS if mutation.name == name).apply()


def run_tests(tests, name=""):
  """(exit status of pytest, its last line, what failed but not by an assertion). 0 = passed, 1 = a test failed."""
  environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", _CHOSEN: name}
  # An installed copy of the package must not be tested in place of this one.
  where = subprocess.run([sys.executable, "-c", "import gr_jax; print(gr_jax.__file__)"], cwd=ROOT, env=environment,
                         capture_output=True, text=True, check=True)
  if not where.stdout.strip().startswith(str(ROOT)):
    sys.exit(f"gr_jax comes from {where.stdout.strip()}, not from {ROOT}")
  pytest = [sys.executable, "-m", "pytest", "-p", "mutations", "-o", "addopts=-q", "-p", "no:cacheprovider"]
  done = subprocess.run([*pytest, "-m", "not slow", "--tb=no", "-rfE", *tests.split()], cwd=ROOT, env=environment,
                        capture_output=True, text=True, check=False)
  lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
  broken = [line for line in lines if line.startswith("ERROR ") or
            line.startswith("FAILED ") and re.search(rf" - (\S+\.)?({'|'.join(_BROKEN)})\b", line)]
  return done.returncode, lines[-1], broken


def examine(mutation, baseline):
  """(noticed, what happened). `baseline` holds the results without a change by tests."""
  if mutation.tests not in baseline:
    baseline[mutation.tests] = run_tests(mutation.tests)
  status, line, _ = baseline[mutation.tests]
  if status != 0:
    return False, f"the tests do not pass without the change: {line}"
  status, line, broken = run_tests(mutation.tests, mutation.name)
  if broken:
    return False, f"ADAPT: the variant does not run: {broken[0]}"
  if status == 1:
    return True, f"noticed: {line}"
  return False, f"{'NOT NOTICED' if status == 0 else f'pytest ended with {status}'}: {line}"


def main(chosen):
  """Examines the variants whose names contain one of `chosen`, all by default."""
  selected = [m for m in MUTATIONS if not chosen or any(part in m.name for part in chosen)]
  if not selected:
    sys.exit(f"no such variant; there are: {', '.join(m.name for m in MUTATIONS)}")
  baseline, unnoticed = {}, 0
  for mutation in selected:
    noticed, report = examine(mutation, baseline)
    unnoticed += not noticed
    print(f"{mutation.name:<42} {report}", flush=True)
  sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
  main(sys.argv[1:])
