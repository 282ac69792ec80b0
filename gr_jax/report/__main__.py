"""Writes a page about runs: python -m gr_jax.report runs/a runs/b ... --out=report.html."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from gr_jax import cli

_OUT = flags.DEFINE_string("out", "report.html", "File of the page; pictures go to a folder beside it.")
_RECOMPUTE = flags.DEFINE_bool("recompute", False, "Compute what older runs did not record (calibration, confusion, "
                               "neural collapse) from their checkpoints and data.")
_EXEMPLARS = flags.DEFINE_bool("exemplars", True, "Show pictures of the exemplars, which reads the data set.")
_DATA = flags.DEFINE_string("data_dir", None, "Folder of the data, if it has moved since the runs.")


def report(paths: Sequence[str | pathlib.Path], out: str | pathlib.Path, *, recompute: bool = False,
           exemplars: bool = True, data_dir: str | None = None) -> list[pathlib.Path]:
  """Writes a page about runs, finished or not; reads their files alone, without a lock.

  Args:
    paths: folders of the runs.
    out: file of the page.
    recompute: compute what older runs did not record, from their checkpoints and data.
    exemplars: show pictures of the exemplars of one run of each part of the page.
    data_dir: overrides that of the runs.

  Returns:
    The page, and the folder of its pictures.

  Raises:
    UserError: no run, a folder that holds none or whose config cannot be read, a file that cannot be written.
  """
  # Imported here so that a bad flag is reported immediately.
  from gr_jax.report import exemplars as shown
  from gr_jax.report import page, recomputed, records, tables
  out = pathlib.Path(out).expanduser().absolute()
  runs = [records.read(folder) for folder in records.folders_of(paths)]
  page.check(out)
  if recompute:
    runs = [recomputed.completed(run, data_dir) for run in runs]
  chosen = [max(group.runs, key=lambda run: run.done) for group in tables.groups_of(runs)] if exemplars else []
  return page.write(runs, out, thumbnails={run.folder: shown.of(run, data_dir) for run in chosen})


def main(argv: list[str]) -> None:
  page, folder = report(argv[1:], _OUT.value, recompute=_RECOMPUTE.value, exemplars=_EXEMPLARS.value,
                        data_dir=_DATA.value)
  print(f"{page}\npictures: {folder}")


if __name__ == "__main__":
  cli.run(main, arguments=1, more=True, example="python -m gr_jax.report runs/a runs/b --out=report.html")
