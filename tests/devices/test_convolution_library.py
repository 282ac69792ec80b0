"""Switching oneDNN on: each case in a process of its own, since XLA reads its flags once."""

import subprocess
import sys

import jaxlib
import pytest
import runs

FLAG = "--xla_cpu_experimental_onednn_custom_call"
OTHER = "--xla_cpu_experimental_ynn_fusion_type"

HAS_ONEDNN = tuple(map(int, jaxlib.__version__.split(".")[:2])) >= (0, 12)
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason=f"jaxlib {jaxlib.__version__} has no oneDNN")


def run(code, flags=None):
  """Prints of a fresh process in which `library` is the module; `flags`: XLA_FLAGS, None: not set."""
  environment = {name: value for name, value in runs.environment(JAX_COMPILATION_CACHE_DIR="").items()
                 if name != "XLA_FLAGS"}
  done = subprocess.run(
      [sys.executable, "-W", "error", "-c",
       f"import os\nfrom gr_jax.devices import convolution_library as library\n{code}"],
      env=environment if flags is None else {**environment, "XLA_FLAGS": flags}, text=True, capture_output=True,
      timeout=120, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


@needs_onednn
def test_enabled_and_again():
  once, twice, known, used, said = run("""
library.enable()
print(os.environ["XLA_FLAGS"])
library.enable()
print(os.environ["XLA_FLAGS"])
print(library._unknown())
print(library.in_use())
print(library.describe())
""")
  assert sorted(flag.split("=")[0] for flag in once.split()) == [FLAG, OTHER] and f"{FLAG}=true" in once.split()
  assert twice == once and known == "[]"
  assert used == "oneDNN" and said.startswith("convolutions: oneDNN")


@needs_onednn
def test_what_the_user_says_stays_and_wins():
  given = f"{FLAG}=false --xla_cpu_enable_fast_math=false"
  flags, used, said = run("""
library.enable()
print(os.environ["XLA_FLAGS"])
print(library.in_use())
print(library.describe())
""", given)
  assert flags.startswith(given) and flags.count(FLAG) == 1
  assert used == "XLA"
  assert said == f"convolutions: XLA (oneDNN is off or does not support this processor; XLA_FLAGS is '{flags}')"


@needs_onednn
def test_other_flags_stay():
  given = "--xla_cpu_enable_fast_math=false"
  flags, used = run("library.enable(); print(os.environ['XLA_FLAGS']); print(library.in_use())", given)
  assert flags.startswith(given + " ") and f"{FLAG}=true" in flags.split() and used == "oneDNN"


@needs_onednn
def test_after_jax_has_started_nothing_changes():
  flags, used, said = run("""
import jax
jax.devices()
library.enable()
print(os.environ.get("XLA_FLAGS"))
print(library.in_use())
print(library.describe())
""")
  assert (flags, used) == ("None", "XLA")
  assert said.startswith("convolutions: XLA (JAX was initialised before oneDNN")
  # The remedy, to be copied.
  assert f"XLA_FLAGS='{FLAG}=true " in said


@pytest.mark.parametrize("version", [None, "0.10.2", "0.11.99"])
def test_a_jaxlib_without_it_is_left_alone(version):
  if version is None and HAS_ONEDNN:
    pytest.skip("the installed jaxlib has oneDNN")
  flags, said = run(f"""
import jaxlib
if {version!r}:
  jaxlib.__version__ = {version!r}
library.enable()
print(os.environ.get("XLA_FLAGS"))
print(library.describe())
""")
  assert flags == "None"
  assert said == "convolutions: XLA (oneDNN is faster; it needs jaxlib 0.12 and Python 3.12 or newer)"


def test_a_jaxlib_that_does_not_know_the_flag_goes_on():
  """An unknown flag in XLA_FLAGS would end the process, so it never comes there."""
  flags, number, said = run("""
import jaxlib
jaxlib.__version__ = "0.99.0"
library._FLAGS = {"xla_cpu_no_such_flag_at_all": "true"}
library.enable()
print(os.environ.get("XLA_FLAGS"))
import jax
print(jax.numpy.ones(3).sum())
print(library.describe())
""")
  assert (flags, number) == ("None", "3.0")
  assert said == "convolutions: XLA (jaxlib 0.99.0 does not have the flag xla_cpu_no_such_flag_at_all)"


@needs_onednn
def test_flags_in_jaxlib_are_found_quickly():
  """A search of jaxlib's code at each start: not to be felt."""
  seconds, = run("""
import time
library._unknown()
library._unknown.cache_clear()
start = time.perf_counter()
library._unknown()
print(time.perf_counter() - start)
""")
  assert float(seconds) < 2


def test_a_run_says_which_library_it_has(tmp_path):
  done = runs.run("main", *runs.SHORT, "--config.stop_after_task=1", f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 0, done.stderr
  expected = "oneDNN" if HAS_ONEDNN else "XLA"
  assert f"\nprecision: float32; convolutions: {expected}" in done.stdout
  assert runs.results(tmp_path / "run")["versions"]["convolutions"] == expected


_TRAINING = """
library.enable()
import jax, jax.numpy as jnp, numpy as np
from gr_jax import models
model = models.make_backbone("resnet18", platform="cpu", precision={precision!r})
rng = np.random.default_rng(0)
images = jnp.asarray(rng.normal(size=(16, 64, 64, 3)), jnp.float32)
targets = jnp.asarray(rng.normal(size=(16, 512)), jnp.float32)
# Shapes alone: compiling the draws of the real initialisation takes minutes.
def draw(path, leaf):
  if path[-1].key == "kernel":
    return jnp.asarray(rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:2]) / leaf.shape[3]), leaf.shape), jnp.float32)
  return jnp.full(leaf.shape, float(path[-1].key in ("scale", "var")))
shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
variables = jax.tree.map_with_path(draw, shapes)

def step(variables, _):
  def loss(params):
    (features, _), updated = model.apply(dict(variables, params=params), images, train=True, mutable=["batch_stats"])
    return jnp.mean(jnp.square(features - targets)), updated["batch_stats"]
  (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
  params = jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], grads)
  norms = jnp.stack([jnp.linalg.norm(grad) for grad in jax.tree.leaves(grads)])
  return dict(params=params, batch_stats=statistics), (value, norms)

print(library.in_use())
_, (losses, norms) = jax.jit(lambda variables: jax.lax.scan(step, variables, length=4))(variables)
print(*losses.tolist())
print(*norms[0].tolist())
"""


@needs_onednn
@pytest.mark.slow
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-3), ("bfloat16", 3e-2)])
def test_resnet18_trains_alike_with_both(precision, tolerance):
  """Batches of pictures as ImageNet's network sees them: the losses of four steps, every gradient of the first."""
  by_library = {}
  for flags in (None, f"{FLAG}=false"):
    used, losses, norms = run(_TRAINING.format(precision=precision), flags)
    by_library[used] = [list(map(float, line.split())) for line in (losses, norms)]
  (losses, norms), (expected, expected_norms) = by_library["oneDNN"], by_library["XLA"]
  assert losses == pytest.approx(expected, rel=tolerance) and losses[-1] < 0.99 * losses[0]
  assert norms == pytest.approx(expected_norms, rel=10 * tolerance, abs=1e-6)
