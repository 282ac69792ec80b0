"""A trained network in one file that needs JAX alone: from uint8 views to probabilities."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from gr_jax import files
from gr_jax.data.image import RESIZE_OVER_CROP
from gr_jax.errors import UserError
from gr_jax.serving.model import Model
from gr_jax.serving.views import Form

PLATFORMS = ("cpu", "cuda")


def export(model: Model, out: pathlib.Path) -> pathlib.Path:
  """Writes the network to `out`, and what a user of it must know to the same name with .json.

  The file is what jax.export serializes: a function of uint8 [batch, side, side, channels], for any batch, that returns
  float32 [batch, classes]. Normalisation, network, score and temperature are inside.

  Args:
    model: the network.
    out: the file to write.

  Returns:
    The path of the description.

  Raises:
    UserError: `out` ends with .json or is a folder, or its folder does not exist.
  """
  beside = out.with_suffix(".json")
  if beside == out:
    raise UserError(f"--out is {out}, but the description takes that name; choose another ending, such as .bin")
  if not out.parent.is_dir():
    raise UserError(f"--out is {out}, but the folder {out.parent} does not exist; create it")
  if out.is_dir() or beside.is_dir():
    raise UserError(f"--out is {out}, but {out if out.is_dir() else beside} is a folder; name a file, such as "
                    f"{out / 'model.bin'}")
  content = bytes(exported(model).serialize())
  files.replace(out, content)
  files.replace(beside, json.dumps(description(model, out.name), indent=1) + "\n")
  return beside


def exported(model: Model) -> jax.export.Exported:
  """The function of `export` with a symbolic batch, for all of PLATFORMS."""
  batch, = jax.export.symbolic_shape("batch")
  views = jax.ShapeDtypeStruct((batch, model.form.side, model.form.side, model.form.channels), jnp.uint8)
  network = jax.device_get(model.network)
  return jax.export.export(jax.jit(functools.partial(model.classify, network)), platforms=PLATFORMS)(views)


def description(model: Model, name: str) -> dict[str, Any]:
  """What stands beside the file: classes, input, preprocessing, calibration."""
  form = model.form
  return {
      "file": name, "classes": list(model.classes),
      "input": f"uint8 [batch, {form.side}, {form.side}, {form.channels}], any batch of 1 or more",
      "output": f"float32 [batch, {len(model.classes)}]: probabilities, in the order of `classes`",
      "preprocessing": _preprocessing(form), "platforms": list(PLATFORMS),
      "score": model.score, "calibrated": model.temperature is not None, "temperature": model.temperature,
      "task": model.task, "tasks": model.num_tasks, "jax": jax.__version__, "needs": ["jax", "flatbuffers"],
      "use": f"jax.export.deserialize(bytearray(pathlib.Path({name!r}).read_bytes())).call(views)"}


def _preprocessing(form: Form) -> list[str]:
  """Steps from a picture file to a view; what views.read does."""
  colours = "RGB" if form.channels == 3 else "grey"
  steps = ["decode the first frame and turn it upright (EXIF orientation)",
           "drop alpha; of 16-bit grey keep the upper byte; repeat grey for red, green and blue"]
  if form.uniform:
    steps.append(f"unless it is {form.side} x {form.side} pixels: take the central square and resize it to that size "
                 f"(antialiased bilinear)")
  else:
    steps += [f"resize the short side to {round(form.side * RESIZE_OVER_CROP)} pixels (antialiased bilinear)",
              f"take the central {form.side} x {form.side} pixels"]
  return [*steps, f"pass {colours} values 0 to 255 as uint8; the file normalises them"]
