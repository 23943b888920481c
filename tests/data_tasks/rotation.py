"""Tell by how many quarter turns a digit was rotated (Gidaris et al. 2018): a task in a file of the user's own.

python main.py --config=tests/data_tasks/rotation.py --workdir=runs/rotation
"""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from jtasks import data, models
from jtasks.metrics import Mean
from jtasks.ops import augment


def get_config():
    config = ml_collections.ConfigDict()
    config.task = __file__
    config.steps, config.batch_size = 5, 32
    config.data = {"name": "digits"}
    config.model = {"width": 16, "depth": 2, "heads": 2, "patch": 4}
    config.optim = {"lr": 3e-3}
    return config


def dataset(split, config):
    return data.images(config.data.name, split, folder=config.data.dir, seed=config.seed)


def rotated(batch):
    """Pixels in [-1, 1] [b, h, w, c], each turned by as many quarters as its own key says, and how many [b]."""
    turns = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(augment.keys(batch["seed"]))
    quarters = jnp.stack([jnp.rot90(batch["image"], k, axes=(1, 2)) for k in range(4)])
    return quarters[turns, jnp.arange(len(turns))] / 8 - 1, turns


def model(config):
    return models.ViT(classes=4, **config.model)


def init(rng, batch, config):
    return model(config).init(rng, rotated(batch)[0])["params"]


def eval_fn(params, batch, config):
    images, turns = rotated(batch)
    logits = model(config).apply({"params": params}, images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, turns)
    correct = logits.argmax(-1) == turns
    return {"loss": Mean.of(loss, batch["mask"]), "accuracy": Mean.of(correct, batch["mask"])}


def loss_fn(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    return metrics["loss"].value, metrics
