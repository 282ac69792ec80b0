"""Benchmark: python -m gr_jax.benchmark --config=configs/cifar100_lt.py [--long] [--json=...] [--replicas=5].

Times the programs that training uses, on all local devices, CPU or GPU: compilation, steps of the base task and of the
second task, evaluation, herding, memory, and the share of two ceilings measured in the same run. With --long, also the
last task and an ablation of the step, leaving out one part at a time. If pictures differ in size, also how fast they
are decoded and reach the device; all of them must fit on it.

Imports are kept small: processes that decode pictures import the command that started them.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from absl import flags

from gr_jax import cli
from gr_jax import flags as config_flag


def write(report: dict[str, Any], path: str | None) -> None:
  """Prints the table, and writes the report to `path` if given."""
  from gr_jax.benchmarking import table
  print(table.markdown(report))
  if path:
    pathlib.Path(path).write_text(json.dumps(report, indent=1) + "\n")


def _define_flags() -> None:
  """Not at import, because gr_jax.main defines flags with these names."""
  flags.DEFINE_string("json", None, "Write all measurements to this file.")
  flags.DEFINE_bool("long", False, "Also time the last task and ablations of the step; takes minutes on a CPU.")
  flags.DEFINE_integer("calls", None, "Timed calls of each program. Default: 7 with --long, else 3.", lower_bound=1)
  flags.DEFINE_integer("steps", None, "Steps per call. Default: 5 with --long, else 2.", lower_bound=1)
  flags.DEFINE_integer("replicas", 0, "Compare ways to train this many replicas at once.", lower_bound=0)


def main(argv: list[str]) -> None:
  del argv
  import jax

  from gr_jax.benchmarking import steps as timings
  # With a cache, programs of an earlier run would not be compiled.
  jax.config.update("jax_enable_compilation_cache", False)
  given = flags.FLAGS
  write(timings.measure(config_flag.config(), calls=given.calls or (7 if given.long else 3),
                        steps=given.steps or (5 if given.long else 2), replicas=given.replicas, long=given.long),
        given.json)


if __name__ == "__main__":
  _define_flags()
  cli.run(main, config_flag.parse)
