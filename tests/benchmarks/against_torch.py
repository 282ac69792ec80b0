"""gr_jax's train step against PyTorch's, on this machine, in one run.

  python tests/benchmarks/against_torch.py [--jax-python=PATH] [--torch-python=PATH] [--bfloat16]
      [--batch=128] [--steps=..] [--rounds=..] [--device=cpu|cuda] [--json=..]

The last of ten tasks of ten classes of a long-tailed CIFAR-100: ResNet-32, all 100 classes seen, a teacher,
random pictures of 32x32 in the device's memory. The sides: gr_jax's step inside its multi-step program, as
`make_program` runs it; the step as the authors' release builds it; the best plain PyTorch, eager and compiled
(sides.py, torch_steps.py). Three tables: without augmentation; with each side's own; the method's own cost in
gr_jax. float32 is compared with float32, and bfloat16 with bfloat16 in tables of its own.

How it is timed. Each side lives in a process of its own with all cores, under the interpreter that
--jax-python or --torch-python names. In a round every program runs `steps` steps and waits for the device, one
after the other, each round beginning with another one; the first round is dropped. Meanwhile the other
processes wait for a line on a pipe. Their threads may spin for some milliseconds after their last work
(OpenMP's and XLA's pools both do), so a short pause precedes each turn; what CPU time a process spends between
its turns is measured and printed, and should be next to nothing. Ratios are taken within a round, then their
median, so a load that comes and goes touches both sides; but the machine must be quiet all the same, since
PyTorch's threads wait for each other in a spin and suffer from a busy core far more than XLA's.

Each call of gr_jax's program has fresh memory, and touching it first costs 60 to 100 ms (bfloat16, two cores: 300 to
340 ms where a call is one step, 240 ms a step where it is ten). A call of a run has `steps_per_call` = 100 steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import time

import interpreters
import sides
from interpreters import JAX, TORCH
from sides import AUGMENTED, BFLOAT16, CHEAP, CLASSES, OURS, PLAIN, TASK_SIZE

_PAUSE = 0.05
_PACKAGES = {JAX: ("jax", "flax", "optax"), TORCH: ("torch",)}


# ------------------------------------------------------------------------------------------------ the processes


def measure(options: argparse.Namespace) -> dict:
  """Runs all rounds; returns what the JSON file holds."""
  pythons = {framework: interpreters.check(framework, getattr(options, f"{framework}_python"), packages)[0]
             for framework, packages in _PACKAGES.items()}
  # Several processes share the GPU, so none takes all of its memory.
  changes = {"JAX_PLATFORMS": options.device, "JAX_NUM_CPU_DEVICES": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  load = os.getloadavg()[0]
  with contextlib.ExitStack() as closing:
    workers, answers = {}, {}
    for name, side in sides.make_sides(options).items():
      workers[name] = closing.enter_context(interpreters.Worker(
          name, pythons[side.framework], interpreters.FOLDER / "sides.py", changes))
      answers[name] = workers[name].ask({"side": name, "options": vars(options)})
      built = ", ".join(f"{program} {seconds:.0f} s" for program, seconds in answers[name]["first call"].items())
      print(f"{name} ({described(answers[name]['about'])}): first calls {built}", flush=True)
      for program, reason in answers[name]["failed"].items():
        print(f"  {program} failed: {reason}", flush=True)
    seconds, idle = take_turns(workers, answers, options)
  return {
      "options": interpreters.recorded(options), "machine": platform.machine(), "cores": len(os.sched_getaffinity(0)),
      "date": time.strftime("%Y-%m-%d", time.gmtime()), "load_before": load, "sides": answers, "idle_cpu_seconds": idle,
      "seconds_per_step": {program: {name: times for (name, p), times in seconds.items() if p == program}
                           for program in (PLAIN, AUGMENTED, CHEAP)}}


def described(about: dict) -> str:
  """Versions of a side and what it runs on."""
  versions = [f"{name} {about[name]}" for name in ("python", JAX, TORCH) if about.get(name)]
  return ", ".join([*versions, *(about[name] for name in ("device", "convolutions") if about.get(name))])


def take_turns(workers: dict, answers: dict, options: argparse.Namespace) -> tuple[dict, dict]:
  """({(side, program): seconds per step in each counted round}, {side: most CPU time between two turns})."""
  turns = [(name, program) for program in (PLAIN, AUGMENTED, CHEAP) for name in answers
           if program in answers[name]["first call"]]
  seconds, idle = {turn: [] for turn in turns}, dict.fromkeys(answers, 0.0)
  for i in range(options.rounds + 1):
    shift = i % len(turns)
    for name, program in turns[shift:] + turns[:shift]:
      time.sleep(_PAUSE)
      turn = workers[name].ask({"run": program})
      if i > 0:
        seconds[name, program].append(turn["seconds"] / options.steps)
        idle[name] = max(idle[name], turn["idle"])
  return seconds, idle


# --------------------------------------------------------------------------------------------------- the tables


def row(name: str, times: list[float], base: list[float], batch: int) -> str:
  ratios = [t / b for t, b in zip(times, base)]
  middle = statistics.median(times)
  return (f"{name:<48}{1e3 * middle:9.1f} {f'({1e3 * min(times):.1f}-{1e3 * max(times):.1f})':<17}"
          f"{batch / middle:9.0f}{statistics.median(ratios):9.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def report(measured: dict) -> str:
  """The tables as text."""
  options, steps, batch = measured["options"], measured["seconds_per_step"], measured["options"]["batch"]
  heading = f"{'':<48}{'ms/step':>9} {'(range)':<17}{'images/s':>9}{'ratio':>9} (range)"
  lines = [f"{measured['date']}, {options['device']}, {measured['cores']} cores, load before: "
           f"{measured['load_before']:.1f}",
           *(f"{name}: {line}" for name, line in versions(measured).items()),
           f"ResNet-32, batch {batch}, {CLASSES} classes in {CLASSES // TASK_SIZE} heads, later "
           f"task with teacher; median of {options['rounds']} rounds of {options['steps']} steps"]
  titles = {PLAIN: "without augmentation", AUGMENTED: "each side with its own augmentation"}
  for suffix, precision in precisions(options).items():
    base = OURS + suffix
    rows = {name: side for name, side in measured["sides"].items() if name.endswith(BFLOAT16) == bool(suffix)}
    for program, title in titles.items():
      lines += ["", f"{precision}, {title}; ratio = time over gr_jax's in {precision}", heading]
      for name, side in rows.items():
        if name in steps[program] and base in steps[program]:
          lines.append(row(name, steps[program][name], steps[program][base], batch))
        elif name in steps[program]:
          lines.append(f"{name:<48}{1e3 * statistics.median(steps[program][name]):9.1f} (no ratio: {base} failed)")
        elif program in side["failed"]:
          lines.append(f"{name:<48} failed: {side['failed'][program]}")
    if base in steps[CHEAP] and base in steps[PLAIN]:
      lines += ["", f"{precision}, the method's own cost in gr_jax; ratio = time over that of plain losses", heading,
                row(f"{base}: cross-entropy and plain distillation", steps[CHEAP][base], steps[CHEAP][base], batch),
                row(f"{base}: reweighting and DAKD", steps[PLAIN][base], steps[CHEAP][base], batch)]
  waiting = ", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in measured["idle_cpu_seconds"].items())
  return "\n".join([*lines, "", f"Most CPU time spent while waiting for a turn, ms: {waiting}"])


def precisions(options: dict) -> dict[str, str]:
  """What the names of a table's rows end with -> the precision."""
  single = "float32" if options["device"] == "cpu" else "TF32"
  return {"": single, BFLOAT16: "bfloat16"} if options["bfloat16"] else {"": single}


