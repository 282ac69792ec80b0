"""Beyond the paper: schedules and augmentation, chosen on the hold-out (gr_jax/docs/method.md section 6)."""


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/cifar100_more.py --holdout --set=data_dir=FOLDER

  Choose a row by its last column. Then run it with --set=validation_fraction=0.0 and a separate --root, to train
  on the hold-out too.
  """
  cosine = {"schedule": "cosine", "milestones": ()}
  cutout = {"augmentation": "pad_resized_crop_flip_cutout"}
  longer = {"epochs": 320}
  return {
      "config": "configs/cifar100_lt.py",
      "seeds": (0, 1, 2),
      "rows": {
          "paper": {},
          "longer": {**longer, "milestones": (160, 240)},
          "cosine": cosine,
          "cosine_longer": {**cosine, **longer},
          "cutout": cutout,
          "cosine_cutout": {**cosine, **cutout},
          "cosine_longer_cutout": {**cosine, **longer, **cutout},
      }}
