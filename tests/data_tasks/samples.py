"""A task that answers with random numbers and windows of a text: for tests of runs that meet new inputs."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jtasks.errors import DataError
from jtasks.metrics import Mean
from jtasks.ranges import Field

WINDOW = 4


def get_config():
    config = ml_collections.ConfigDict()
    config.task = __file__
    config.steps, config.batch_size, config.show_count = 2, 8, 0
    config.data = {"threads": 1}
    config.optim = {"name": "adamw", "lr": 0.01, "schedule": "constant", "warmup": 0.0}
    return config


def defaults():
    return {"sample.scale": Field(float, "[0, inf)", 1.0), "data.labels": Field(tuple, None, ())}


def examples(inputs, config):
    """Windows of four letters of each text, a pair, or a dict with `text`."""
    windows = []
    for number, given in enumerate(inputs):
        given = given["text"] if isinstance(given, dict) else " ".join(given) if isinstance(given, tuple) else given
        if not isinstance(given, str) or not given.isascii():
            raise DataError(f"{given!r} is no ASCII text")
        codes = [ord(letter) for letter in given]
        codes += [0] * (-len(codes) % WINDOW or (0 if codes else WINDOW))
        windows += [(codes[i : i + WINDOW], number) for i in range(0, len(codes), WINDOW)]
    letters, owners = zip(*windows, strict=True)
    return {"letters": np.array(letters, np.int32), "input": np.array(owners, np.int32)}


def dataset(split, config):
    if split == "test":
        return None
    made = examples([f"{i} is a number" for i in range(20 if split == "train" else 7)], config)
    return {"letters": made["letters"], "y": made["letters"].sum(-1).astype(np.float32)}


def init(rng, batch, config):
    return {"w": jax.random.normal(rng, (WINDOW,))}


def loss_fn(params, batch, rng, config):
    error = jnp.square(batch["letters"] @ params["w"] - batch["y"])
    found = {"loss": Mean.of(error, batch["mask"])}
    return found["loss"].value, found


def predict_fn(params, batch, rng, config):
    noise = jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed)))(batch["seed"])
    return {"sum": batch["letters"] @ params["w"] + config.sample.scale * noise}


def embed_fn(params, batch, rng, config):
    assert rng is None
    return {"letters": batch["letters"] * params["w"][None]}


def answers(examples, outputs, config):
    return [{"text": "".join(map(chr, example["letters"]))} for example in examples]
