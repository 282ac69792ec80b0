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