def versions(measured: dict) -> dict[str, str]:
  """gr_jax's and PyTorch's versions, from the first side of each."""
  about = [side["about"] for side in measured["sides"].values()]
  first = {name: next((one for one in about if framework in one), None)
           for name, framework in (("gr_jax", JAX), ("PyTorch", TORCH))}
  return {name: described(one) for name, one in first.items() if one}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  interpreters.add_flags(parser)
  parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--steps", type=int, help="of a program in a round; default 10 on the CPU, 200 on a GPU")
  parser.add_argument("--rounds", type=int, default=7, help="that count; one more goes before them")
  parser.add_argument("--workers", type=int,
                      help="of the released step's data loader; default 0 on the CPU, 4 on a GPU")
  parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction,
                      help="also compare in bfloat16, in tables of its own; default: only on a GPU")
  parser.add_argument("--json", help="where to put every measured figure")
  options = parser.parse_args(arguments)
  on_gpu = options.device == "cuda"
  for name, on_cpu, otherwise in (("steps", 10, 200), ("workers", 0, 4), ("bfloat16", False, True)):
    if getattr(options, name) is None:
      setattr(options, name, otherwise if on_gpu else on_cpu)
  return options


def main() -> None:
  options = parse_options()
  measured = measure(options)
  print(f"\n{report(measured)}")
  if options.json:
    with open(options.json, "w") as file:
      json.dump(measured, file, indent=1)


if __name__ == "__main__":
  main()
