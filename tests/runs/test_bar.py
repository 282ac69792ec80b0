"""What is shown while a run goes: a bar in a terminal, else a line a minute."""

import sys

import pytest

from gr_jax.runs import bar
from gr_jax.scenario import Task, plan


@pytest.fixture
def clock(monkeypatch):
  """time.monotonic, as a list whose last entry is the time."""
  times = [100.0]
  monkeypatch.setattr(bar.time, "monotonic", lambda: times[-1])
  monkeypatch.setattr(bar, "_LINES", bar.Interval(60.0))
  return times


def stage_bar(*, accuracy=None, index=0, first=0):
  """A stage of 5 epochs of 4 steps in a run of 40 steps."""
  stage = plan.StagePlan(number=1, task=Task(2, 4), index=index, name="correct_bias", context=None, size=30,
                         batch_size=8, epochs=5, steps_per_epoch=4, first_step=first, stop_step=first + 20)
  return bar.StageBar(stage, bar.Outlook(3, 40, accuracy), done=0)


def test_a_line_a_minute_where_there_is_no_terminal(clock, capsys):
  shown = stage_bar(accuracy=0.96, first=10)
  # The first call, which compiles, counts neither for the speed nor as a minute.
  for seconds, epoch in ((20, 0), (30, 0), (61, 1), (62, 1), (121, 2)):
    clock.append(100.0 + seconds)
    shown.move(epoch, steps=2, loss=0.5)
  shown.close()
  first, second = capsys.readouterr().err.splitlines()
  # 4 steps of 8 images in 41 s; 40 - 10 - 6 steps are left.
  assert first == "task 2/3 epoch 2/5: loss 0.5000, accuracy so far 96.00 %, 1 images/s, 4:06 left"
  assert second.startswith("task 2/3 epoch 3/5: loss 0.5000")


def test_the_minute_goes_on_from_stage_to_stage(clock, capsys):
  for seconds in (30, 59, 90):
    clock.append(100.0 + seconds)
    shown = stage_bar(index=1)
    shown.move(0, steps=2, loss=1.0)
    shown.close()
  assert capsys.readouterr().err == "task 2/3 correct bias epoch 1/5: loss 1.0000\n"


def test_a_bar_in_a_terminal(clock, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  shown = stage_bar()
  for seconds in (1, 2):
    clock.append(100.0 + seconds)
    shown.move(0, steps=2, loss=0.25)
  shown._bar.refresh()
  text = capsys.readouterr().err.split("\r")[-1]
  shown.close()
  assert text.startswith("task 2/3 epoch 1/5: loss 0.2500, 16 images/s, 0:18 left  20 %|") and "\n" not in text
