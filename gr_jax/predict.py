"""Classifies pictures with a trained run: python -m gr_jax.predict --workdir=... picture.jpg folder/ [--task=3]."""

from __future__ import annotations

import sys

from absl import flags

from gr_jax import cli
from gr_jax.errors import UserError

# A bar is shown from so many pictures on.
_MANY = 200


def main(argv: list[str]) -> None:
  given = flags.FLAGS
  # Imported here so that a bad flag is reported immediately.
  import tqdm

  from gr_jax.serving import model as models
  from gr_jax.serving import prediction, views
  files, unusable = views.find(argv[1:])
  if not files:
    raise UserError("; ".join(f"{path}: {reason}" for path, reason in unusable))
  model = models.load(given.workdir, given.task)
  print(model.description, file=sys.stderr, flush=True)
  line = prediction.json_line(model) if given.json else prediction.text_line
  wrong = [prediction.Prediction(path, [], f"{path}: {reason}") for path, reason in unusable]
  if given.json:
    for failure in wrong:
      print(line(failure))
  bar = tqdm.tqdm(total=len(files), unit="img", leave=False, dynamic_ncols=True,
                  disable=len(files) < _MANY or not sys.stderr.isatty())
  with bar:
    for predicted in prediction.predict(model, files, top=given.top):
      bar.update()
      if given.json or predicted.error is None:
        tqdm.tqdm.write(line(predicted), file=sys.stdout)
      if predicted.error is not None:
        wrong.append(predicted)
  if wrong:
    shown = "\n".join(f"  {failure.error}" for failure in wrong)
    raise UserError(f"{len(wrong)} of {len(files) + len(unusable)} could not be classified:\n{shown}")


def _define_flags() -> None:
  """Not at import, because tests and notebooks import this module together with other commands."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_integer("task", None, "Use the network after this task, counted from 1. Default: the last finished one.")
  flags.DEFINE_integer("top", 5, "How many classes to print for each picture.", lower_bound=1)
  flags.DEFINE_bool("json", False, "Print a JSON object for each picture.")


if __name__ == "__main__":
  _define_flags()
  cli.run(main, arguments=1, more=True, example="python -m gr_jax.predict --workdir=runs/digits_lt-s0 picture.png")
