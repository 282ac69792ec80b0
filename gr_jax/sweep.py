"""Runs a list of settings over several seeds and writes a table:

  python -m gr_jax.sweep --sweep=configs/sweeps/digits_parts.py [--root=runs/digits_parts]

Each run is a separate process, one at a time on each GPU (or on the CPU). Rerun the command to complete the list:
finished runs are skipped, interrupted ones resume.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from gr_jax import cli
from gr_jax.errors import UserError
from gr_jax.runs import journal, signals

_SWEEP = flags.DEFINE_string("sweep", None, "File that defines get_sweep() -> {config, seeds, rows}.")
_ROOT = flags.DEFINE_string("root", None, "Folder for the runs and the table. Default: runs/<sweep name>.")
_ONLY = flags.DEFINE_list("only", [], "Names of the rows to run. Default: all.")
_SEEDS = flags.DEFINE_list("seeds", [], "Seeds, instead of those in the sweep file.")
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE for every run, such as --set=epochs=2.")
_HOLDOUT = flags.DEFINE_bool("holdout", False, "Also evaluate finished runs on their held-out images. Use these, not "
                             "the test set, to choose settings.")
_JOBS = flags.DEFINE_integer("jobs_per_device", 1, "Runs at a time on each GPU.", lower_bound=1)


# Written to a run's folder when its held-out images have been evaluated.
_HOLDOUT_FILE = "holdout.json"


class Sweep(NamedTuple):
  """A list of settings; get_sweep() of a sweep file returns these fields as a dict.

  Attributes:
    config: path of the config that all runs start from.
    seeds: values of `seed`; every row runs with each.
    rows: name of the row -> {config key: value}; the name is part of the folder name.
  """
  config: str
  seeds: Sequence[int]
  rows: Mapping[str, Mapping[str, Any]]


class Run(NamedTuple):
  """One run of a sweep."""
  row: str
  seed: int
  workdir: pathlib.Path
  command: tuple[str, ...]


def load(path: str) -> Sweep:
  """Loads a sweep file.

  Raises:
    UserError: no such file, or no get_sweep() that returns the fields of `Sweep`.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f"--sweep is {path}, but there is no such file")
  spec = importlib.util.spec_from_file_location("sweep_file", path)
  if spec is None or spec.loader is None:
    raise UserError(f"--sweep is {path}; it must be a Python file, NAME.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_sweep"):
    raise UserError(f"{path} defines no get_sweep(); see configs/sweeps/digits_parts.py for an example")
  found = module.get_sweep()
  if set(found) != set(Sweep._fields):
    raise UserError(f"get_sweep() of {path} returns {sorted(found)}; it must be {sorted(Sweep._fields)}")
  return Sweep(**found)


def make_runs(sweep: Sweep, root: pathlib.Path, only: Sequence[str], settings: Sequence[str]) -> list[Run]:
  """Every row with every seed; seeds are the outer loop, so that an interrupted sweep has complete seeds.

  Raises:
    UserError: an unknown row, or a setting that is not KEY=VALUE.
  """
  unknown = [name for name in only if name not in sweep.rows]
  if unknown:
    raise UserError(f"--only has unknown rows: {', '.join(unknown)}; rows are {', '.join(sweep.rows)}")
  wrong = [setting for setting in settings if "=" not in setting]
  if wrong:
    raise UserError(f"--set is {wrong[0]!r}; it takes KEY=VALUE")
  runs = []
  for seed in sweep.seeds:
    for row, changes in sweep.rows.items():
      if only and row not in only:
        continue
      workdir = root / f"{row}-s{seed}"
      overrides = [f"{key}={value}" for key, value in changes.items()]
      runs.append(Run(row, seed, workdir, (
          sys.executable, "-m", "gr_jax.main", f"--config={sweep.config}", f"--workdir={workdir}",
          *[f"--config.{setting}" for setting in (*overrides, *settings, f"seed={seed}")])))
  return runs


def run_all(runs: Sequence[Run], devices: Sequence[str | None]) -> list[Run]:
  """Runs a list, one process at a time on each device; returns the runs that failed.

  Args:
    runs: in starting order.
    devices: CUDA_VISIBLE_DEVICES of each worker; None leaves the environment as it is.
  """
  waiting, failed, stopping = queue.SimpleQueue(), [], threading.Event()
  for run in runs:
    waiting.put(run)

  def finish(run: Run, environment: Mapping[str, str]) -> int:
    run.workdir.parent.mkdir(parents=True, exist_ok=True)
    with (open(f"{run.workdir}.log", "a") as log,
          # A new session, so that Ctrl-C reaches the run only through this process and not also from the terminal.
          subprocess.Popen(run.command, env=environment, stdout=log, stderr=log, start_new_session=True) as process):
      while process.poll() is None:
        # When the sweep exits, so do its runs: the next start needs their folders unlocked.
        if stopping.wait(0.2):
          process.terminate()
          process.wait()
    return process.returncode

  def work(device: str | None) -> None:
    environment = os.environ if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
    while not stopping.is_set():
      try:
        run = waiting.get_nowait()
      except queue.Empty:
        return
      code = finish(run, environment)
      ends = {0: "done", signals.EXIT_CODE: "interrupted, and saved"}
      failure = f"FAILED with code {code}, see {run.workdir}.log"
      print(f"{run.row} seed {run.seed}: {ends.get(code, failure)}", flush=True)
      if code:
        failed.append(run)

  workers = [threading.Thread(target=work, args=(device,)) for device in devices]
  try:
    for worker in workers:
      worker.start()
    # Not join(): a signal that interrupts it makes Python 3.11 take the thread for finished.
    while any(worker.is_alive() for worker in workers):
      time.sleep(0.2)
  finally:
    stopping.set()
    for worker in workers:
      worker.join()
  return failed


