"""Data sets that TFDS has prepared as array_record: random access, without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gr_jax.data import cache, image
from gr_jax.data.sources import label_index
from gr_jax.data.sources.base import IMAGENET_MEAN, IMAGENET_STD, Source
from gr_jax.data.sources.label_index import Index
from gr_jax.errors import UserError
from gr_jax.scenario import ICARL_ORDER, DatasetProperties

_DEFAULT_FOLDER = "~/tensorflow_datasets"
_IMAGENET_STATISTICS: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A data set in the catalogue.

  Attributes:
    tfds_name: of the prepared data set.
    test_split: TFDS's name of the split used as the test set.
    id_feature: the feature with the stable id; None: use the hash of the encoded picture.
    properties, mean, std, uniform: as in `Source`.
    select: TFDS's label names -> the labels to keep, in the source's class order; None: all.
    manual: what the user must download manually before preparing, and where to put it; "" for nothing.
  """
  tfds_name: str
  test_split: str
  id_feature: str | None
  properties: DatasetProperties
  mean: tuple[float, ...]
  std: tuple[float, ...]
  uniform: bool = False
  select: Callable[[list[str]], list[int]] | None = None
  manual: str = ""


def imagenet_subset_wnids() -> list[str]:
  """The 100 WordNet ids of ImageNet-Subset; position = index before ordering."""
  lines = (pathlib.Path(__file__).parent / "imagenet_subset_wnids.txt").read_text().split("\n")
  pairs = [line.split() for line in lines if line]
  return [wnid for wnid, _ in sorted(pairs, key=lambda pair: int(pair[1]))]


def _select_imagenet_subset(label_names: list[str]) -> list[int]:
  missing = [wnid for wnid in imagenet_subset_wnids() if wnid not in label_names]
  if missing:
    raise UserError(f"the prepared imagenet2012 lacks {len(missing)} of ImageNet-Subset's 100 classes "
                    f"({', '.join(missing[:5])}); prepare it from the complete archives")
  return [label_names.index(wnid) for wnid in imagenet_subset_wnids()]


_IMAGENET_ARCHIVES = (
    "download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from the ImageNet site (an account is needed) into "
    "{data_dir}/downloads/manual/")

CATALOGUE = {
    "cifar100": Entry(
        tfds_name="cifar100", test_split="test", id_feature="id", uniform=True,
        properties=DatasetProperties(fixed_order=ICARL_ORDER, fixed_order_ltio=tuple(range(100)),
                                     profile_by_label=True, max_count=500, total=50_000),
        mean=(0.5071, 0.4866, 0.4409), std=(0.2009, 0.1984, 0.2023)),
    "imagenet_subset": Entry(
        tfds_name="imagenet2012", test_split="validation", id_feature="file_name",
        properties=DatasetProperties(fixed_order=ICARL_ORDER, max_count="first"), select=_select_imagenet_subset,
        manual=_IMAGENET_ARCHIVES, **_IMAGENET_STATISTICS),
    "imagenet1000": Entry(
        tfds_name="imagenet2012", test_split="validation", id_feature="file_name",
        properties=DatasetProperties(total=1_281_167), manual=_IMAGENET_ARCHIVES, **_IMAGENET_STATISTICS),
    "food101": Entry(
        tfds_name="food101", test_split="validation", id_feature=None, properties=DatasetProperties(total=75_750),
        **_IMAGENET_STATISTICS),
}


# Records read at a time when collecting labels and ids; reading them singly takes three times as long.
_RECORDS_AT_ONCE = 1000


