"""CIFAR-100-LT settings that need all 50,000 training images."""


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/cifar100_full_set.py"""
  return {
      "config": "configs/cifar100_lt.py",
      "seeds": (0, 1, 2),
      "rows": {
          "rho50": {"scenario.imbalance": 50.0},
          "conventional_lfh5": {"scenario.kind": "conv"},
      }}
