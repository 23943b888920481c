"""The beginning of small task files: their imports, and the config of a linear model on made numbers."""

HEAD = """
import pathlib, sys
import jax, jax.numpy as jnp, ml_collections, numpy as np
from jtasks.metrics import Mean

def get_config():
    config = ml_collections.ConfigDict()
    config.task = __file__
    config.steps, config.batch_size, config.log_every = 20, 8, 1
    config.optim = dict(name="sgd", lr=0.01)
    return config
"""
