"""Settings of CIFAR-100-LT for the full protocol, to choose by held-out images: gr_jax/docs/method.md section 8.

Needs the complete CIFAR-100: from a subset with just the images of rho = 100, both draws would be the same.
"""

# Of scenario.seed: other draws of images and other hold-outs than in the runs that are published.
DRAWS = (1, 2)
# Config keys that differ from configs/cifar100_lt.py. Fewer are simpler; of equally many, the one listed first.
SETTINGS = {
    "gr": {},
    "gr_cosine_schedule": {"schedule": "cosine", "milestones": ()},
    "gr_cosine_head": {"method_options.head": "cosine"},
    "gr_more_weight_decay": {"weight_decay": 1e-3},
    "gr_cutout": {"augmentation": "pad_resized_crop_flip_cutout"},
    "dynamic_distillation": {"method": "dynamic_distillation"},
    "lucir_gvalign": {"method": "lucir", "addons": "gvalign", "method_options.gvalign_statistics": "augmented"},
}


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/cifar100_choice.py --set=data_dir=FOLDER"""
  budget = {"epochs": 40, "milestones": (20, 30), "precision": "bfloat16", "evaluate_on": "holdout",
            "checkpoint_every_epochs": 2}
  return {
      "config": "configs/cifar100_lt.py",
      "seeds": (0,),
      "rows": {f"{name}_draw_{draw}": {**budget, **changes, "scenario.seed": draw}
               for draw in DRAWS for name, changes in SETTINGS.items()}}
