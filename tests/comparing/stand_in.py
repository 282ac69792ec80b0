"""In place of gr_jax.main: takes its flags, trains nothing, and writes down every step that it takes.

A run has STEPS steps of STEP_SECONDS each (environment). Each is a line in steps.log and a saved number of steps, so
work that is done twice can be seen. SIGTERM: it saves, and exits with code 75. A method in FAILING exits with code 1. A
folder whose path has LEAVING in it exits with LEAVING_CODE.
"""

import fcntl
import json
import os
import pathlib
import signal
import sys
import time

STEPS, SECONDS = int(os.environ.get("STEPS", "2")), float(os.environ.get("STEP_SECONDS", "0"))


def results(seed, average, tasks=2):
  return {"tasks_done": tasks, "seed": seed, "average_incremental_accuracy": average, "last_accuracy": average - 0.1,
          "forgetting": [None, *[0.2] * (tasks - 1)], "seconds": 10.0 + seed,
          "many_medium_few": {"many": {"accuracy": average}, "medium": None, "few": {"accuracy": average - 0.2}},
          "memory": {"parameters": 1000, "extra_parameters": 24, "megabytes": 1.5}}


def learn(folder, flags, seed, asked):
  """Whether the run came to its end."""
  folder.mkdir(parents=True, exist_ok=True)
  saved = folder / "saved"
  done = int(saved.read_text()) if saved.exists() else 0
  while done < STEPS:
    if asked:
      return False
    time.sleep(SECONDS)
    done += 1
    with (folder / "steps.log").open("a") as log:
      log.write(f"{done}\n")
    with (folder / "metrics.jsonl").open("a") as rows:
      rows.write(json.dumps({"kind": "epoch", "global_step": done}) + "\n")
    saved.write_text(str(done))
  # On the hold-out, the accuracy of each of three classes: better for a small learning rate.
  right = 5 if float(flags["config.learning_rate"]) < 0.1 else 4
  with (folder / "metrics.jsonl").open("a") as rows:
    rows.write(json.dumps({"kind": "task", "global_step": STEPS, "correct": [right, 1, 0]}) + "\n")
  (folder / "scenario.json").write_text(json.dumps({"class_order": [4, 2, 7], "holdout_counts": [10, 2, 0]}))
  (folder / "results.json").write_text(json.dumps(results(
      seed, 0.5 + 0.01 * seed, int(flags["config.scenario.num_tasks"]))))
  return True


def main():
  flags = dict(arg.removeprefix("--").split("=", 1) for arg in sys.argv[1:])
  folder, asked = pathlib.Path(flags["workdir"]), []
  signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
  folder.mkdir(parents=True, exist_ok=True)
  if flags["config.method"] in os.environ.get("FAILING", "").split(","):
    print("cannot", file=sys.stderr)
    return 1
  if os.environ.get("LEAVING") and os.environ["LEAVING"] in str(folder):
    return int(os.environ["LEAVING_CODE"])
  with (folder / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (folder / "started").open("a").write(f"{flags['config.evaluate_on']} {flags['config.replicas']}\n")
    first, count = int(flags["config.seed"]), int(flags["config.replicas"])
    folders = [folder / f"seed-{first + i}" for i in range(count)] if count > 1 else [folder]
    ended = [learn(one, flags, first + i, asked) for i, one in enumerate(folders)]
  return 0 if all(ended) else 75


if __name__ == "__main__":
  sys.exit(main())
