"""Classify images with an iGPT (Chen et al. 2020, 3.3 and 3.4): fine-tuning with the joint loss, or a linear probe.

The parameters are those of `igpt` and a classifier, so `config.init_from` takes over a pre-trained
run. The probe freezes all but the classifier and reads the features of a chosen layer.
"""

from typing import Any

import jax
import numpy as np
import optax

from jtasks import augment, colours, data, models, picture, precision
from jtasks.assets import labels, palette
from jtasks.config import Config, given
from jtasks.metrics import Mean, example_weights, scaled

Batch = dict[str, jax.Array]

LOSSES = ("classification", "generation")


def dataset(split: str, config: Config) -> Any:
    """Images uint8 [n, h, w, c] and labels [n]."""
    return data.images(config.data.name, split, folder=config.data.dir, seed=config.seed, size=config.data.size)


def prepare(config: Config) -> None:
    """Fit the palette on the training images, once; it is stored beside the data."""
    colours.prepare(lambda: dataset("train", config), config.data, config.seed)


def data_args(config: Config) -> dict[str, Any]:
    """The palette, and what the model's sizes follow from: colours, image shape, positions, classes."""
    names = data.class_names(config.data.name, folder=config.data.dir)
    return {**colours.data_args(dataset("train", config), config.data, config.seed), "classes": len(names)}


def assets(config: Config) -> dict[str, str]:
    """The palette and the names of the classes."""
    return palette(config.model) | labels(data.class_names(config.data.name, folder=config.data.dir))


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Parameters of the GPT and the classifier."""
    inputs = models.shifted(_tokens(batch, config), config.model.colours)
    return _model(config).init(rng, inputs, method="classify")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Nats an image of the class, plus `config.generation` times the nats a pixel, on augmented images."""
    pixels = augment.crop_and_flip(batch["image"], batch.get("seed"), pad=config.data.crop, mirror=config.data.flip)
    metrics = _metrics(params, batch | {"image": pixels}, config, deterministic=False, rngs={"dropout": rng})
    return metrics["classification"].value + metrics["generation"].value, metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """The two terms, accuracy, and `nats` and `bits` a pixel token."""
    return _metrics(params, batch, config)


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """The likeliest class [b] and its probability [b]."""
    _, logits = _logits(params, _tokens(batch, config), config)
    probabilities = jax.nn.softmax(logits)
    return {"label": probabilities.argmax(-1), "probability": probabilities.max(-1)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """The images in the model's colours, and what it takes them for."""
    names = data.class_names(config.data.name, folder=config.data.dir)
    levels, shape = config.model.palette, config.model.shape
    images = [np.asarray(colours.nearest(example["image"][None], levels))[0] for example in examples]
    lines = [
        f"{names[int(output['label'])]} ({output['probability']:.3f}), truly {names[int(example['label'])]}"
        for example, output in zip(examples, outputs, strict=True)
    ]
    return {
        "images": picture.grid([[colours.pictures(tokens, levels, shape) for tokens in images]]),
        "labels": "\n".join(lines),
    }


def _model(config: Config) -> Any:
    model = config.model
    return models.GPT(
        vocab=model.colours + 1,  # and the start token
        outputs=model.colours,
        positions=model.positions,
        classes=model.classes,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        dropout=model.dropout,
        remat=model.remat,
        dtype=precision.computation(config.precision),
        **given(model, "hidden", "activation", "norm", "epsilon", "plain"),
    )


def _tokens(batch: Batch, config: Config) -> jax.Array:
    return colours.nearest(batch["image"], config.model.palette)


def _logits(params: Any, tokens: jax.Array, config: Config, **options: Any) -> tuple[jax.Array, jax.Array]:
    inputs = models.shifted(tokens, config.model.colours)
    return _model(config).apply({"params": params}, inputs, config.model.layer, method="classify", **options)


def _metrics(params: Any, batch: Batch, config: Config, **options: Any) -> dict[str, Mean]:
    tokens = _tokens(batch, config)
    pixel_logits, class_logits = _logits(params, tokens, config, **options)
    nats = Mean.of(optax.softmax_cross_entropy_with_integer_labels(pixel_logits, tokens), example_weights(batch))
    loss = optax.softmax_cross_entropy_with_integer_labels(class_logits, batch["label"])
    return {
        "classification": Mean.of(loss, example_weights(batch)),
        "generation": scaled(nats, config.generation),
        "accuracy": Mean.of(class_logits.argmax(-1) == batch["label"], example_weights(batch)),
        "nats": nats,
        "bits": scaled(nats, 1 / np.log(2)),
    }
