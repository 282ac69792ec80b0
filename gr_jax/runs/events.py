"""Event files for TensorBoard, from the rows of metrics.jsonl; written without TensorFlow.

The files hold what metrics.jsonl holds: every start of a run replaces those of earlier starts by one with the rows that
remain. So no step has two points, and the key `tensorboard` may change between two starts.
"""

from __future__ import annotations

import importlib.util
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gr_jax.errors import UserError

# In the folder of a run.
FOLDER = "tensorboard"

# Keys of an epoch's row that are no measurements.
_PLACES = ("kind", "task", "epoch", "stage", "global_step", "start", "seconds")
# Keys of a task's row that are plotted, and their names.
_OF_A_TASK = {"task_accuracies": "accuracy", "average_incremental_accuracy": "average_incremental_accuracy",
              "task_mean_accuracies": "mean_of_tasks", "forgetting": "forgetting",
              "backward_transfer": "backward_transfer"}


def check() -> None:
  """Raises UserError if the writer is not installed."""
  if importlib.util.find_spec("tensorboardX") is None:
    raise UserError("tensorboard is True, but tensorboardX is not installed; run: pip install tensorboardX, "
                    "or set --config.tensorboard=False")


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
  """The points of a row by tag: STAGE/KEY for an epoch, after_task/KEY and so on for a task."""
  if row["kind"] == "epoch":
    return {f"{row['stage']}/{key}": float(value) for key, value in row.items()
            if key not in _PLACES and isinstance(value, (int, float))}
  points = {f"after_task/{name}": row.get(key) for key, name in _OF_A_TASK.items()}
  points |= {f"accuracy_of_task/{number}": value
             for number, value in enumerate(row.get("accuracy_matrix", ()), start=1)}
  points |= {f"many_medium_few/{name}": group and group["accuracy"]
             for name, group in row.get("many_medium_few", {}).items()}
  points |= {f"calibration_error/{name}": figures["all"]["ece"]
             for name, figures in (row.get("calibration") or {}).items() if figures and figures.get("all")}
  return {tag: float(value) for tag, value in points.items() if value is not None}


class Events:
  """The event file of a start."""

  def __init__(self, folder: pathlib.Path, rows: Sequence[Mapping[str, Any]]):
    """Replaces the event files in a folder by one with these rows.

    Args:
      folder: for event files; created if missing.
      rows: of metrics.jsonl, in order.
    """
    # Imported here because it is optional. Not its SummaryWriter: that writes later, through a queue for processes.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import SessionLog
    folder.mkdir(exist_ok=True)
    for path in folder.glob("events.out.tfevents.*"):
      path.unlink()
    self._writer = EventsWriter(str(folder / "events"))
    # Points are placed in time by the seconds of training, pauses between starts left out.
    self._began = time.time() - (rows[-1]["seconds"] if rows else 0.0)
    # A TensorBoard that is open forgets the points of the files that are gone.
    self._add(0.0, step=0, session_log=SessionLog(status=SessionLog.START))
    for row in rows:
      self._add_row(row)
    self._writer.flush()

  def write(self, row: Mapping[str, Any]) -> None:
    """Adds a row and flushes it to disk."""
    self._add_row(row)
    self._writer.flush()

  def _add_row(self, row: Mapping[str, Any]) -> None:
    from tensorboardX.proto.summary_pb2 import Summary
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row).items()]
    self._add(row["seconds"], step=row["global_step"], summary=Summary(value=values))

  def _add(self, seconds: float, **content: Any) -> None:
    from tensorboardX.proto.event_pb2 import Event
    self._writer.write_event(Event(wall_time=self._began + seconds, **content))

  def close(self) -> None:
    self._writer.close()
