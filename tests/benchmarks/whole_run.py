"""A whole run of gr_jax against the same run in PyTorch, on this machine, from process start to process end.

  python tests/benchmarks/whole_run.py [--jax-python=PATH] [--torch-python=PATH] [--data_dir=..] [--epochs=3]
      [--milestones=80,120] [--precision=float32|bfloat16] [--device=cpu|cuda] [--workers=0] [--json=..]

CIFAR-100-LT, learning from half, six tasks. Three processes, one after another: `python -m gr_jax.main` with an
empty compilation cache, so that it compiles everything; the same with the cache that the first one has filled,
in a new workdir; torch_run.py, the same run in the structure of the authors' release. Wall time of each, its
parts as far as the side can tell, and the accuracies after each task, which must be of similar size (the two
draw other random numbers).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import interpreters
from interpreters import JAX, TORCH

FIRST, SECOND = "gr_jax, empty compilation cache", "gr_jax, filled compilation cache"
RELEASED = "PyTorch, structured as the release"
TRAINING, LOOKING, REST = "training", "evaluation, selection", "start, loading, end"

_DATA = ("numpy", "ml_collections", "tensorflow_datasets", "array_record")
_PACKAGES = {JAX: ("jax", "flax", "optax", *_DATA), TORCH: ("torch", *_DATA)}
# Of a failed side's output, what is shown.
_LAST_LINES = 20


def measure(options: argparse.Namespace) -> dict[str, Any]:
  """Runs all sides; returns what the JSON file holds.

  Raises:
    SystemExit: an interpreter that cannot be used, or a side that fails; with its last lines.
  """
  checked = {framework: interpreters.check(framework, getattr(options, f"{framework}_python"), packages)
             for framework, packages in _PACKAGES.items()}
  sides = {}
  with tempfile.TemporaryDirectory(prefix="whole-run-") as name:
    folder = pathlib.Path(name)
    for side in (FIRST, SECOND, RELEASED):
      framework = TORCH if side == RELEASED else JAX
      python, versions = checked[framework]
      answer = folder / f"{len(sides)}"
      command = (torch_command if framework == TORCH else jax_command)(options, folder, answer)
      print(f"{side}: running", flush=True)
      load, (seconds, output) = os.getloadavg()[0], timed(side, [python, *command], options)
      parts, entry = (torch_results if framework == TORCH else jax_results)(answer, output)
      parts[REST] = seconds - sum(parts.values())
      sides[side] = {"seconds": seconds, "parts": parts, "load_before": load, "versions": versions, **entry}
      print(f"{side}: {seconds:.1f} s, last accuracy {100 * entry['task_accuracies'][-1]:.2f} %", flush=True)
  digests = {side["scenario_digest"] for side in sides.values()}
  if len(digests) > 1:
    raise SystemExit(f"error: the sides learnt different images (digests {', '.join(sorted(digests))}); this is a bug")
  return {"options": interpreters.recorded(options), "date": time.strftime("%Y-%m-%d", time.gmtime()),
          "machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "sides": sides,
          "ratios": {side: sides[RELEASED]["seconds"] / sides[side]["seconds"] for side in (FIRST, SECOND)}}


def jax_command(options: argparse.Namespace, folder: pathlib.Path, workdir: pathlib.Path) -> list[str]:
  """Both starts of gr_jax share the compilation cache, nothing else."""
  data = [f"--config.data_dir={options.data_dir}"] if options.data_dir else []
  # PyTorch computes in float32 on a CPU and in TF32 on a GPU; "auto" is TF32 there.
  precision = "auto" if (options.precision, options.device) == ("float32", "cuda") else options.precision
  steps = ", ".join(options.milestones.split(","))
  return ["-m", "gr_jax.main", f"--config={options.config}", f"--config.epochs={options.epochs}",
          f"--config.milestones=({f'{steps},' if steps else ''})", f"--config.precision={precision}", *data,
          f"--workdir={workdir}", f"--compilation_cache={folder / 'compilation_cache'}"]


def torch_command(options: argparse.Namespace, folder: pathlib.Path, answer: pathlib.Path) -> list[str]:
  del folder
  data = [f"--data_dir={options.data_dir}"] if options.data_dir else []
  return [str(interpreters.FOLDER / "torch_run.py"), f"--config={options.config}", f"--epochs={options.epochs}",
          f"--milestones={options.milestones}", f"--precision={options.precision}", f"--device={options.device}",
          f"--workers={options.workers}", *data, f"--json={answer}"]


def timed(side: str, command: Sequence[str], options: argparse.Namespace) -> tuple[float, list[str]]:
  """(wall time from start to end, lines of output).

  Raises:
    SystemExit: the command fails.
  """
  changes = interpreters.environment({"JAX_PLATFORMS": options.device, "JAX_NUM_CPU_DEVICES": "1"})
  start = time.perf_counter()
  done = subprocess.run(command, cwd=interpreters.ROOT, env=changes, stdin=subprocess.DEVNULL, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  seconds, lines = time.perf_counter() - start, done.stdout.splitlines()
  if done.returncode:
    raise SystemExit("\n".join([*lines[-_LAST_LINES:], f"error: {side} ended with code {done.returncode}; its last "
                                f"lines stand above. The command: {' '.join(command)}"]))
  return seconds, lines


def jax_results(workdir: pathlib.Path, output: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
  """(seconds of the parts, what else is known) of a finished run of gr_jax.

  Its rows hold the time since the first task began: an epoch's at the end of its last step, a task's after
  evaluation and selection. The first steps' compilation counts as training.
  """
  results = json.loads((workdir / "results.json").read_text())
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  parts, before = {TRAINING: 0.0, LOOKING: 0.0}, 0.0
  for row in rows:
    parts[TRAINING if row["kind"] == "epoch" else LOOKING] += row["seconds"] - before
    before = row["seconds"]
  return parts, {
      "task_accuracies": results["task_accuracies"], "scenario_digest": results["scenario_digest"],
      "device": results["devices"], "precision": results["precision"], "processor": results["processor"],
      "commit": results["versions"].get("commit"),
      # "precision: float32; convolutions: oneDNN"
      "computation": next((line for line in output if line.startswith("precision: ")), None)}


def torch_results(answer: pathlib.Path, output: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
  """The same of torch_run.py; "seconds" of its parts stay as they are in the JSON file."""
  del output
  results = json.loads(answer.read_text())
  spent = results["seconds"]
  return {TRAINING: spent["training"], LOOKING: spent["evaluation"] + spent["selection"]}, {
      "task_accuracies": results["task_accuracies"], "scenario_digest": results["scenario_digest"],
      "device": results["device"], "precision": results["precision"], "workers": results["workers"],
      "own_clock": spent}


def report(measured: dict[str, Any]) -> str:
  """The tables as text."""
  options, sides = measured["options"], measured["sides"]
  lines = [f"{measured['date']}, {options['device']}, {measured['cores']} cores, {options['precision']}; "
           f"{options['config']}, {options['epochs']} epochs a task, milestones ({options['milestones']})"]
  for name in (FIRST, RELEASED):
    side = sides[name]
    versions = ", ".join(f"{package} {side['versions'][package]}" for package in ("python", JAX, TORCH)
                         if package in side["versions"])
    lines.append(f"{name.split(',')[0]}: {versions}, {side['device']}"
                 + (f", {side['computation']}" if side.get("computation") else "")
                 + (f", {side['workers']} loader workers" if "workers" in side else ""))
  parts = (TRAINING, LOOKING, REST)
  lines += ["", f"{'seconds':<36}{'in all':>9}" + "".join(f"{part:>24}" for part in parts) + f"{'load before':>13}"]
  lines += [f"{name:<36}{side['seconds']:9.1f}" + "".join(f"{side['parts'][part]:24.1f}" for part in parts)
            + f"{side['load_before']:13.1f}" for name, side in sides.items()]
  clock = ", ".join(f"{part} {seconds:.1f}" for part, seconds in sides[RELEASED]["own_clock"].items())
  lines += [f"PyTorch by its own clock: {clock}", "",
            f"PyTorch's time over gr_jax's: {measured['ratios'][FIRST]:.2f} with an empty compilation cache, "
            f"{measured['ratios'][SECOND]:.2f} with a filled one", "", "Accuracy after each task, %"]
  lines += [f"{name:<36}" + "".join(f"{100 * value:7.2f}" for value in side["task_accuracies"])
            for name, side in sides.items()]
  return "\n".join(lines)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  interpreters.add_flags(parser)
  parser.add_argument("--config", default="configs/cifar100_lt.py", help="a path from the project's root, or absolute")
  parser.add_argument("--data_dir", help="TFDS's data folder; default: TFDS_DATA_DIR, else TFDS's own")
  parser.add_argument("--epochs", type=int, default=3, help="of a task")
  parser.add_argument("--milestones", default="", help="joined by commas; default: none")
  parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32",
                      help="of both sides; on a GPU float32 stands for TF32")
  parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
  parser.add_argument("--workers", type=int, default=0, help="of PyTorch's data loaders; 0: in its main process")
  parser.add_argument("--json", help="where to put every measured figure")
  options = parser.parse_args(arguments)
  if options.data_dir:
    # Both sides run in the project's root.
    options.data_dir = os.path.abspath(os.path.expanduser(options.data_dir))
  return options


def main() -> None:
  options = parse_options()
  measured = measure(options)
  print(f"\n{report(measured)}")
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
  main()
