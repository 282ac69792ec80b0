"""Compares mixed precision and bfloat16 with float32: CIFAR-100-LT, LFH 5, 10 epochs per task, five seeds each."""


def get_sweep():
  """python -m gr_jax.sweep --sweep=configs/sweeps/cifar100_precision.py"""
  short = {"epochs": 10, "milestones": (5, 7), "checkpoint_every_epochs": 2}
  return {
      "config": "configs/cifar100_lt.py",
      "seeds": (0, 1, 2, 3, 4),
      "rows": {precision: {"precision": precision, **short} for precision in ("float32", "mixed", "bfloat16")},
  }