class TfdsSplit:
  """One split of a prepared data set, restricted to some labels; read on first use."""

  def __init__(self, builder: Any, split: str, id_feature: str | None, labels: Sequence[int], *, again: str,
               places: Sequence[pathlib.Path], progress: Callable, say: Callable[[str], None]):
    """`again`: the remedy for files that cannot be read; `places`: for an index, see label_index.load."""
    self._folder, self._split, self._id_feature = builder.data_dir, split, id_feature
    self._selected, self._again, self._places = list(labels), again, tuple(places)
    self._progress, self._say = progress, say
    files = builder.info.splits[split].filepaths
    self._bytes = sum(os.path.getsize(path) for path in files)
    # Names and sizes but not times, so that a copy of the data set has the same fingerprint.
    self.fingerprint = json.dumps([builder.info.full_name, split, *(
        (pathlib.Path(path).name, os.path.getsize(path)) for path in files)])

  def __getstate__(self) -> dict[str, Any]:
    """The state without open files and without what only the main process needs."""
    return {name: value for name, value in self.__dict__.items()
            if name not in ("_records", "_progress", "_say", "_ids")}

  @functools.cached_property
  def _records(self) -> Any:
    import tensorflow_datasets as tfds
    # Built again from the folder, because a builder cannot be sent to another process.
    builder = _builder(self._folder)
    return builder.as_data_source(self._split, decoders={"image": tfds.decode.SkipDecoding()})

  def _read(self, rows: Sequence[int]) -> Index:
    """TFDS's labels, and ids, of these records."""
    def records() -> Iterator[tuple[int, bytes]]:
      for first in range(0, len(rows), _RECORDS_AT_ONCE):
        for record in self._records.__getitems__(rows[first:first + _RECORDS_AT_ONCE]):
          yield int(record["label"]), (record[self._id_feature] if self._id_feature else
                                       hashlib.sha256(record["image"]).hexdigest().encode())
    try:
      pairs = list(self._progress(records(), total=len(rows)))
    # array_record raises these for a truncated file or one in another format.
    except (RuntimeError, ValueError, IndexError) as error:
      raise UserError(f"the files in {self._folder} cannot be read ({error}); {self._again}") from error
    return Index(np.asarray([label for label, _ in pairs], np.int64), np.asarray([name for _, name in pairs], bytes))

  @functools.cached_property
  def _chosen(self) -> tuple[np.ndarray, Index]:
    """The records with a selected label, and their index; labels in the source's class order."""
    try:
      count = len(self._records)
    except (RuntimeError, ValueError, IndexError) as error:
      raise UserError(f"the files in {self._folder} cannot be read ({error}); {self._again}") from error
    if self._places and self._bytes > label_index.FROM_BYTES:
      index = label_index.load(self._read, count, json.dumps([self.fingerprint, self._id_feature]), places=self._places,
                         name=f"{pathlib.Path(self._folder).parent.name}-{self._split}", say=self._say)
    else:
      index = self._read(range(count))
    position = np.full(max(*self._selected, index.labels.max(initial=0)) + 1, -1)
    position[self._selected] = np.arange(len(self._selected))
    rows = np.flatnonzero(position[index.labels] >= 0)
    return rows, Index(position[index.labels[rows]], index.ids[rows])

  @property
  def labels(self) -> np.ndarray:
    """[images] int64; see `base.Split`."""
    return self._chosen[1].labels

  @property
  def ids(self) -> list[str]:
    """[images]; see `base.Split`."""
    return self._ids

  # Under another name, because type checkers do not accept a cached property where `base.Split` has a property.
  @functools.cached_property
  def _ids(self) -> list[str]:
    return [name.decode() for name in self._chosen[1].ids.tolist()]

  def identity(self, row: int) -> str:
    """The id, since the content of a prepared version is fixed; see `base.Split`."""
    return self.ids[row]

  def encoded(self, row: int) -> bytes:
    """The file of a picture."""
    return self._records[int(self._chosen[0][row])]["image"]

  def size(self, row: int) -> tuple[int, int]:
    """Height and width; see `base.Split`."""
    return self._open(row, lambda picture: picture.size[::-1])

  def image(self, row: int) -> np.ndarray:
    """The decoded picture, [height, width, 3] uint8; see `base.Split`."""
    return self._open(row, lambda picture: np.asarray(picture.convert("RGB")))

  def _open(self, row: int, how: Callable[[Any], Any]) -> Any:
    try:
      return image.opened(io.BytesIO(self.encoded(row)), how)
    except image.BadPicture as error:
      name = self._chosen[1].ids[row].decode()
      raise UserError(f"image {name!r} cannot be decoded ({error}) because its record is damaged; remove the folder "
                      f"of the data set and prepare it again") from error


def data_folder(data_dir: str | None) -> pathlib.Path:
  """The folder of prepared data sets: `data_dir`, else TFDS's default."""
  return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or _DEFAULT_FOLDER).expanduser().absolute()


def prepare_command(entry: Entry, data_dir: pathlib.Path) -> str:
  """The command that prepares a data set in `data_dir`."""
  flag = "" if data_dir == data_folder(None) else f" --data_dir={shlex.quote(str(data_dir))}"
  return f"python -m gr_jax.prepare {entry.tfds_name}{flag}"


