"""Orbax behind one module: digests, what is kept, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr_jax import parallel
from gr_jax.checkpoints import Checkpoints
from gr_jax.errors import UserError


def tree(value):
  params = {"a": jax.random.normal(jax.random.key(value), (64, 65)), "b": {"c": jnp.arange(3) + int(value)}}
  return {"model": params, "training": {"opt": optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9)).init(
      params), "step": jnp.int32(value)}}


def shapes(items):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), items)


@pytest.fixture
def folder(tmp_path):
  with Checkpoints(tmp_path, keep=(2, 5)) as checkpoints:
    for step in (1, 2, 3, 5, 6, 7):
      checkpoints.save(step, tree(step), {"note": step})
  return tmp_path


def test_ends_of_tasks_and_the_newest_stay(folder):
  with Checkpoints(folder, read_only=True) as checkpoints:
    assert checkpoints.steps() == [2, 5, 7]
    assert checkpoints.record(5)["note"] == 5


def test_what_is_restored_is_what_was_saved(folder):
  with Checkpoints(folder, read_only=True) as checkpoints:
    found = checkpoints.restore(7, shapes(tree(0)))
  jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.asarray, tree(7)))
  assert jax.tree.structure(found) == jax.tree.structure(tree(7))


def test_one_item_can_be_restored_alone(folder):
  with Checkpoints(folder, read_only=True) as checkpoints:
    assert set(checkpoints.restore(2, {"model": shapes(tree(0))["model"]})) == {"model"}


def data_files(folder, step, item):
  return [file for file in (folder / str(step) / item).rglob("*") if file.is_file() and "/d/" in str(file)]


def test_a_flipped_byte_is_noticed(folder):
  # Orbax itself restores such a file without a word, with other values.
  file = max(data_files(folder, 7, "model"), key=lambda f: f.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(bytes(content))
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
  with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(UserError, match="cannot be read"):
    checkpoints.restore(7, wrong)


def test_an_older_step_cannot_be_saved_unnoticed(folder):
  # Orbax returns False there and goes on.
  with Checkpoints(folder) as checkpoints, pytest.raises(OSError, match="refused to save step 7"):
    checkpoints.save(7, tree(1), {})


def test_another_format_is_refused(folder, monkeypatch):
  monkeypatch.setattr("gr_jax.checkpoints.FORMAT", 2)
  with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(UserError, match="format 1, .* reads 2"):
    checkpoints.record(7)


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
