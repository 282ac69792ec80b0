"""Command line: python -m gr_jax.main --config=configs/digits_lt.py [--workdir=...] [--dry_run]."""

from __future__ import annotations

from absl import flags

from gr_jax import cli
from gr_jax import flags as config_flag

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics, results. An existing run is resumed. Default: "
    "runs/<config name>-s<seed>.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print scenario, steps, programs and memory; train nothing.")
_JOIN = flags.DEFINE_integer(
    "join_timeout", 300, "Seconds that the processes of --config.distributed wait for each other at the start.",
    lower_bound=1)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout", 100, "Seconds after which a process that does not respond counts as dead; the others exit.",
    lower_bound=1)


def main(argv: list[str]) -> None:
  del argv
  config = config_flag.config()
  workdir = _WORKDIR.value or f"runs/{config_flag.path().stem}-s{config.seed}"
  print(f"workdir: {workdir}", flush=True)
  # Imported here so that a bad flag is reported immediately.
  from gr_jax import train
  from gr_jax.devices import processes
  from gr_jax.runs import console
  from gr_jax.training import experiment
  with processes.joined(config.distributed, join_timeout=_JOIN.value, heartbeat_timeout=_HEARTBEAT.value):
    if _DRY_RUN.value:
      console.say(console.dry_run_lines(processes.together(lambda: experiment.load(
          config, progress=console.decoding, say=console.say))))
    else:
      train.train(config, workdir)


if __name__ == "__main__":
  cli.run(main, config_flag.parse)
