"""The page: sections, pictures and tables of the runs, in one HTML file that needs nothing else."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

import gr_jax
from gr_jax import files
from gr_jax.errors import UserError
from gr_jax.report import compared, single, style, tables
from gr_jax.report.exemplars import Thumbnails
from gr_jax.report.records import Run
from gr_jax.report.style import Drawn, Picture


@dataclasses.dataclass(frozen=True)
class Shown:
  """A picture as the template takes it: addresses of its files in a light and a dark theme, and its words."""
  name: str
  title: str
  caption: str
  light: str
  dark: str


def write(runs: Sequence[Run], out: pathlib.Path, *, thumbnails: Mapping[pathlib.Path, Thumbnails] | None = None
          ) -> list[pathlib.Path]:
  """Writes the page, and beside it a folder with every picture as PNG and SVG.

  Args:
    runs: at least one.
    out: file of the page; the folder is `out` without its ending, and "_pictures".
    thumbnails: folder of a run -> pictures of its exemplars, or why there are none.

  Returns:
    The page and the folder.

  Raises:
    UserError: they cannot be written.
  """
  folder = out.with_name(f"{out.stem}_pictures")
  groups = tables.groups_of(runs)
  drawn: list[Drawn] = []
  sections = [_section(group, f"{number}_" if len(groups) > 1 else "", drawn, thumbnails or {})
              for number, group in enumerate(groups, start=1)]
  environment = jinja2.Environment(loader=jinja2.PackageLoader("gr_jax.report", "."), autoescape=True,
                                   undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
  text = environment.get_template("page.html").render(
      sections=sections, version=gr_jax.__version__, missing=tables.MISSING, pictures=folder.name,
      warning=_warning(groups))
  try:
    style.write(folder, drawn)
    files.replace(out, text)
  except OSError as error:
    raise UserError(f"--out is {out}, but it cannot be written ({error.strerror or error}); choose a file in a folder "
                    f"that exists and that you may write to") from error
  return [out, folder]


def check(out: pathlib.Path) -> None:
  """Refuses a file that cannot be written, before anything is drawn.

  Raises:
    UserError: no such folder, or it is not writable, or a folder stands there.
  """
  reason = ("it is a folder" if out.is_dir() else f"{out.parent} is no folder" if not out.parent.is_dir() else "")
  if not reason:
    probe = out.with_name(f".{out.name}.probe")
    try:
      probe.touch()
      probe.unlink()
    except OSError as error:
      reason = error.strerror or str(error)
  if reason:
    raise UserError(f"--out is {out}, but {reason}; choose a file in a folder that exists and that you may write to")


def _warning(groups: Sequence[tables.Group]) -> str:
  scenarios, sentences = len({group.digest for group in groups}), []
  if scenarios > 1:
    sentences.append(f"These runs learn {scenarios} different scenarios. Their numbers cannot be compared with each "
                     f"other, so each scenario has a part of its own.")
  if len({group.evaluated for group in groups}) > 1:
    sentences.append("Some of these runs were evaluated on test images, others on held-out images, to choose settings "
                     "(evaluate_on). Their accuracies cannot be compared with each other, so they stand in different "
                     "parts.")
  return " ".join(sentences)


def _section(group: tables.Group, prefix: str, drawn: list[Drawn], thumbnails: Mapping[pathlib.Path, Thumbnails]
             ) -> dict[str, Any]:
  """What the template shows of a group; pictures are added to `drawn`."""
  furthest = max(group.runs, key=lambda run: run.done)
  thumbnail = next((thumbnails[run.folder] for run in group.runs if run.folder in thumbnails), None)
  return {
      "title": group.title, "digest": group.digest, "evaluated": group.evaluated, "summary": tables.summary(group),
      "compared": _shown(compared.pictures(group, prefix) if furthest.done else [], drawn),
      "scenario": _shown(single.scenario(furthest, prefix), drawn), "classes": tables.scenario(group),
      "thumbnails": thumbnail, "differences": tables.differences(group),
      "settings": [_setting(setting, f"{prefix}{number}_", drawn)
                   for number, setting in enumerate(group.settings, start=1)]}


def _setting(setting: tables.Setting, prefix: str, drawn: list[Drawn]) -> dict[str, Any]:
  """What the template shows of a setting: its first seed, and notes on all."""
  run = setting.runs[0]
  available, missing = single.pictures(run, prefix)
  asked = [picture for picture in available if picture.name == f"{prefix}{single.CONFUSION_OF_CLASSES}"]
  return {
      "label": setting.label, "run": run, "others": setting.runs[1:],
      "pictures": _shown([picture for picture in available if picture not in asked], drawn),
      "asked": _shown(asked, drawn), "missing": missing, "calibration": tables.calibration(run),
      "collapse": tables.collapse(run), "config": tables.config(run), "origins": tables.origins(setting),
      "notes": [(one.folder.name, note) for one in setting.runs for note in one.notes]}


def _shown(pictures: Sequence[Picture], drawn: list[Drawn]) -> list[Shown]:
  made = [style.drawn(picture) for picture in pictures]
  drawn += made
  return [Shown(one.picture.name, one.picture.title, one.picture.caption, *map(style.data_address, (
      one.light, one.dark))) for one in made]
