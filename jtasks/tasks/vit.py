"""Classify images with a vision transformer (Dosovitskiy et al. 2021)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtasks import augment, data, models, picture
from jtasks.config import Config, given
from jtasks.data import pipeline
from jtasks.errors import ConfigError
from jtasks.metrics import Mean

Batch = dict[str, jax.Array]

HUGGINGFACE = "ViTForImageClassification"


def dataset(split: str, config: Config) -> Any:
    """Images uint8 [n, h, w, c] and labels [n]."""
    return data.images(config.data.name, split, folder=config.data.dir, seed=config.seed, size=config.data.size)


def data_args(config: Config) -> dict[str, Any]:
    """The number of classes, and the images' shape (h, w)."""
    h, w, _ = pipeline.example(dataset("train", config), 0)["image"].shape
    return {"classes": len(data.class_names(config.data.name, folder=config.data.dir)), "shape": (h, w)}


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Parameters of the ViT."""
    return _model(config).init(rng, _scaled(batch["image"], config))["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Cross-entropy in nats an image, on augmented images and with dropout."""
    images = _augmented(batch, config)
    metrics = _metrics(params, batch | {"image": images}, config, deterministic=False, rngs={"dropout": rng})
    return metrics["loss"].value, metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Cross-entropy in nats an image; how often the label is the likeliest class, and among the likeliest five."""
    return _metrics(params, batch, config)


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """The likeliest class [b] and its probability [b]."""
    probabilities = jax.nn.softmax(_logits(params, batch["image"], config))
    return {"label": probabilities.argmax(-1), "probability": probabilities.max(-1)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """The pictures, and what the model takes them for."""
    names = data.class_names(config.data.name, folder=config.data.dir)
    lines = [
        f"{names[int(output['label'])]} ({output['probability']:.3f}), truly {names[int(example['label'])]}"
        for example, output in zip(examples, outputs, strict=True)
    ]
    return {"images": picture.grid([[example["image"] for example in examples]]), "labels": "\n".join(lines)}


def _model(config: Config) -> Any:
    model = config.model
    return models.ViT(
        classes=model.classes,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        patch=model.patch,
        dropout=model.dropout,
        remat=model.remat,
        dtype=jnp.dtype(config.precision),
        **given(model, "pool", "hidden", "activation", "epsilon", "attention_dropout"),
    )


def _augmented(batch: Batch, config: Config) -> jax.Array:
    options, images, seeds = config.data, batch["image"], batch["seed"]
    if options.augment == "igpt":
        return augment.crop_and_flip(images, seeds, pad=options.crop, mirror=options.flip)
    if options.augment == "imagenet":
        return augment.resized_crop_and_flip(images, seeds, area=options.area, mirror=options.flip)
    if options.augment:
        raise ConfigError(f"config.data.augment={options.augment!r}: expected igpt, imagenet, or nothing for neither")
    return images


def _scaled(images: jax.Array, config: Config) -> jax.Array:
    """Pixels in [-1, 1]."""
    return images * (2 / config.data.white) - 1


def _logits(params: Any, images: jax.Array, config: Config, **options: Any) -> jax.Array:
    return _model(config).apply({"params": params}, _scaled(images, config), **options)


def _metrics(params: Any, batch: Batch, config: Config, **options: Any) -> dict[str, Mean]:
    logits, labels = _logits(params, batch["image"], config, **options), batch["label"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    _, likeliest = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    return {
        "loss": Mean.of(loss, batch["mask"]),
        "accuracy": Mean.of(logits.argmax(-1) == labels, batch["mask"]),
        "top5": Mean.of((likeliest == labels[:, None]).any(-1), batch["mask"]),
    }