def locate(entry: Entry, data_dir: pathlib.Path) -> pathlib.Path:
  """The folder of the newest prepared version.

  Raises:
    UserError: it is not prepared; the message gives the command.
  """
  parent = data_dir / entry.tfds_name
  remedy = (f"prepare it once with: {prepare_command(entry, data_dir)} (needs: pip install -e '.[prepare]'). "
            f"If it is prepared elsewhere, set that folder with --config.data_dir or the environment variable "
            f"TFDS_DATA_DIR")
  if entry.manual:
    remedy = f"{entry.manual.format(data_dir=data_dir)}, then {remedy}"
  versions = [folder for folder in parent.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)
              and (folder / "dataset_info.json").is_file()] if parent.is_dir() else []
  if not versions:
    raise UserError(f"{entry.tfds_name} is not prepared: {parent} contains no version of it; {remedy}")
  return max(versions, key=lambda folder: tuple(int(part) for part in folder.name.split(".")))


def _again(entry: Entry, data_dir: pathlib.Path, folder: pathlib.Path) -> str:
  # TFDS takes an existing folder for a finished one, so it must be removed first.
  return f"remove the folder {folder} and prepare it again: {prepare_command(entry, data_dir)}"


def _builder(folder: str | os.PathLike) -> Any:
  """TFDS's builder of what is prepared in a folder; its annotations leave out what such a one has."""
  import tensorflow_datasets as tfds
  return tfds.builder_from_directory(str(folder))


def open_prepared(entry: Entry, data_dir: pathlib.Path) -> Any:
  """TFDS's builder for the newest prepared version; checks everything except the records.

  Raises:
    UserError: see `locate`; also another file format, unreadable or older metadata, a missing split or file.
  """
  folder = locate(entry, data_dir)
  again = _again(entry, data_dir, folder)
  try:
    builder = _builder(folder)
  # JSON, protobuf and TFDS raise different errors for truncated or missing files.
  except Exception as error:
    raise UserError(f"the metadata in {folder} cannot be read ({error}); {again}") from error
  file_format = builder.info.file_format
  if file_format is None or file_format.value != "array_record":
    raise UserError(f"{folder} is in format {file_format and file_format.value}, not array_record; "
                    f"{again}")
  for feature in filter(None, ("image", "label", entry.id_feature)):
    if feature not in builder.info.features:
      raise UserError(f"{folder} has no feature {feature!r}, only {', '.join(builder.info.features)}; {again}")
  for split in ("train", entry.test_split):
    if split not in builder.info.splits:
      raise UserError(f"{folder} has no split {split!r}, only {', '.join(builder.info.splits)}; {again}")
    for path in builder.info.splits[split].filepaths:
      if not pathlib.Path(path).is_file():
        raise UserError(f"the file {path}, which dataset_info.json lists, is missing; restore it, or {again}")
  return builder


def load(name: str, data_dir: pathlib.Path, *, cache_dir: str | None = "off",
         progress: Callable = lambda items, **_: items, say: Callable[[str], None] = lambda line: None) -> Source:
  """A data set of the catalogue, from its prepared files; the records are read on first use.

  Args:
    name: a key of CATALOGUE.
    data_dir: TFDS's data folder.
    cache_dir: folder for the index of a large split, see cache.folders; "off": no index file.
    progress: wraps the iteration over records while labels and ids are collected.
    say: receives log lines.

  Raises:
    UserError: see `open_prepared`; later, if the records cannot be read.
  """
  entry = CATALOGUE[name]
  builder = open_prepared(entry, data_dir)
  names = list(builder.info.features["label"].names)
  labels = list(range(len(names))) if entry.select is None else entry.select(names)
  again = _again(entry, data_dir, pathlib.Path(builder.data_dir))
  places = () if cache_dir == "off" else cache.folders(cache_dir, data_dir)
  train, test = (
      TfdsSplit(builder, split, entry.id_feature, labels, again=again, places=places, progress=progress, say=say)
      for split in ("train", entry.test_split))
  return Source(
      name=name, class_names=tuple(names[label] for label in labels),
      train=train, test=test, properties=entry.properties, mean=entry.mean, std=entry.std, uniform=entry.uniform)
