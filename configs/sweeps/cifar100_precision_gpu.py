"""The precisions of a GPU: CIFAR-100-LT, LFH 5, 10 epochs a task, three seeds each."""


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/cifar100_precision_gpu.py"""
  short = {"epochs": 10, "milestones": (5, 7), "checkpoint_every_epochs": 2}
  return {
      "config": "configs/cifar100_lt.py",
      "seeds": (0, 1, 2),
      "rows": {precision: {"precision": precision, **short} for precision in ("float32", "tf32", "bfloat16")},
  }
