"""CIFAR-100-LT at the full protocol, beside what is published: the table in gr_jax/docs/method.md."""


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/cifar100_published.py --set=data_dir=FOLDER

  The most important first. A run takes hours on a CPU; rerun the command to resume.
  """
  rows = {
      "gr": {},
      "none_of_the_three": {"method_options.reweighting": "none", "method_options.prior": False,
                            "method_options.distillation": "kd"},
      # The best of configs/sweeps/cifar100_choice.py, in its precision.
      "gr_cosine_head": {"method_options.head": "cosine", "precision": "bfloat16"},
      "lucir": {"method": "lucir"},
      "gr_ordered": {"scenario.kind": "ltio"},
      "gr_10_increments": {"scenario.num_tasks": 11},
      "gr_from_scratch_20": {"scenario.num_tasks": 20, "scenario.first_task_classes": None},
  }
  return {
      "config": "configs/cifar100_lt.py",
      "seeds": (0,),
      "rows": {name: {"precision": "float32", "checkpoint_every_epochs": 2, **changes}
               for name, changes in rows.items()}}
