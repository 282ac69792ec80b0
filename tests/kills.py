"""Kills short runs with SIGKILL at random moments until all of them end, and compares them with an unbroken run.

  python tests/kills.py [--kills=30] [--seed=0] [--signal=KILL] [--folder=...]

A script, not a test: some minutes. Half of the kills fall at a random moment of a start's life, the other half shortly
after the run has entered a phase chosen at random (a save, a selection, an evaluation). A run is killed three times,
then it is let go to its end. Prints where the kills fell; exit status 0 only if every run ended bit-equal to the
unbroken one, and no row before a checkpoint was written twice.

--signal=TERM asks instead, and in a third of the cases a second time a moment later: the run must end by itself, in
time and with the exit code that is documented.
"""

import argparse
import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import runs
from absl import logging

_KILLS_PER_RUN = 3

# The exit code of a run that was asked to end, as the README has it.
_SAVED = 75

# Seconds that a run may take to end after SIGTERM: what is left of a call, a selection and an evaluation, and a save.
_ENDS_WITHIN = 60
_BY_CHANCE = ("a save", "a selection", "an evaluation")


def settings():
  return {"epochs": 6, "milestones": (4,), "scenario.num_tasks": 3, "checkpoint_every_epochs": 2,
          "evaluation_block": 50, "steps_per_call": 1}


def learn(workdir, phase_file):
  """The run itself, in a process of its own, which notes the phase it is in: one pwrite at each change."""
  os.environ["JAX_NUM_CPU_DEVICES"] = "1"
  from gr_jax import memory, train
  from gr_jax.devices import compilation_cache
  from gr_jax.runs import checkpoints, loop, signals
  from gr_jax.training import evaluation
  compilation_cache.enable(None)
  file = os.open(phase_file, os.O_CREAT | os.O_WRONLY)

  def during(phase, function):
    def noted(*args, **kwargs):
      enter(phase)
      try:
        return function(*args, **kwargs)
      finally:
        enter("a step")
    return noted

  def enter(phase):
    os.pwrite(file, phase.ljust(16).encode(), 0)

  enter("the start")
  checkpoints.Checkpoints.save = during("a save", checkpoints.Checkpoints.save)
  memory.select = during("a selection", memory.select)
  evaluator = evaluation.make_evaluator
  evaluation.make_evaluator = lambda *args, **options: during("an evaluation", evaluator(*args, **options))
  loop.run_stage = during("a step", loop.run_stage)
  try:
    train.train(runs.get_config("digits_lt", **settings()), workdir)
  except signals.Interrupted:
    sys.exit(signals.EXIT_CODE)


def start(workdir, phase_file):
  pathlib.Path(phase_file).write_text("the start")
  return subprocess.Popen([sys.executable, __file__, "--learn", str(workdir), str(phase_file)], cwd=runs.ROOT,
                          env=runs.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def phase_of(phase_file):
  return pathlib.Path(phase_file).read_text().strip()


def kill(process, phase_file, workdir, chance, life, number):
  """Sends a signal at a moment that `chance` picks.

  Returns:
    (the phase it fell into or None where the run had ended before, what is wrong with its end or "").
  """
  aim = chance.choice(_BY_CHANCE) if chance.random() < 0.5 else None
  moment = time.monotonic() + (chance.uniform(0, life) if aim is None else 10 * life)
  # An aimed kill lets some of the phases pass, so that it is not always the first one.
  passing, inside = chance.randrange(4), False
  while process.poll() is None and time.monotonic() < moment:
    if aim is not None:
      now = phase_of(phase_file) == aim
      passing -= now and not inside
      inside = now
      if inside and passing < 0:
        time.sleep(chance.uniform(0, 0.03))
        break
    time.sleep(0.0005)
  phase = phase_of(phase_file)
  if phase == "a step" and any("orbax-checkpoint-tmp" in path.name for path in (workdir / "checkpoints").glob("*")):
    phase = "a step, while a save went on behind it"
  process.send_signal(number)
  twice = number == signal.SIGTERM and chance.random() < 1 / 3
  if twice:
    time.sleep(chance.uniform(0, 0.2))
    process.send_signal(number)
  try:
    code = process.wait(timeout=_ENDS_WITHIN)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()
    return phase, f"does not end within {_ENDS_WITHIN} s of {signal.Signals(number).name} in {phase}"
  if code == 0:
    return None, ""
  expected = {-number}
  if number == signal.SIGTERM:
    expected = {_SAVED, *([128 + number] if twice else [])}
    # Until it has loaded its pictures a signal ends it as any program, and it may leave the start meanwhile.
    expected |= {-number} if phase == "the start" else set()
  return phase, "" if code in expected else f"ends with {code} after {signal.Signals(number).name} in {phase}"


def rows_run_again(workdir, checkpointed):
  """Rows that a later start wrote for steps that a checkpoint held when that start began."""
  return [row for row in runs.rows(workdir)
          if row["start"] > 1 and row["global_step"] <= checkpointed.get(row["start"], 0)]


def differences(unbroken, workdir, sent):
  """What is not bit-equal: names of results, rows, checkpoints. Where SIGTERM made one more, not all have the same."""
  unequal = []
  if runs.timeless(runs.results(unbroken)) != runs.timeless(runs.results(workdir)):
    unequal.append("results.json")
  if list(map(runs.timeless, runs.rows(unbroken))) != list(map(runs.timeless, runs.rows(workdir))):
    unequal.append("metrics.jsonl")
  ours, theirs = runs.records(unbroken), runs.records(workdir)
  steps = ours.keys() | theirs.keys() if sent == signal.SIGKILL else ours.keys() & theirs.keys()
  return unequal + [f"checkpoint {step}" for step in steps if ours.get(step) != theirs.get(step)]


def newest(workdir):
  folder = workdir / "checkpoints"
  return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0) if folder.exists() else 0


