"""Command line: python -m gr_jax.main --config=configs/digits_lt.py [--workdir=...] [--dry_run]."""

from __future__ import annotations

import pathlib

from absl import flags
from ml_collections import config_flags

from gr_jax import cli
from gr_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file; single keys are changed with --config.KEY=VALUE.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics, results. A run that is there goes on. Default: "
    "runs/<config name>-s<seed>.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print scenario, steps, programs and memory; train nothing.")


def main(argv: list[str]) -> None:
  del argv
  if _CONFIG.value is None:
    raise UserError("--config is missing; for example --config=configs/digits_lt.py")
  config = _CONFIG.value
  name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  workdir = _WORKDIR.value or f"runs/{name}-s{config.seed}"
  print(f"workdir: {workdir}", flush=True)
  # Imported here, so that a bad flag is answered at once.
  from gr_jax import console, experiment, train
  if _DRY_RUN.value:
    console.say(console.dry_run_lines(experiment.load(config)))
  else:
    train.train(config, workdir)


def _parse(argv: list[str]) -> list[str]:
  """absl's parser, with errors that name the nearest key; --config.KEY=None unsets an optional key."""
  from gr_jax import config as configuration
  overrides = {arg: arg.removeprefix("--config.").partition("=")[::2] for arg in argv
               if arg.startswith("--config.")}
  for key, _ in overrides.values():
    if key not in configuration.KEYS:
      raise configuration.unknown_key(key)
  unset = [key for key, value in overrides.values()
           if value.lower() == "none" and configuration.KEYS[key].optional]
  try:
    rest = flags.FLAGS([arg for arg in argv if overrides.get(arg, ("",))[0] not in unset])
  except flags.IllegalFlagValueError as error:
    for arg, (key, value) in overrides.items():
      if str(error).startswith(f"flag {arg}"):
        raise configuration.wrong_type(key, value) from error
    raise UserError(str(error)) from error
  except flags.Error as error:
    raise UserError(f"{error}; --help lists the flags") from error
  for key in unset:
    _CONFIG.value.update_from_flattened_dict({key: None})
  return rest


if __name__ == "__main__":
  cli.run(main, _parse)
