"""Command line: python -m gr_jax.main --config=configs/digits_lt.py [--workdir=...] [--dry_run]."""

from __future__ import annotations

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from gr_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file; single keys are changed with --config.KEY=VALUE.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics, results. A run that is there goes on. Default: "
    "runs/<config name>-s<seed>.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print scenario, steps, programs and memory; train nothing.")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if _CONFIG.value is None:
    raise app.UsageError("--config is missing; for example --config=configs/digits_lt.py")
  if not flags.FLAGS["verbosity"].present:
    # Orbax reports every file it moves at level INFO; --verbosity=0 shows it.
    logging.set_verbosity(logging.WARNING)
  # Imported here, so that a bad flag is answered at once.
  from gr_jax import console, experiment, train
  config = _CONFIG.value
  name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  workdir = _WORKDIR.value or f"runs/{name}-s{config.seed}"
  print(f"workdir: {workdir}", flush=True)
  if _DRY_RUN.value:
    console.say(console.dry_run_lines(experiment.load(config)))
  else:
    train.train(config, workdir)


def _parse(argv: list[str]) -> list[str]:
  """absl's parser, with errors that name the nearest config key."""
  from gr_jax import config as configuration
  given = {arg[len("--config."):].partition("=")[0]: arg for arg in argv if arg.startswith("--config.")}
  for key in given:
    if key not in configuration.KEYS:
      raise configuration.unknown_key(key)
  return app.parse_flags_with_usage(argv)


def run() -> None:
  """Entry point; what the user can mend ends with one message and exit code 2."""
  try:
    app.run(main, flags_parser=_parse)
  except UserError as error:
    sys.exit(_failure(error))


def _failure(error: UserError) -> int:
  print(f"error: {error}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  run()
