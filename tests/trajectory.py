"""Loads the reference recordings in tests/fixtures (see the README there)."""

import pathlib
from dataclasses import dataclass

import numpy as np

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"


@dataclass(frozen=True)
class Task:
  """One recorded task. Parameters are {"backbone" | "classifier": {"kernel", "bias"}}."""

  x: np.ndarray  # [steps, batch, inputs] float32
  labels: np.ndarray  # [steps, batch] int32
  class_counts: np.ndarray  # [classes] int32, n', 0 = unseen
  lost: np.ndarray  # [classes] int32
  old: np.ndarray  # [classes] bool
  new: np.ndarray  # [classes] bool
  attenuation: float
  distillation_weight: float
  initial: dict  # parameters before the first step
  recorded: dict  # the same with a leading dimension [steps], after each step
  phi: np.ndarray  # [steps, classes] float64
  column: np.ndarray  # [steps, classes] float64
  cross_entropy: np.ndarray  # [steps] float64
  distillation: np.ndarray  # [steps] float64, L_kd with w_kd and T^2

  def after(self, step):
    """Parameters after `step`; -1 is the end of the task."""
    return {
      module: {name: array[step] for name, array in arrays.items()}
      for module, arrays in self.recorded.items()
    }


@dataclass(frozen=True)
class Trajectory:
  """All tasks in order, and what holds for all of them."""

  tasks: tuple[Task, ...]
  counts_original: np.ndarray  # [classes] int32, n
  memory: int
  learning_rate: float
  weight_decay: float
  momentum: float

  def teacher(self, t):
    """Parameters of task `t`'s teacher: the end of the task before."""
    if t == 0:
      raise ValueError("the first task has no teacher")
    return self.tasks[t - 1].after(-1)


def _parameters(arrays, prefix, t):
  return {
    module: {name: arrays[f"{prefix}_{module}_{name}"][t] for name in ("kernel", "bias")}
    for module in ("backbone", "classifier")
  }


def load():
  """The recorded trajectory as a Trajectory."""
  with np.load(FIXTURES / "trajectory.npz") as file:
    arrays = {name: file[name] for name in file.files}
  tasks = tuple(
    Task(
      x=arrays["inputs"][t],
      initial=_parameters(arrays, "initial", t),
      recorded=_parameters(arrays, "recorded", t),
      attenuation=float(arrays["attenuation"][t]),
      distillation_weight=float(arrays["distillation_weight"][t]),
      **{
        name: arrays[name][t]
        for name in (
          "labels",
          "class_counts",
          "lost",
          "old",
          "new",
          "phi",
          "column",
          "cross_entropy",
          "distillation",
        )
      },
    )
    for t in range(len(arrays["inputs"]))
  )
  return Trajectory(
    tasks=tasks,
    counts_original=arrays["counts_original"],
    memory=int(arrays["memory"]),
    learning_rate=float(arrays["learning_rate"]),
    weight_decay=float(arrays["weight_decay"]),
    momentum=float(arrays["momentum"]),
  )


def load_dakd():
  """The distillation cases: list of dicts student, teacher, lost, loss, gradient, imbalance."""
  with np.load(FIXTURES / "dakd.npz") as file:
    count = sum(name.endswith("_student") for name in file.files)
    names = ("student", "teacher", "lost", "loss", "gradient", "imbalance")
    return [{name: file[f"case{i}_{name}"] for name in names} for i in range(count)]
