"""Pictures as files: SVG in two themes, PNG."""

import io
import xml.etree.ElementTree

import PIL.Image
import reported

from gr_jax.report import compared, records, single, style, tables


def test_pictures_are_files_that_others_can_read(tmp_path):
  run = records.read(reported.run(tmp_path / "run"))
  group, = tables.groups_of([run])
  chosen = [compared.pictures(group, "")[0], *(one for one in single.pictures(run, "")[0] if one.name in (
      "confusion_classes",))]
  made = [style.drawn(picture) for picture in chosen]
  style.write(tmp_path / "pictures", made)
  assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
      "accuracy.png", "accuracy.svg", "confusion_classes.png", "confusion_classes.svg"]
  for one in made:
    assert xml.etree.ElementTree.fromstring(one.light).tag.endswith("svg")
    assert one.light != one.dark
    assert PIL.Image.open(io.BytesIO(one.png)).size[0] > 600
  # The same numbers give the same files.
  assert style.drawn(chosen[0]).light == made[0].light


def test_ticks_of_tasks_are_whole_numbers_however_few_there_are():
  for tasks in ([2], [1, 2], [1.09, 2.09], range(1, 200)):
    _, (axes,) = style.figure()
    axes.plot(tasks, [0.5] * len(tasks), "o")
    style.whole_numbers(axes)
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert shown and len(shown) <= 11 and all(tick == round(tick) for tick in shown)


def test_an_axis_from_zero_ends_above_the_highest_value():
  _, (axes, empty) = style.figure(1, 2)
  axes.plot([1, 2], [0.415, 0.42])
  for panel in (axes, empty):
    style.from_zero(panel)
  assert axes.get_ylim()[0] == 0 and 0.43 < axes.get_ylim()[1] < 0.5
  assert empty.get_ylim() == (0, 1)
