"""A task with predictions and without `examples`: for tests of inputs that are examples already."""

import os

from data_tasks import linear
from data_tasks.linear import dataset, eval_fn, init, loss_fn  # noqa: F401


def get_config():
    config = linear.get_config()
    config.task, config.steps = os.path.abspath(__file__), 1
    return config


def predict_fn(params, batch, rng, config):
    return {"twice": 2 * batch["x"]}
