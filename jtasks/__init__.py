"""A functional JAX/Flax library for machine-learning tasks; see README.md."""