def evaluate_holdout(runs: Sequence[Run]) -> None:
  """Writes holdout.json beside the results of finished runs with a hold-out, unless it exists."""
  for run in runs:
    file = run.workdir / _HOLDOUT_FILE
    if (run.workdir / "results.json").exists() and not file.exists() and \
        journal.read_json(run.workdir / "config.json")["validation_fraction"] > 0:
      # In a separate process: this one must not occupy a GPU.
      subprocess.run([sys.executable, "-m", "gr_jax.evaluate", f"--workdir={run.workdir}", f"--holdout_json={file}"],
                     stdout=subprocess.DEVNULL, check=True)


def table(runs: Sequence[Run]) -> str:
  """A Markdown table: mean and standard deviation over the finished seeds, in per cent.

  The last columns are for held-out images, if they have been evaluated.
  """
  held = any((run.workdir / _HOLDOUT_FILE).exists() for run in runs)
  names = ["", "seeds", "average incremental", "last", "forgetting", "minutes a run",
           *(["held out: average", "held out: last"] if held else [])]
  lines = [f"| {' | '.join(names)} |".replace("|  |", "| |"), "|---" * len(names) + "|"]
  for row in dict.fromkeys(run.row for run in runs):
    paths = [run.workdir / "results.json" for run in runs if run.row == row]
    found = [journal.read_json(path) for path in paths if path.exists()]
    if not found:
      lines.append(f"| {row} | 0 of {len(paths)} | not run {'| ' * (len(names) - 3)}|")
      continue
    cells = [_spread([100 * r["average_incremental_accuracy"] for r in found]),
             _spread([100 * r["last_accuracy"] for r in found]),
             _spread([100 * lost for r in found if (lost := r["forgetting"][-1]) is not None]),
             f"{np.mean([r['seconds'] for r in found]) / 60:.1f}"]
    if held:
      files = [path.with_name(_HOLDOUT_FILE) for path in paths]
      numbers = [journal.read_json(path)["holdout_accuracies"] for path in files if path.exists()]
      cells += [_spread([100 * np.mean(one) for one in numbers]), _spread([100 * one[-1] for one in numbers])]
    seeds = str(len(found)) if len(found) == len(paths) else f"{len(found)} of {len(paths)}"
    lines.append(f"| {row} | {seeds} | {' | '.join(cells)} |")
  return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
  """The mean and, for two or more values, the sample standard deviation."""
  if not values:
    return "-"
  return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def _devices(jobs: int) -> list[str | None]:
  """CUDA_VISIBLE_DEVICES of each worker. Found in a separate process: this one must not occupy a GPU."""
  code = "import jax; print([d.platform for d in jax.local_devices()].count('gpu'))"
  count = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                             check=True).stdout.split()[-1])
  given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
  names = given.split(",") if given else [str(i) for i in range(count)]
  return [name for name in names[:count] for _ in range(jobs)] or [None]


def _leave(number: int, frame: Any) -> None:
  del frame
  raise signals.Interrupted(f"{signal.Signals(number).name} received, and every run was asked to save; rerun the "
                            f"command to resume")


def main(argv: list[str]) -> None:
  del argv
  if _SWEEP.value is None:
    raise UserError("--sweep is missing; use for example --sweep=configs/sweeps/digits_parts.py")
  sweep = load(_SWEEP.value)
  if not all(seed.isdecimal() for seed in _SEEDS.value):
    raise UserError(f"--seeds is {','.join(_SEEDS.value)}; it takes numbers separated by commas, such as 0,1,2")
  if _SEEDS.value:
    sweep = sweep._replace(seeds=[int(seed) for seed in _SEEDS.value])
  root = pathlib.Path(_ROOT.value or f"runs/{pathlib.Path(_SWEEP.value).stem}").expanduser()
  runs = make_runs(sweep, root, _ONLY.value, _SET.value)
  devices = _devices(_JOBS.value)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _leave)
  failed = run_all(runs, devices)
  if _HOLDOUT.value:
    evaluate_holdout([run for run in runs if run not in failed])
  # The folder of a failed run may contain results of another config.
  text = table([run._replace(workdir=pathlib.Path("refused")) if run in failed else run for run in runs])
  (root / "table.md").write_text(text + "\n")
  print(text)
  if failed:
    raise UserError(f"{len(failed)} of {len(runs)} runs failed; see their logs in {root}, then rerun the command")


if __name__ == "__main__":
  cli.run(main)
