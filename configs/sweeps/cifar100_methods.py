"""Every method on CIFAR-100-LT, learning from half, at 10 epochs a task; the table in gr_jax/docs/methods.md."""


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/cifar100_methods.py --set=data_dir=FOLDER"""
  rows = {name: {"method": name} for name in (
      "gr", "finetune", "lwf", "wa", "icarl", "bic", "lucir", "joint")}
  rows |= {"finetune_without_memory": {"method": "finetune", "memory.per_class": 0},
           "joint_with_prior": {"method": "joint", "method_options.prior": True}}
  rows |= {name: {"method": name} for name in (
      "eeil", "il2m", "ssil", "podnet", "der", "foster", "mafdrc", "dynamic_distillation", "simplecil")}
  rows |= {f"lucir_{addon}": {"method": "lucir", "addons": addon} for addon in ("lws", "gvalign", "gpa")}
  rows |= {f"{name}_with_gr": {"method": name, "method_options.reweighting": "dgr", "method_options.prior": True}
           for name in ("lucir", "wa", "podnet")}
  return {
      "config": "configs/cifar100_lt.py",
      "seeds": (0,),
      # bfloat16 takes under half of float32's time on a CPU with AMX.
      "rows": {name: {"epochs": 10, "milestones": (5, 7), "precision": "bfloat16", **changes}
               for name, changes in rows.items()}}
