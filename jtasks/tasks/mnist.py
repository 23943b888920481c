"""Classify images with a small convolutional network, HetSeq's example task."""

from typing import Any

import jax
import numpy as np
import optax

from jtasks import data, models, picture, precision
from jtasks.assets import image_processor, labels
from jtasks.config import Config, given
from jtasks.metrics import Mean, example_weights

Batch = dict[str, jax.Array]


def dataset(split: str, config: Config) -> Any:
    """Images uint8 [n, h, w, c] and labels [n]."""
    return data.images(config.data.name, split, folder=config.data.dir, seed=config.seed)


def data_args(config: Config) -> dict[str, Any]:
    """The number of classes."""
    return {"classes": len(data.class_names(config.data.name, folder=config.data.dir))}


def assets(config: Config) -> dict[str, str]:
    """The names of the classes, and how pixels are normalized."""
    return labels(data.class_names(config.data.name, folder=config.data.dir)) | image_processor([0.5], [0.5], 1 / 255)


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Parameters of the network."""
    return _model(config).init(rng, _pixels(batch))["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Cross-entropy in nats an image, with dropout."""
    logits = _model(config).apply({"params": params}, _pixels(batch), deterministic=False, rngs={"dropout": rng})
    metrics = _metrics(logits, batch)
    return metrics["loss"].value, metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Cross-entropy in nats an image, and accuracy."""
    return _metrics(_model(config).apply({"params": params}, _pixels(batch)), batch)


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """The likeliest class [b] and its probability [b]."""
    probabilities = jax.nn.softmax(_model(config).apply({"params": params}, _pixels(batch)))
    return {"label": probabilities.argmax(-1), "probability": probabilities.max(-1)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """The pictures, and what the network takes them for."""
    names = data.class_names(config.data.name, folder=config.data.dir)
    lines = [
        f"{names[int(output['label'])]} ({output['probability']:.3f}), truly {names[int(example['label'])]}"
        for example, output in zip(examples, outputs, strict=True)
    ]
    return {"images": picture.grid([[example["image"] for example in examples]]), "labels": "\n".join(lines)}


def _model(config: Config) -> Any:
    return models.ConvNet(
        config.model.classes,
        dropout=config.model.dropout,
        **given(config.model, "plain"),
        dtype=precision.computation(config.precision),
    )


def _pixels(batch: Batch) -> jax.Array:
    return batch["image"] / 127.5 - 1


def _metrics(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    correct = logits.argmax(-1) == batch["label"]
    return {"loss": Mean.of(loss, example_weights(batch)), "accuracy": Mean.of(correct, example_weights(batch))}
