"""Learning rates of every epoch, and the optimizer that holds them against a float64 computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax import optimizer


def test_learning_rate_drops_after_finished_epochs():
  rates = optimizer.learning_rates(schedule="steps", base=0.1, epochs=6, milestones=(2, 4), decay=0.1)
  np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_learning_rate_follows_half_a_cosine():
  rates = optimizer.learning_rates(schedule="cosine", base=0.2, epochs=6, milestones=(), decay=0.1)
  # cos 0, 60, 90 and 120 degrees.
  np.testing.assert_allclose([rates[0], rates[2], rates[3], rates[4]], [0.2, 0.15, 0.1, 0.05], atol=1e-12)
  assert len(rates) == 6 and all(np.diff(rates) < 0) and rates[5] > 0
  # 180 degrees, where a seventh epoch would begin: the same curve over twice the epochs ends at half the way.
  longer = optimizer.learning_rates(schedule="cosine", base=0.2, epochs=12, milestones=(), decay=0.1)
  np.testing.assert_allclose(longer[::2], rates)
  np.testing.assert_allclose(longer[1] + longer[11], 0.2)


@pytest.mark.parametrize("schedule, milestones", [("steps", (1, 3)), ("cosine", ())])
@pytest.mark.parametrize("momentum, weight_decay", [(0.9, 5e-4), (0.0, 0.0), (0.9, 0.0), (0.0, 1e-2)])
def test_the_rates_inside_the_optimizer(schedule, milestones, momentum, weight_decay):
  """Twelve steps, three an epoch, against the formulas of docs/method.md section 6 in float64."""
  rates = optimizer.learning_rates(schedule=schedule, base=0.1, epochs=4, milestones=milestones, decay=0.1)
  tx = optimizer.sgd(rates, momentum=momentum, weight_decay=weight_decay)
  rng = np.random.default_rng(0)
  params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
  expected = {name: (value, np.zeros_like(value)) for name, value in params.items()}
  params = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), params)
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(12):
    grads = {name: rng.normal(size=value.shape) for name, value in params.items()}
    epoch = step // 3
    updates, state = update(jax.tree.map(lambda grad: jnp.asarray(grad, jnp.float32), grads), state, params,
                            epoch=jnp.int32(epoch))
    params = jax.tree.map(jnp.add, params, updates)
    for name, (value, trace) in expected.items():
      trace = momentum * trace + grads[name] + weight_decay * value
      # The rate of the epoch multiplies the whole trace: momentum gathered at another rate is not scaled back.
      expected[name] = value - rates[epoch] * trace, trace
      np.testing.assert_allclose(params[name], expected[name][0], rtol=2e-6, atol=2e-6)


def test_one_program_for_all_epochs():
  tx, traced = optimizer.sgd((0.1, 0.01, 0.001), momentum=0.9, weight_decay=0.0), []

  @jax.jit
  def update(grads, state, params, epoch):
    traced.append(1)
    return tx.update(grads, state, params, epoch=epoch)

  params = {"kernel": jnp.ones((2, 2))}
  for epoch, rate in enumerate((0.1, 0.01, 0.001)):
    updates, _ = update(params, tx.init(params), params, jnp.int32(epoch))
    np.testing.assert_allclose(updates["kernel"], -rate, rtol=1e-6)
  assert len(traced) == 1
