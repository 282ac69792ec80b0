"""Gradient Reweighting for imbalanced class-incremental learning, in JAX (He & Zhu, CVPR 2024)."""

__version__ = "0.1.0"
