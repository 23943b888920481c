"""Pairs of made vectors that a loss of the whole batch brings together: a user's task in one file."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jtasks.metrics import Loss, Mean, total
from jtasks.ops import contrastive


def get_config():
    config = ml_collections.ConfigDict()
    config.task = __file__
    config.steps, config.batch_size, config.show_count = 6, 16, 0
    config.data = {"threads": 1}
    config.model = {"width": 8, "dropout": 0.0, "loss": "softmax"}
    config.optim = {"name": "adamw", "lr": 0.01, "schedule": "constant", "warmup": 0.0}
    return config


def dataset(split, config):
    count = {"train": 96, "valid": 24, "test": 0}[split]
    if not count:
        return None
    random = np.random.default_rng(count)
    image = random.normal(size=(count, 6)).astype(np.float32)
    text = (image[:, :5] + 0.3 * random.normal(size=(count, 5))).astype(np.float32)
    return {"image": image, "text": text, "weight": random.random(count).astype(np.float32)}


def init(rng, batch, config):
    image, text = jax.random.split(rng)
    width = config.model.width
    params = {
        "image": jax.random.normal(image, (batch["image"].shape[1], width)),
        "text": jax.random.normal(text, (batch["text"].shape[1], width)),
        "scale": jnp.float32(1.0),
    }
    return params | ({"bias": jnp.float32(-1.0)} if config.model.loss == "sigmoid" else {})


def embed_fn(params, batch, rng, config):
    def embed(name, rng):
        x = jnp.tanh(batch[name] @ params[name])
        if rng is not None and config.model.dropout:
            x *= jax.random.bernoulli(rng, 1 - config.model.dropout, x.shape)
        return x / jnp.linalg.norm(x + 1e-3, axis=1, keepdims=True)

    keys = (None, None) if rng is None else jax.random.split(rng)
    return {name: embed(name, key) for name, key in zip(("image", "text"), keys, strict=True)}


def batch_loss_fn(params, embeddings, batch, config):
    pair, mask, scale = (embeddings["image"], embeddings["text"]), batch["mask"], jnp.exp(params["scale"])
    if config.model.loss == "softmax":
        found = contrastive.softmax_loss(*pair, scale, mask)
    elif config.model.loss == "sigmoid":
        found = contrastive.sigmoid_loss(*pair, scale, params["bias"], mask)
    else:
        found = contrastive.Contrast(of_triplets(*pair, mask), mask, mask)
    metrics = {
        "nats": Loss.of(found.nats, mask),
        "size": Loss.of(jnp.square(pair[0]).sum(1), mask * batch["weight"], weight=0.1),
        "text_found": Mean.of(found.text_found, mask),
        "image_found": Mean.of(found.image_found, mask),
    }
    return total(metrics), metrics


def of_triplets(images, texts, mask):
    """The distance to the text, unless it is that much less than to each of the others [b]: a loss of a user's own."""
    near = jnp.square(images[:, None] - texts[None]).sum(-1)
    margins = jax.nn.relu(0.2 + jnp.diagonal(near)[:, None] - near)
    return jnp.sum(margins * (1 - jnp.eye(len(near))) * mask[None], axis=1)
