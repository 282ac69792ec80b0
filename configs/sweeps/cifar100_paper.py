"""The paper's CIFAR-100-LT settings that need only the rho = 100 images, and ablations of the method."""

_LFH10 = {"scenario.num_tasks": 11}
_SCRATCH = {"scenario.first_task_classes": None}


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/cifar100_paper.py --set=data_dir=FOLDER"""
  plain = {"method_options.reweighting": "none", "method_options.prior": False, "method_options.distillation": "kd"}
  return {
      "config": "configs/cifar100_lt.py",
      "seeds": (0, 1, 2),
      "rows": {
          "shuffled_lfh5": {},
          "shuffled_lfh10": _LFH10,
          "parts_plain": plain,
          "parts_prior": {**plain, "method_options.prior": True},
          "parts_class": {**plain, "method_options.prior": True, "method_options.reweighting": "class"},
          "parts_dgr": {"method_options.distillation": "kd"},
          "parts_symmetric": {"method_options.task_ratio": "symmetric"},
          "ordered_lfh5": {"scenario.kind": "ltio"},
          "ordered_lfh10": {"scenario.kind": "ltio", **_LFH10},
          "shuffled_lfs10": {**_SCRATCH, "scenario.num_tasks": 10},
          "shuffled_lfs20": {**_SCRATCH, "scenario.num_tasks": 20},
          "memory10": {"memory.per_class": 10},
          "memory50": {"memory.per_class": 50},
          "rho150": {"scenario.imbalance": 150.0},
      }}
