"""A linear model with dropout on made numbers, which compiles in no time: for tests of the run around a task.

PACE in the environment is how many seconds it takes to read an example, so that a test can act before the run ends.
"""

import os
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jtasks.metrics import Mean


def get_config():
    config = ml_collections.ConfigDict()
    config.task = __file__
    config.steps, config.batch_size, config.show_count = 6, 8, 0
    config.data = {"threads": 1}
    config.model = {"width": 3}
    config.optim = {"name": "adamw", "lr": 0.01, "schedule": "constant", "warmup": 0.0}
    return config


class Rows:
    def __init__(self, count, width):
        self.count, self.width = count, width

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        time.sleep(float(os.environ.get("PACE", "0")))
        x = np.random.default_rng(i).normal(size=self.width).astype(np.float32)
        return {"x": x, "y": x.sum()}


def dataset(split, config):
    count = {"train": 64, "valid": 13, "test": 0}[split]
    return Rows(count, config.model.width) if count else None


def init(rng, batch, config):
    return {"w": jnp.zeros(config.model.width)}


def metrics(params, batch, keep):
    return {"loss": Mean.of(jnp.square((keep * batch["x"]) @ params["w"] - batch["y"]), batch["mask"])}


def eval_fn(params, batch, config):
    return metrics(params, batch, 1.0)


def loss_fn(params, batch, rng, config):
    found = metrics(params, batch, jax.random.bernoulli(rng, 0.9, batch["x"].shape))
    return found["loss"].value, found
