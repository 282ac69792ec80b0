"""Orbax behind one module: digests, what is kept, what is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr_jax.devices import parallel
from gr_jax.errors import UserError
from gr_jax.runs.checkpoints import Checkpoints


def tree(value):
  params = {"a": jax.random.normal(jax.random.key(value), (64, 65)), "b": {"c": jnp.arange(3) + int(value)}}
  return {"model": params, "training": {"opt": optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9)).init(
      params), "step": jnp.int32(value)}}


def shapes(items):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), items)


@pytest.fixture
def folder(tmp_path):
  place = tmp_path / "checkpoints"
  with Checkpoints(place, keep=(2, 5)) as checkpoints:
    for step in (1, 2, 3, 5, 6, 7):
      checkpoints.save(step, tree(step), {"note": step})
  return place


def test_ends_of_tasks_and_the_two_newest_stay(folder):
  with Checkpoints(folder, read_only=True) as checkpoints:
    assert checkpoints.steps() == [2, 5, 6, 7]
    assert checkpoints.record(5)["note"] == 5


def test_what_is_restored_is_what_was_saved(folder):
  with Checkpoints(folder, read_only=True) as checkpoints:
    restored = checkpoints.restore(7, shapes(tree(0)))
  jax.tree.map(np.testing.assert_array_equal, restored, jax.tree.map(np.asarray, tree(7)))
  assert jax.tree.structure(restored) == jax.tree.structure(tree(7))


def test_one_item_can_be_restored_alone(folder):
  with Checkpoints(folder, read_only=True) as checkpoints:
    assert set(checkpoints.restore(2, {"model": shapes(tree(0))["model"]})) == {"model"}


def data_files(folder, step, item):
  return [file for file in (folder / str(step) / item).rglob("*") if file.is_file() and "/d/" in str(file)]


def test_a_flipped_byte_is_noticed(folder):
  # Orbax itself restores such a file without a word, with other values.
  flip(folder, 7)
  with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(UserError, match="cannot be read"):
    checkpoints.restore(7, shapes(tree(0)))


# Orbax leaves a coroutine behind when an item is missing.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["cut", "delete", "item", "record"])
def test_damage_is_named(folder, damage):
  if damage in ("cut", "delete"):
    for file in data_files(folder, 7, "model"):
      file.write_bytes(file.read_bytes()[:10]) if damage == "cut" else file.unlink()
  else:
    gone = folder / "7" / {"item": "training", "record": "record"}[damage]
    gone.rename(folder / "elsewhere")
  with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(UserError, match="7 cannot be read"):
    checkpoints.restore(7, shapes(tree(0)))


def test_another_shape_is_refused(folder):
  wrong = shapes(tree(0))
  wrong["model"]["a"] = jax.ShapeDtypeStruct((64, 66), jnp.float32)
  with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match=r"model\['a'\] is float32\[64, 65\], but the "
                                                                          r"model takes float32\[64, 66\]"):
    checkpoints.restore_newest(lambda record: wrong, warn=pytest.fail)
  # Orbax would cast the values without a word.
  wrong["model"]["a"] = jax.ShapeDtypeStruct((64, 65), jnp.bfloat16)
  with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(UserError, match="takes bfloat16"):
    checkpoints.restore(7, wrong)
  del wrong["model"]["a"]
  with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(UserError, match="takes no such array"):
    checkpoints.restore(7, wrong)


def test_an_older_step_cannot_be_saved_unnoticed(folder):
  # Orbax returns False there and goes on.
  with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match="7 or .* not be written .* refused"):
    checkpoints.save(7, tree(1), {})


def test_another_format_is_refused(folder, monkeypatch):
  monkeypatch.setattr("gr_jax.runs.checkpoints.FORMAT", 5)
  with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match="format 4, .* reads 5"):
    # Not damaged, so nothing is set aside.
    checkpoints.restore_newest(lambda record: shapes(tree(0)), warn=pytest.fail)
  assert (folder / "7").is_dir()
  with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(UserError, match="format 4, .* reads 5"):
    checkpoints.restore(7, shapes(tree(0)))


def test_an_older_format_is_read_and_not_written(folder, monkeypatch):
  """Evaluating is possible; resuming names the commit that can."""
  monkeypatch.setattr("gr_jax.runs.checkpoints.FORMAT", 5)
  monkeypatch.setattr("gr_jax.runs.checkpoints.OLDER", {4: "abc1234"})
  with Checkpoints(folder) as checkpoints, pytest.raises(
      UserError, match="format 4, .* resumes only format 5; commit abc1234 is the last one that can resume it"):
    checkpoints.restore_newest(lambda record: shapes(tree(0)), warn=pytest.fail)
  assert (folder / "7").is_dir() and not folder.with_name("damaged").exists()
  with Checkpoints(folder, read_only=True) as checkpoints:
    restored = checkpoints.restore(7, shapes(tree(0)))
  jax.tree.map(np.testing.assert_array_equal, restored, jax.tree.map(np.asarray, tree(7)))


@pytest.mark.parametrize("key, flipped", [
    (b'"format": 4', b'"format": 5'), (b'"format"', b'"gormat"'), (b'"digest"', b'"eigest"'), (b"{", b"[")])
def test_a_flipped_bit_of_the_record_is_damage(folder, key, flipped):
  """And not another format, which would be refused, nor a program error."""
  file = folder / "7" / "record" / "metadata"
  content = file.read_bytes()
  assert content.count(key) and sum((a ^ b).bit_count() for a, b in zip(key, flipped)) == 1
  file.write_bytes(content.replace(key, flipped, 1))
  told = []
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.restore_newest(lambda record: shapes(tree(0)), warn=told.append)[0] == 6
  assert len(told) == 1 and "checkpoint 7 is damaged" in told[0]


def test_arrays_may_be_donated_right_after_saving(tmp_path):
  """The step that follows a save overwrites the very buffers that were saved."""
  devices = jax.devices()[:2]
  overwrite = parallel.spread(lambda t: jax.tree.map(lambda leaf: leaf * 0 - 1, t), devices, 1, donate=(0,))
  with Checkpoints(tmp_path, keep=range(9)) as checkpoints:
    for step in range(1, 9):
      items = parallel.replicate({"model": {"a": jnp.full((512, 512), float(step))}}, devices)
      checkpoints.save(step, items, {})
      overwrite(items["model"])
  target = {"model": {"a": jax.ShapeDtypeStruct((512, 512), jnp.float32)}}
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    for step in range(1, 9):
      np.testing.assert_array_equal(checkpoints.restore(step, target)["model"]["a"], step)


def flip(folder, step):
  file = max(data_files(folder, step, "model"), key=lambda f: f.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(bytes(content))


def empty(folder, step):
  shutil.rmtree(folder / str(step))
  (folder / str(step)).mkdir()


def cut(folder, step):
  for file in data_files(folder, step, "model"):
    file.write_bytes(file.read_bytes()[:10])


def lose(folder, step):
  shutil.rmtree(folder / str(step) / "training")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [flip, empty, cut, lose])
def test_a_damaged_newest_one_is_set_aside_and_saved_anew(folder, damage):
  damage(folder, 7)
  told = []
  with Checkpoints(folder, keep=(2, 5)) as checkpoints:
    step, record, items = checkpoints.restore_newest(lambda record: shapes(tree(0)), warn=told.append)
    assert (step, record["note"]) == (6, 6) and len(told) == 1 and "checkpoint 7 is damaged" in told[0]
    jax.tree.map(np.testing.assert_array_equal, items, jax.tree.map(np.asarray, tree(6)))
    # Left where it was, Orbax would refuse that step.
    checkpoints.save(7, tree(7), {"note": 7})
  assert (folder.with_name("damaged") / "7").is_dir()
  damage(folder, 7)
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.restore_newest(lambda record: shapes(tree(0)), warn=told.append)[0] == 6
  assert (folder.with_name("damaged") / "7-2").is_dir()


def test_where_all_are_damaged_none_is_left(folder):
  for step in (2, 5, 6, 7):
    flip(folder, step)
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.restore_newest(lambda record: shapes(tree(0)), warn=lambda line: None) is None
    assert checkpoints.steps() == []


def test_a_folder_that_was_not_finished_is_cleared_away(folder):
  shutil.copytree(folder / "7", folder / "8.orbax-checkpoint-tmp-0")
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.restore_newest(lambda record: shapes(tree(0)), warn=pytest.fail)[0] == 7
    checkpoints.save(8, tree(8), {"note": 8})
  assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["7", "8"]


def test_what_is_not_finite_is_named_and_not_saved(folder):
  bad = tree(8)
  bad["model"]["a"] = bad["model"]["a"].at[3, 4].set(jnp.nan)
  with Checkpoints(folder) as checkpoints:
    with pytest.raises(FloatingPointError, match=r"after step 8: .*\['model'\]\['a'\]; they were not saved"):
      checkpoints.save(8, bad, {})
    assert checkpoints.steps()[-1] == 7


def test_a_half_deleted_one_is_cleared_away(folder):
  shutil.copytree(folder / "6", folder / "4")
  shutil.rmtree(folder / "4" / "record")
  with Checkpoints(folder, keep=(2, 5)) as checkpoints:
    assert checkpoints.steps() == [2, 5, 6, 7]
  assert not (folder / "4").exists()
