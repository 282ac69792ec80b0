"""Downloads and prepares a data set once: python -m gr_jax.prepare cifar100 [--data_dir=...].

Only this command needs TensorFlow (extra `prepare`); training reads the prepared files without it.
"""

from __future__ import annotations

import importlib.util
import pathlib

from absl import flags

from gr_jax import cli
from gr_jax.data.sources import tfds_source
from gr_jax.errors import UserError


def prepare(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """Prepares a data set as array_record; does nothing if it is already prepared.

  Args:
    name: of a data set in the catalogue, or its TFDS name (imagenet_subset or imagenet2012).
    data_dir: folder for the prepared data.

  Returns:
    The folder of the prepared version.

  Raises:
    UserError: unknown name, TensorFlow or archives missing, a failed download or write, a damaged folder.
  """
  entries = {known: entry for entry_name, entry in tfds_source.CATALOGUE.items()
             for known in (entry_name, entry.tfds_name)}
  if name == "digits":
    raise UserError("digits need no preparation: they come with scikit-learn")
  if name not in entries:
    raise UserError(f"data set is {name!r}; known are {', '.join(entries)}")
  entry = entries[name]
  try:
    folder = tfds_source.locate(entry, data_dir)
  except UserError:
    pass  # Not prepared yet.
  else:
    tfds_source.open_prepared(entry, data_dir)
    return folder
  if importlib.util.find_spec("tensorflow") is None:
    raise UserError("preparation needs TensorFlow, which is not installed; run: pip install -e '.[prepare]'")
  import tensorflow_datasets as tfds
  builder = tfds.builder(entry.tfds_name, data_dir=str(data_dir), file_format="array_record")
  if pathlib.Path(builder.data_dir).exists():
    # TFDS would take it for a prepared one and do nothing.
    raise UserError(f"{builder.data_dir} exists, but has no dataset_info.json; remove that folder and rerun the "
                    f"command")
  try:
    builder.download_and_prepare()
  # TFDS passes on any exception of the network, the archive or the disk.
  except Exception as error:
    manual = f"; {entry.manual.format(data_dir=data_dir)}" if entry.manual else ""
    raise UserError(f"{entry.tfds_name} could not be prepared in {data_dir} "
                    f"({type(error).__name__}: {str(error).strip()[:500]}){manual}") from error
  return pathlib.Path(builder.data_dir)


def main(argv: list[str]) -> None:
  print(f"prepared: {prepare(argv[1], tfds_source.data_folder(flags.FLAGS.data_dir))}")


if __name__ == "__main__":
  # Not at import, because gr_jax.evaluate has a flag with this name.
  flags.DEFINE_string(
      "data_dir", None, "Folder for the prepared data. Default: TFDS_DATA_DIR, else ~/tensorflow_datasets.")
  cli.run(main, arguments=1, example="python -m gr_jax.prepare cifar100")