def main(kills, seed, folder, sent):
  logging.set_verbosity(logging.ERROR)  # Orbax tells of every folder that it only reads.
  chance, fell, wrong, number = random.Random(seed), collections.Counter(), [], 0
  phase_file = folder / "phase"
  unbroken = folder / "unbroken"
  for workdir in (folder / "warm", unbroken):  # The first one compiles.
    begun = time.monotonic()
    if start(workdir, phase_file).wait():
      sys.exit(f"the unbroken run in {workdir} failed")
    life = time.monotonic() - begun
  print(f"an unbroken run takes {life:.1f} s", flush=True)
  while sum(fell.values()) < kills:
    number += 1
    workdir, checkpointed = folder / f"run-{number}", {}
    for _ in range(_KILLS_PER_RUN):
      process = start(workdir, phase_file)
      phase, trouble = kill(process, phase_file, workdir, chance, life, sent)
      if trouble:
        wrong.append(f"run {number} {trouble}")
      if phase is None:
        break
      fell[phase] += 1
      starts = max((row["start"] for row in whole_rows(workdir)), default=0)
      checkpointed[starts + 1] = newest(workdir)
      print(f"run {number}: {sent.name} in {phase}, newest checkpoint {newest(workdir)}", flush=True)
    if code := start(workdir, phase_file).wait():
      wrong.append(f"run {number} ended with {code}")
      continue
    wrong += [f"run {number}: {name} differs" for name in differences(unbroken, workdir, sent)]
    wrong += [f"run {number}: step {row['global_step']} ran again in start {row['start']}"
              for row in rows_run_again(workdir, checkpointed)]
  print(f"\n| where {sum(fell.values())} {sent.name} fell, {number} runs, seed {seed} | times |\n|---|---|")
  for phase, count in fell.most_common():
    print(f"| in {phase} | {count} |")
  print("\n".join(wrong) or "every run ended, bit-equal to the unbroken one; no step before a checkpoint ran again")
  return 1 if wrong else 0


def whole_rows(workdir):
  """The rows of a run that was just killed, without a last line that the kill has cut."""
  path = workdir / "metrics.jsonl"
  text = path.read_text() if path.exists() else ""
  (workdir.parent / "whole").mkdir(exist_ok=True)
  (workdir.parent / "whole" / "metrics.jsonl").write_text(text[:text.rfind("\n") + 1])
  return runs.rows(workdir.parent / "whole")


if __name__ == "__main__":
  if sys.argv[1:2] == ["--learn"]:
    learn(*sys.argv[2:])
    sys.exit()
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
  parser.add_argument("--folder", type=pathlib.Path)
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    sys.exit(main(given.kills, given.seed, given.folder or pathlib.Path(temporary),
                  signal.Signals[f"SIG{given.signal}"]))
