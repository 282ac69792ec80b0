"""Every method on CIFAR-100-LT, learning from half, at 10 epochs a task; the table in gr_jax/docs/methods.md."""


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/cifar100_methods.py --set=data_dir=FOLDER"""
  rows = {name: {"method": name} for name in ("gr", "finetune", "lwf", "wa", "icarl", "bic", "lucir", "joint")}
  rows |= {"finetune_without_memory": {"method": "finetune", "memory.per_class": 0},
           "joint_with_prior": {"method": "joint", "method_options.prior": True}}
  return {
      "config": "configs/cifar100_lt.py",
      "seeds": (0,),
      "rows": {name: {"epochs": 10, "milestones": (5, 7), **changes} for name, changes in rows.items()}}
