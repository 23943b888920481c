"""Pixels of a batch of pictures on the device: augmentation and normalization, by the fields of a config."""

from typing import Any

import jax
import numpy as np

from jtasks.errors import ConfigError
from jtasks.ops import augment, policies
from jtasks.ranges import Field

# Fields of config.model and config.data of a task whose model reads pictures, for its `defaults`.
FIELDS = {
    "model.shape": Field(tuple, "[1, inf)"),  # height and width, filled from the data, as are all of config.model's
    "model.mean": Field(tuple, "(-inf, inf)"),  # per channel, of pixels multiplied by `rescale`
    "model.std": Field(tuple, "(0, inf)"),
    "model.rescale": Field(float, "(0, inf)"),
    "model.resize": Field(tuple, "[0, inf)"),  # fields of an `examples.Resize`, filled from a Hugging Face folder
    "data.white": Field(float, "(0, inf)", 255.0),  # the highest pixel
    "data.augment": Field(str, ("igpt", "imagenet", ""), ""),  # augmentation of training images
    "data.crop": Field(int, "[0, 2e9]", 0),  # of "igpt": pixels of padding for random crops
    "data.area": Field(float, "(0, 1]", 0.08),  # of "imagenet": smallest fraction of the image in a crop
    "data.max_area": Field(float, "[1, 100]", 1.0),  # of "imagenet": largest; above 1 an image may become smaller
    "data.flip": Field(bool, None, False),  # mirror half of the images
    "data.randaugment": Field(int, "[0, 16]", 0),  # of any: number of operations of RandAugment; 0: none
    "data.magnitude": Field(float, "[0, 30]", 9.0),  # strength of these operations
    "data.autoaugment": Field(str, (*policies.POLICIES, ""), ""),  # of any: the policy found for these data
    "data.color": Field(float, "[0, 1]", 0.0),  # of any: strength of random brightness, contrast and saturation
    "data.hue": Field(float, "[0, 0.5]", 0.0),  # of any: largest turn of the hue, as a part of the color circle
    "data.grayscale": Field(float, "[0, 1]", 0.0),  # of any: fraction of the images that become gray
}


def usual(config: Any, channels: int = 3) -> dict[str, Any]:
    """Return the usual normalization as fields of config.model: levels from -1 to 1, and pictures as they are.

    A Hugging Face folder can set other ones.
    """
    half = (0.5,) * channels
    return {"mean": half, "std": half, "rescale": 1 / config.data.white, "resize": None}


def for_training(batch: dict[str, jax.Array], options: Any) -> jax.Array:
    """Return the images of a batch, augmented as `options` (config.data) says.

    Args:
      batch: `image` [b, h, w, c] with levels 0 to `options.white`, and `seed` [b] if there is any augmentation.
      options: has the fields of config.data in FIELDS.

    Raises:
      ConfigError: `options.augment` is unknown, there are two policies, or the batch has no seeds.
    """
    images, seeds = batch["image"], batch.get("seed")
    if options.augment == "igpt":
        images = augment.crop_and_flip(images, seeds, pad=options.crop, mirror=options.flip)
    elif options.augment == "imagenet":
        images = augment.resized_crop_and_flip(
            images, seeds, area=options.area, max_area=options.get("max_area", 1.0), mirror=options.flip
        )
    elif options.augment:
        raise ConfigError(f"config.data.augment={options.augment!r}: expected igpt, imagenet, or nothing for neither")
    count, policy = options.get("randaugment", 0), options.get("autoaugment", "")
    if count and policy:
        raise ConfigError(
            f"config.data.randaugment={count} and config.data.autoaugment={policy!r} are two policies: give one"
        )
    if count:
        images = policies.randaugment(images, seeds, count=count, magnitude=options.magnitude, white=options.white)
    elif policy:
        images = policies.autoaugment(images, seeds, policy=policy, white=options.white)
    if options.color:
        images = augment.color(images, seeds, strength=options.color, white=options.white)
    if turn := options.get("hue", 0.0):
        images = augment.hue(images, seeds, turn=turn, white=options.white)
    gray = options.get("grayscale", 0.0)
    return augment.grayscale(images, seeds, fraction=gray) if gray else images


def normalize(images: jax.Array, config: Any) -> jax.Array:
    """Normalize pixels by config.model's mean and deviation; 0.5 and 0.5 give [-1, 1]."""
    mean, std, rescale = (np.asarray(value, np.float64) for value in normalization(config))
    scale, shift = (np.broadcast_to(x, images.shape[-1:])[None, None, None] for x in (rescale / std, -mean / std))
    return images * scale.astype(np.float32) + shift.astype(np.float32)


def patches(config: Any) -> tuple[int, int]:
    """Return the rows and columns of patches in which config.model reads a picture."""
    height, width = config.model.shape
    return height // config.model.patch, width // config.model.patch


def normalization(config: Any) -> tuple[Any, Any, float]:
    """Return mean and deviation per channel, of pixels multiplied by the third value."""
    model = config.model
    return model.get("mean") or (0.5,), model.get("std") or (0.5,), model.get("rescale") or 1 / config.data.white
