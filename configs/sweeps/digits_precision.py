"""The effect of precision on accuracy, on the digits."""


def get_sweep() -> dict:
  """python -m gr_jax.sweep --sweep=configs/sweeps/digits_precision.py"""
  return {
      "config": "configs/digits_lt.py",
      "seeds": (0, 1, 2),
      "rows": {
          "float32": {"precision": "float32"},
          "bfloat16": {"precision": "bfloat16"},
      }}
