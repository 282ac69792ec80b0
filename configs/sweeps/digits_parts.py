"""Ablations of the method on the digits: the full method, and without one part or all of them."""


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/digits_parts.py"""
  return {
      "config": "configs/digits_lt.py",
      "seeds": (0, 1, 2),
      "rows": {
          "full": {},
          "no_reweighting": {"method_options.reweighting": "none"},
          "no_prior": {"method_options.prior": False},
          "plain_distillation": {"method_options.distillation": "kd"},
          "none_of_the_three": {"method_options.reweighting": "none", "method_options.prior": False,
                                "method_options.distillation": "kd"},
      }}
