"""Command line: python -m gr_jax.main --config=configs/digits_lt.py [--workdir=...] [--dry_run]."""

from __future__ import annotations

import pathlib

import ml_collections
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
  # Imported here, so that a bad flag is answered at once.
  from gr_jax import config as configuration
  config = _CONFIG.value
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f"get_config() of {flags.FLAGS['config'].value} returns a {type(config).__name__}; it must be a "
                    f"ConfigDict, as in configs/digits_lt.py")
  configuration.validate(config)
  name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  workdir = _WORKDIR.value or f"runs/{name}-s{config.seed}"
  print(f"workdir: {workdir}", flush=True)
  from gr_jax import console, experiment, train
  if _DRY_RUN.value:
    console.say(console.dry_run_lines(experiment.load(config)))
  else:
    train.train(config, workdir)


def _parse(argv: list[str]) -> list[str]:
  """absl's parser, with errors that name the nearest key; --config.KEY=None unsets an optional key."""
  from gr_jax import config as configuration
  kept, unset = [], set()
  for arg in argv:
    name, _, value = arg.removeprefix("-").removeprefix("-").partition("=")
    if arg.startswith("-") and name == "config" and value and not pathlib.Path(value.partition(":")[0]).is_file():
      raise UserError(f"--config is {value}; there is no such file")
    key = name.removeprefix("config.")
    if not arg.startswith("-") or key == name:
      kept.append(arg)
      continue
    if key not in configuration.KEYS:
      raise configuration.unknown_key(key)
    # Of several flags for one key the last one counts.
    if value.lower() == "none" and configuration.KEYS[key].optional:
      unset.add(key)
    else:
      unset.discard(key)
      kept.append(arg)
  try:
    rest = flags.FLAGS(kept)
  except flags.IllegalFlagValueError as error:
    for arg in kept:
      if str(error).startswith(f"flag {arg}") and arg.startswith("--config."):
        raise configuration.wrong_type(*arg.removeprefix("--config.").split("=", 1)) from error
    raise UserError(str(error)) from error
  except flags.Error as error:
    raise UserError(f"{error}; --help lists the flags") from error
  except AttributeError as error:
    raise UserError(f"the config file cannot be used: {error}; configs/digits_lt.py is an example") from error
  for key in unset:
    _CONFIG.value.update_from_flattened_dict({key: None})
  return rest


if __name__ == "__main__":
  cli.run(main, _parse)
