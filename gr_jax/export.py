"""Writes a trained run to one file that needs only JAX: python -m gr_jax.export --workdir=... --out=model.bin."""

from __future__ import annotations

import pathlib

from absl import flags

from gr_jax import cli


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  # Imported here so that a bad flag is reported immediately.
  from gr_jax.serving import exported
  from gr_jax.serving import model as models
  model, out = models.load(given.workdir, given.task), pathlib.Path(given.out).expanduser()
  beside = exported.export(model, out)
  print(f"{model.description}\nwritten: {out} ({out.stat().st_size / 2**20:.1f} MiB) and {beside}")


def _define_flags() -> None:
  """Not at import, because tests and notebooks import this module together with other commands."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_string("out", None, "File to write; its description gets the same name with .json.", required=True)
  flags.DEFINE_integer("task", None, "Use the network after this task, counted from 1. Default: the last finished one.")


if __name__ == "__main__":
  _define_flags()
  cli.run(main)
