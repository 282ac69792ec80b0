"""What each part of the method brings on CIFAR-100-LT, at 10 epochs a task: the table in gr_jax/docs/method.md."""


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/cifar100_parts.py --set=data_dir=FOLDER"""
  rows = {
      "full": {},
      "no_reweighting": {"method_options.reweighting": "none"},
      "no_prior": {"method_options.prior": False},
      "plain_distillation": {"method_options.distillation": "kd"},
      "none_of_the_three": {"method_options.reweighting": "none", "method_options.prior": False,
                            "method_options.distillation": "kd"},
      "symmetric_task_ratio": {"method_options.task_ratio": "symmetric"},
  }
  # The precision of configs/sweeps/cifar100_methods.py, so that the tables compare.
  budget = {"epochs": 10, "milestones": (5, 7), "precision": "bfloat16", "checkpoint_every_epochs": 2}
  return {
      "config": "configs/cifar100_lt.py",
      "seeds": (0, 1, 2),
      "rows": {name: {**budget, **changes} for name, changes in rows.items()}}
