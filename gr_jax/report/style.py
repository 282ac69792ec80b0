"""How pictures look: colours that the colour-blind tell apart, with a marker and a line each; light, dark, print."""

from __future__ import annotations

import base64
import dataclasses
import io
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator

from gr_jax import files

# Okabe and Ito's palette, without its yellow and black; blue is lighter on a dark screen.
_COLOURS = {"light": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9"),
            "dark": ("#4aa8e0", "#f0813a", "#2cc295", "#e39ac3", "#e6b93d", "#9bd4f5")}
_INK = {"light": "#1b1f24", "dark": "#e6e8eb"}
_GRID = {"light": "#d5d9de", "dark": "#3c424b"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "..", "xx", "\\\\", "++")
SIZE = (4.8, 3.3)


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture of the page.

  Attributes:
    name: of its files.
    title, caption: above and below it.
    draw: makes the figure, in the current theme.
  """
  name: str
  title: str
  caption: str
  draw: Callable[[], Figure]


def theme(name: str) -> dict[str, Any]:
  """matplotlib's settings for "light" or "dark"."""
  ink = _INK[name]
  return {
      "font.size": 10, "axes.titlesize": 10, "legend.fontsize": 8.5, "xtick.labelsize": 9, "ytick.labelsize": 9,
      "font.family": "DejaVu Sans", "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink,
      "axes.titlecolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.prop_cycle": cycler(
          color=_COLOURS[name]), "axes.grid": True, "grid.color": _GRID[name], "grid.linewidth": 0.6,
      "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "none",
      "axes.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False, "lines.linewidth": 1.8,
      "lines.markersize": 5, "hatch.linewidth": 0.7, "svg.fonttype": "path", "svg.hashsalt": "gr_jax"}


def colour(place: int) -> str:
  """The colour of the setting at a place."""
  cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
  return cycle[place % len(cycle)]


def line_style(place: int) -> dict[str, Any]:
  """Colour, marker and line of the setting at a place, so that no two of 24 look the same."""
  return {"color": colour(place), "marker": MARKERS[place % len(MARKERS)], "linestyle": LINES[place % len(LINES)]}


def plain(text: object, longest: int = 40) -> str:
  """Text as it is: without formulas, and cut where it is long."""
  text = str(text).replace("$", r"\$")
  return text if len(text) <= longest else f"{text[:longest - 1]}…"


def figure(rows: int = 1, columns: int = 1, *, height: float = SIZE[1]) -> tuple[Figure, list[Axes]]:
  """An empty figure and its axes."""
  made = Figure(figsize=(SIZE[0], height), layout="constrained")
  return made, list(np.atleast_1d(made.subplots(rows, columns)).flat)


def whole_numbers(axes: Axes, most: int = 10) -> None:
  """Ticks of the x axis at whole numbers, in `most` steps at most: five for three digits in half a figure."""
  # With a least number of ticks of more than one, a narrow axis would get fractions.
  axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=most, min_n_ticks=1))


def from_zero(axes: Axes) -> None:
  """The y axis from 0 to above the highest value; of all panels with values that cannot be negative."""
  highest = axes.dataLim.y1
  axes.set_ylim(0, 1.06 * highest if 0 < highest < np.inf else 1)


def legend_below(made: Figure, axes: Axes, columns: int = 2) -> None:
  """The legend of some axes below the figure, where it hides nothing."""
  handles, labels = axes.get_legend_handles_labels()
  if handles:
    made.legend(handles, labels, loc="outside lower center", ncols=columns)


def _rendered(picture: Picture, name: str) -> tuple[bytes, bytes]:
  """(SVG, PNG) of a picture in a theme; the PNG of the dark one is empty."""
  vector, dots = io.BytesIO(), io.BytesIO()
  with matplotlib.rc_context(theme(name)), warnings.catch_warnings():  # pyright: ignore[reportArgumentType]
    # Class names in scripts that the font lacks are drawn as boxes; the page's tables have them as text.
    warnings.filterwarnings("ignore", message="Glyph .* missing from")
    made = picture.draw()
    made.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    if name == "light":
      made.savefig(dots, format="png", dpi=160, facecolor="white")
  return vector.getvalue(), dots.getvalue()


def data_address(content: bytes, kind: str = "image/svg+xml") -> str:
  """A file as the address of an <img>, so that the page needs no other file."""
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"


class Drawn(NamedTuple):
  """The files of a picture: SVG in both themes, PNG on white."""
  picture: Picture
  light: bytes
  dark: bytes
  png: bytes


def drawn(picture: Picture) -> Drawn:
  """Draws a picture in both themes."""
  light, printed = _rendered(picture, "light")
  dark, _ = _rendered(picture, "dark")
  return Drawn(picture, light, dark, printed)


def write(folder: pathlib.Path, pictures: Sequence[Drawn]) -> None:
  """Every picture as NAME.png and NAME.svg.

  Raises:
    OSError: a file cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for one in pictures:
    files.replace(folder / f"{one.picture.name}.png", one.png)
    files.replace(folder / f"{one.picture.name}.svg", one.light)
