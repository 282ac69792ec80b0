"""Compares methods on one data set, and writes a table:

  python -m gr_jax.compare --config=configs/cifar100_lt.py --methods=gr,lucir,wa:temperature=1 --seeds=3

Each run is a separate process, --jobs_per_device at a time on each GPU (or on the CPU). Rerun the command to complete
it: finished runs are skipped, interrupted ones resume. See docs/comparing.md.
"""

from __future__ import annotations

import sys

from absl import flags

from gr_jax import cli
from gr_jax import flags as config_flag
from gr_jax.errors import UserError

_METHODS = flags.DEFINE_string("methods", "", "Entries NAME[+ADDON][:KEY=VALUE], separated by commas.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each method, with seeds config.seed, config.seed + 1, ...",
                              lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of runs and table. Default: runs/compare-<config name>.")
_TUNE = flags.DEFINE_multi_string("tune", [], "KEY=VALUE,VALUE,...: for each method, choose among these settings by "
                                  "held-out images. Several flags are combined.")
_TUNE_SEEDS = flags.DEFINE_list("tune_scenario_seeds", [], "Values of scenario.seed for choosing settings. Default: "
                                "the two after the config's.")
_JOBS = flags.DEFINE_integer("jobs_per_device", 1, "Runs at a time on each GPU, or on the CPU, where they "
                            "share out the cores; not on TPUs.", lower_bound=1)


def main(argv: list[str]) -> None:
  del argv
  config = config_flag.config()
  if not all(seed.isdecimal() for seed in _TUNE_SEEDS.value):
    raise UserError(f"--tune_scenario_seeds is {','.join(_TUNE_SEEDS.value)}; it takes numbers such as 1,2")
  # Imported here so that a bad flag is reported immediately.
  from gr_jax.comparing import comparison, entries, runner
  from gr_jax.runs import workdir
  entries.refuse_flags(sys.argv[1:])
  first = config.scenario.seed
  root = workdir.locate(_WORKDIR.value or f"runs/compare-{config_flag.path().stem}")
  wanted = comparison.Comparison(
      config_flag.path(), entries.parse(_METHODS.value, config), _SEEDS.value, _TUNE.value,
      [int(seed) for seed in _TUNE_SEEDS.value] or [first + 1, first + 2], root, _JOBS.value)
  comparison.check(wanted)
  root.mkdir(parents=True, exist_ok=True)
  with workdir.locked(root):
    runner.leave_on_signals()
    text, failures = comparison.compare(wanted)
  print(text)
  if failures:
    raise UserError(f"{len(failures)} of the runs failed (see above); the table has what is finished. Rerun the "
                    f"command to try them again")


if __name__ == "__main__":
  cli.run(main, config_flag.parse)
