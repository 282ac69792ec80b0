"""IL2M's statistics and rectified scores against float64 NumPy, and the identity where nothing has changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import il2m as reference

from gr_jax import losses, methods, rectification
from gr_jax.methods.base import Context, Outputs

OLD = np.arange(7) < 3
NEW = (np.arange(7) >= 3) & (np.arange(7) < 5)
SEEN = OLD | NEW
TASK_OF_CLASS, TASK = np.asarray([0, 0, 1, 2, 2, 3, 3], np.int32), 2
# What stands in columns of unseen classes must not matter.
RUBBISH = 1e30


def scores_of(rng, images=40):
  scores = rng.normal(1, 2, (images, 7)).astype(np.float32)
  scores[:, ~SEEN] = RUBBISH
  return scores


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_rectified_scores(seed):
  rng = np.random.default_rng(seed)
  scores, initial, present = scores_of(rng), *rng.uniform(0.5, 3, (2, 7))
  confidences = rng.uniform(0.5, 3, 4)
  # A class without exemplars keeps its score.
  present[rng.integers(7)] = 0
  statistics = rectification.Statistics(*(jnp.asarray(values, jnp.float32) for values in (
      initial, present, confidences[TASK_OF_CLASS])))
  rectified = rectification.rectified(jnp.asarray(scores), statistics, OLD, NEW)
  expected = reference.rectified(scores, initial, present, confidences, TASK_OF_CLASS, OLD, NEW, TASK)
  np.testing.assert_allclose(np.asarray(rectified)[:, SEEN], expected[:, SEEN], rtol=1e-5)
  assert (rectified[:, :3] != scores[:, :3]).any()


def test_equal_statistics_change_nothing():
  scores = scores_of(np.random.default_rng(0))
  statistics = rectification.Statistics(*(jnp.full(7, value, jnp.float32) for value in (0.7, 0.7, 1.3)))
  np.testing.assert_array_equal(rectification.rectified(jnp.asarray(scores), statistics, OLD, NEW), scores)


@pytest.mark.parametrize("which", ["initial", "present", "confidence"])
def test_a_mean_that_is_not_positive_changes_nothing(which):
  """A negative factor would turn a score around."""
  scores = scores_of(np.random.default_rng(0))
  statistics = rectification.Statistics(*(jnp.full(7, value, jnp.float32) for value in (0.7, 0.9, 1.3)))
  statistics = statistics._replace(**{which: jnp.full(7, -0.5)})
  np.testing.assert_array_equal(rectification.rectified(jnp.asarray(scores), statistics, OLD, NEW), scores)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_statistics_outlive_a_task(kind):
  """Two tasks through the method's own functions, in blocks with rows that do not count."""
  rng = np.random.default_rng(1)
  method = methods.make("il2m", {"scores": kind}, memory=20)
  carry, nothing, zeros = {name: leaf for name, leaf in method.init_carry(6, 7).items()
                           if name in rectification.Statistics._fields}, np.zeros(7, bool), np.zeros(7, np.float32)
  first = Context(np.int32(1), nothing, OLD, zeros, zeros, zeros, TASK_OF_CLASS)
  second = Context(np.int32(2), OLD, NEW, zeros, zeros, zeros, TASK_OF_CLASS)
  expected = {}
  for context in (first, second):
    seen, logits = np.asarray(context.seen), scores_of(rng)
    logits[:, ~seen] = RUBBISH
    labels = rng.choice(np.flatnonzero(seen), 40)
    parts = []
    for half in np.split(np.arange(40), 2):
      valid = np.arange(20) < 17
      outputs = Outputs(jnp.asarray(logits[half]), jnp.asarray(logits[half]), jnp.zeros((20, 6)), ())
      parts.append(method.after_memory.measure(outputs, jnp.asarray(labels[half]), jnp.asarray(valid), context))
    carry = method.after_memory.keep(carry, jax.tree.map(jnp.add, *parts), context)
    counted = np.concatenate([np.arange(17), 20 + np.arange(17)])
    scores, labels = logits[counted], labels[counted]
    scores = reference.probabilities(scores, seen) if kind == "probabilities" else scores.astype(np.float64)
    expected["present"], _ = reference.class_means(scores, labels, seen)
    for j in np.flatnonzero(context.new):
      expected.setdefault("initial", np.zeros(7))[j] = expected["present"][j]
      expected.setdefault("confidence", np.zeros(7))[j] = reference.confidence(
          scores[np.asarray(context.new)[labels]], seen)
  assert carry.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(carry[name], values, rtol=1e-5, err_msg=name)
  # The score of the method is that of its statistics.
  logits = jnp.asarray(scores_of(rng))
  outputs = Outputs(logits, logits, jnp.zeros((40, 6)), ())
  base = logits if kind == "logits" else jnp.exp(losses.masked_log_softmax(logits, SEEN))
  np.testing.assert_allclose(
      method.scores["rectified"](outputs, carry, second)[:, SEEN],
      rectification.rectified(base, rectification.Statistics(**carry), OLD, NEW)[:, SEEN], rtol=1e-6)
  np.testing.assert_array_equal(method.scores["logits"](outputs, carry, second), logits)
