"""Runs a list of settings over several seeds and writes a table:

  python -m gr_jax.sweep --sweep=configs/sweeps/digits_parts.py [--root=runs/digits_parts]

Each run is a separate process, --jobs_per_device at a time on each GPU (or on the CPU). Rerun the command to complete
the list: finished runs are skipped, interrupted ones resume. gr_jax.compare compares methods.
"""

from __future__ import annotations

import pathlib

from absl import flags

from gr_jax import cli
from gr_jax.comparing import runner, sweeps
from gr_jax.errors import UserError
from gr_jax.runs import workdir

_SWEEP = flags.DEFINE_string("sweep", None, "File that defines get_sweep() -> {config, seeds, rows}.")
_ROOT = flags.DEFINE_string("root", None, "Folder for the runs and the table. Default: runs/<sweep name>.")
_ONLY = flags.DEFINE_list("only", [], "Names of the rows to run and to show in the table. Default: all.")
_SEEDS = flags.DEFINE_list("seeds", [], "Seeds, instead of those in the sweep file.")
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE for every run, such as --set=epochs=2.")
_HOLDOUT = flags.DEFINE_bool("holdout", False, "Also evaluate finished runs on their held-out images. Use these, not "
                             "the test set, to choose settings.")
_JOBS = flags.DEFINE_integer("jobs_per_device", 1, "Runs at a time on each GPU, or on the CPU, where they "
                            "share out the cores; not on TPUs.", lower_bound=1)


def main(argv: list[str]) -> None:
  del argv
  if _SWEEP.value is None:
    raise UserError("--sweep is missing; use for example --sweep=configs/sweeps/digits_parts.py")
  sweep = sweeps.with_seeds(sweeps.load(_SWEEP.value), _SEEDS.value)
  root = workdir.locate(_ROOT.value or f"runs/{pathlib.Path(_SWEEP.value).stem}", flag="--root")
  runs = sweeps.make_runs(sweep, root, _ONLY.value, _SET.value)
  root.mkdir(parents=True, exist_ok=True)
  with workdir.locked(root, flag="--root"):
    places = runner.places(_JOBS.value, runner.platforms())
    runner.leave_on_signals()
    failed = runner.run_all([run.job for run in runs], places)
    unread = sweeps.evaluate_holdout([run for run in runs if run.job.label not in failed]) if _HOLDOUT.value else []
    # The folder of a failed run may contain results of another config.
    text = sweeps.table([run._replace(workdir=pathlib.Path("refused")) if run.job.label in failed else run
                         for run in runs])
    (root / "table.md").write_text(text + "\n")
  print("\n".join([text, *unread]))
  wrong = [f"{len(failed)} of {len(runs)} runs failed; see their logs in {root}"] if failed else []
  if unread:
    wrong.append(f"the held-out images of {len(unread)} of {len(runs)} runs cannot be evaluated, see above")
  if wrong:
    raise UserError(f"{'; '.join(wrong)}; then rerun the command")


if __name__ == "__main__":
  cli.run(main)
