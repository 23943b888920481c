"""Classification of images with a vision transformer (Dosovitskiy et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import data, models
from jtasks.config import Config
from jtasks.data import pipeline, unlabeled
from jtasks.data.assets import image_processor, labels
from jtasks.errors import ConfigError
from jtasks.metrics import Mean, classification, example_weights, total
from jtasks.ops import augment, grid
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "ViTForImageClassification"


def defaults() -> dict[str, Any]:
    """Return the fields of the ViT, the normalization of pixels, the images, and their augmentation."""
    return {
        **models.fields(models.ViT, filled=["classes"]),
        "model.shape": Field(tuple, "[1, inf)"),  # height and width, filled from the data, as are all of these
        "model.mean": Field(tuple),  # per channel, of pixels multiplied by `rescale`
        "model.std": Field(tuple),
        "model.rescale": Field(float, "(0, inf)"),
        "model.resize": Field(tuple, "[0, inf)"),  # fields of an `examples.Resize`, filled from a Hugging Face folder
        **data.IMAGES,
        "data.white": Field(float, "(0, inf)", 255.0),  # the highest pixel
        "data.augment": Field(str, ("igpt", "imagenet", ""), ""),  # augmentation of training images
        "data.crop": Field(int, "[0, 2e9]", 0),  # of "igpt": pixels of padding for random crops
        "data.area": Field(float, "(0, 1]", 0.08),  # of "imagenet": smallest fraction of the image in a crop
        "data.flip": Field(bool, None, False),  # mirror half of the images
    }


def dataset(split: str, config: Config) -> Any:
    """Return images uint8 [n, h, w, c] and labels [n]."""
    size, resize = config.data.size, config.model.get("resize")
    return data.images(config.data.name, split, folder=config.data.dir, seed=config.seed, size=size, resize=resize)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return pictures (see `unlabeled.image_arrays`) as images uint8 [n, h, w, c]."""
    options, model = config.data, config.model
    fitting = {"size": options.size, "resize": model.get("resize"), "shape": model.shape}
    return unlabeled.image_arrays(inputs, options.name, folder=options.dir, **fitting)


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of classes, the images' shape (h, w), and the normalization of pixels.

    `resize`, how images reach that shape, is None; a Hugging Face folder can set it.
    """
    h, w, channels = pipeline.example(dataset("train", config), 0)["image"].shape
    half = (0.5,) * channels
    classes = data.count_classes(config.data.name, folder=config.data.dir, labels=config.data.labels)
    usual = {"mean": half, "std": half, "rescale": 1 / config.data.white, "resize": None}
    return {"classes": classes, "shape": (h, w), **usual}


def assets(config: Config) -> dict[str, str]:
    """Return the names of the classes, and the normalization of pixels."""
    names = _names(config)
    return labels(names) | image_processor(*_normalization(config), config.model.shape, config.model.get("resize"))


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the ViT."""
    return _model(config).init(rng, normalize(batch["image"], config))["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats per image, and the accuracy of the likeliest class and of the likeliest five.

    Training has augmentation and dropout.
    """
    pixels = batch["image"] if rng is None else _augment(batch, config)
    logits, labels, weights = _logits(params, pixels, rng, config), batch["label"], example_weights(batch)
    _, likeliest = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    metrics = classification.cross_entropy(logits, labels, weights)
    metrics["top5"] = Mean.of((likeliest == labels[:, None]).any(-1), weights)
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Predict the likeliest class [b] and its probability [b]."""
    return classification.likeliest(_logits(params, batch["image"], None, config))


def answers(examples: Any, outputs: Any, config: Config) -> list[dict[str, Any]]:
    """Return the name of each predicted class."""
    names = _names(config)
    return [{"class": names[int(output["label"])]} for output in outputs]


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the classifier's input [b, width]: `token`, or `mean` over patches, as config.model.pool says."""
    pixels = normalize(batch["image"] if rng is None else _augment(batch, config), config)
    features = models.apply(_model(config), params, pixels, rng=rng, pooled=True)
    return {config.model.pool: features.astype(jnp.float32)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Show the pictures and the predicted classes."""
    images = data.for_display((example["image"] for example in examples), config.data.name)
    return grid.show_classes(images, examples, outputs, _names(config))


def _names(config: Config) -> Sequence[str]:
    return config.data.labels or data.class_names(config.data.name, folder=config.data.dir)


def _model(config: Config) -> Any:
    return models.build(models.ViT, config)


def _augment(batch: Batch, config: Config) -> jax.Array:
    options, pixels, seeds = config.data, batch["image"], batch.get("seed")
    if options.augment == "igpt":
        return augment.crop_and_flip(pixels, seeds, pad=options.crop, mirror=options.flip)
    if options.augment == "imagenet":
        return augment.resized_crop_and_flip(pixels, seeds, area=options.area, mirror=options.flip)
    if options.augment:
        raise ConfigError(f"config.data.augment={options.augment!r}: expected igpt, imagenet, or nothing for neither")
    return pixels


def normalize(images: jax.Array, config: Config) -> jax.Array:
    """Normalize pixels by config.model's mean and deviation; 0.5 and 0.5 give [-1, 1]."""
    mean, std, rescale = (np.asarray(value, np.float64) for value in _normalization(config))
    scale, shift = (np.broadcast_to(x, images.shape[-1:])[None, None, None] for x in (rescale / std, -mean / std))
    return images * scale.astype(np.float32) + shift.astype(np.float32)


def _normalization(config: Config) -> tuple[Any, Any, float]:
    """Return mean and deviation per channel, of pixels multiplied by the third value."""
    model = config.model
    return model.get("mean") or (0.5,), model.get("std") or (0.5,), model.get("rescale") or 1 / config.data.white


def _logits(params: Any, images: jax.Array, rng: jax.Array | None, config: Config) -> jax.Array:
    return models.apply(_model(config), params, normalize(images, config), rng=rng)
