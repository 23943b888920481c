"""A functional JAX/Flax library for machine-learning tasks; see README.md."""

__version__ = "0.1.0"
