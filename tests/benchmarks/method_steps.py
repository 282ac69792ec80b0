"""Seconds of a step of every method's stages, beside finetuning's, in one process and one hour.

  python tests/benchmarks/method_steps.py --data_dir=FOLDER [--json=FILE] [--methods=gr,wa] [--precision=float32]

A step of the second task of `configs/cifar100_lt.py`, for the rows of `configs/sweeps/cifar100_methods.py`. Finetuning
is timed again after every method, since a machine's speed changes within minutes: a ratio is over the mean of the
timings before and after.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Recipes import each other from this checkout.
sys.path.insert(0, str(ROOT))


def rows_of_the_sweep() -> dict[str, dict[str, Any]]:
  """Name -> changed config keys."""
  return _module(ROOT / "configs" / "sweeps" / "cifar100_methods.py").get_sweep()["rows"]


def timings(rows: dict[str, dict[str, Any]], *, config: str, calls: int, steps: int, **changes: Any) -> dict[str, Any]:
  """Times the stages of the second task.

  Args:
    rows: name -> changed config keys.
    config: a file of configs/.
    calls, steps: timed calls, and steps in each.
    changes: config keys for all rows.

  Returns:
    {"devices", "precision", "date", "versions", "processor", "methods": {name: {"stages": {stage: median seconds of a
    step}, "finetune": the same of finetuning around it}}}.
  """
  # After the flags are checked: importing JAX takes a second.
  import jax

  from gr_jax import origin
  from gr_jax.benchmarking.steps import Bench
  from gr_jax.data.arrays import Data
  from gr_jax.devices import convolution_library
  from gr_jax.training import experiment as experiments
  from gr_jax.training import pictures as loading
  convolution_library.enable()
  source, images = None, None

  def prepared(row: dict[str, Any]) -> tuple[Any, list[tuple[Bench, Any, Any]]]:
    nonlocal source, images
    recipe = _module(ROOT / config).get_config()
    with recipe.unlocked():
      # A small rate, since a loss that diverges would end a call early. It does not change the time.
      recipe.update_from_flattened_dict({"learning_rate": 1e-3, **row, **changes})
    setting = experiments.load(recipe, source=source)
    source = setting.source
    if images is None:
      images = loading.load(setting, "train", lambda items, **_: items)
      assert isinstance(images, Data)
    benches = [Bench(setting, images, plan, calls, steps) for plan in setting.plans[1].stages]
    return setting, [(bench, bench.program(), bench.arguments()) for bench in benches]

  def timed(bench: Bench, program: Any, arguments: Any) -> float:
    # The state is donated.
    fresh = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, arguments)
    return bench.time(program, fresh).median

  first, (reference,) = prepared({"method": "finetune"})
  measured: dict[str, Any] = {}
  before = timed(*reference)
  for name, row in rows.items():
    stages = {bench.plan.name: timed(bench, program, arguments) for bench, program, arguments in prepared(row)[1]}
    after = timed(*reference)
    measured[name] = {"stages": stages, "finetune": (before + after) / 2}
    shown = ", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in stages.items())
    # At once: later rows take minutes.
    print(f"{name}: {shown}; finetune {1000 * measured[name]['finetune']:.0f} ms", flush=True)
    before = after
  return {"precision": first.precision, **origin.describe(first.devices), "methods": measured}


def _module(path: pathlib.Path) -> Any:
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/cifar100_lt.py")
  parser.add_argument("--data_dir", default=None)
  parser.add_argument("--precision", default="float32")
  parser.add_argument("--methods", default=None, help="rows of the sweep, separated by commas; default: all")
  parser.add_argument("--calls", type=int, default=3)
  parser.add_argument("--steps", type=int, default=3)
  parser.add_argument("--json", type=pathlib.Path, default=None)
  given = parser.parse_args()
  rows = rows_of_the_sweep()
  names = list(rows) if given.methods is None else given.methods.split(",")
  unknown = [name for name in names if name not in rows]
  if unknown:
    parser.error(f"--methods has {', '.join(unknown)}; the sweep has {', '.join(rows)}")
  import jax
  # Programs with oneDNN cannot be cached, and the attempt takes time.
  jax.config.update("jax_enable_compilation_cache", False)
  report = timings({name: rows[name] for name in names}, config=given.config, calls=given.calls, steps=given.steps,
                   precision=given.precision, data_dir=given.data_dir)
  if given.json:
    given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
  main()
