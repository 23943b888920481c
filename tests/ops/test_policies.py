"""Claims about RandAugment and AutoAugment: operations are Pillow's, and each example has its own, in any batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jtasks.config import Config
from jtasks.errors import ConfigError
from jtasks.ops import pixels, policies

RANDOM = np.random.default_rng(0)
SMOOTH = np.clip(np.cumsum(RANDOM.normal(0, 9, (20, 24, 3)), axis=1) + RANDOM.integers(60, 190, (20, 1, 3)), 0, 255)
PICTURES = np.stack([SMOOTH, RANDOM.integers(40, 200, (20, 24, 3)), np.full((20, 24, 3), 77)]).astype(np.uint8)

operate = jax.jit(jax.vmap(policies.operate, in_axes=(0, None, None)))


def pillow(name, image, strength):
    """The operation as AutoAugment's own code calls Pillow."""
    w, h = image.size
    factor = 1 + 0.9 * strength
    x, y = int(150 / 331 * w * strength), int(150 / 331 * h * strength)

    def affine(*matrix):
        return image.transform(image.size, Image.AFFINE, matrix, Image.NEAREST, fillcolor=(128, 128, 128))

    return {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
        "solarize": lambda: ImageOps.solarize(image, 256 * (1 - abs(strength))),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "shear_x": lambda: affine(1, 0.3 * strength, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, 0.3 * strength, 1, 0),
        "translate_x": lambda: affine(1, 0, x, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, y),
        "rotate": lambda: image.rotate(30 * strength, Image.NEAREST, fillcolor=(128, 128, 128)),
        "invert": lambda: ImageOps.invert(image),
    }[name]()


@pytest.mark.parametrize("name", policies.OPERATIONS)
def test_an_operation_is_that_of_pillow(name):
    for strength in (0.9, -0.4, 0.3):
        index = jnp.int32(policies.OPERATIONS.index(name))
        found = np.asarray(operate(PICTURES.astype(np.float32), index, jnp.float32(strength)))
        expected = np.stack([np.asarray(pillow(name, Image.fromarray(image), strength)) for image in PICTURES])
        assert (found % 1 == 0).all() and found.min() >= 0 and found.max() <= 255
        off = np.abs(found - expected) > 1  # a level, where Pillow rounds in float64
        assert off.mean() < (0.01 if name in ("rotate", "shear_x", "shear_y") else 1e-9), (name, strength)
    assert name == "identity" or (found != PICTURES).any()


def test_gray_pictures_and_other_levels_are_augmented_too():
    digits = RANDOM.integers(0, 17, (64, 8, 8, 1)).astype(np.uint8)
    seeds = np.arange(64, dtype=np.uint32)
    found = policies.randaugment(digits, seeds, count=3, magnitude=15.0, white=16)
    assert found.shape == digits.shape and found.min() >= 0 and found.max() <= 16 + 1e-4
    changed = (np.abs(np.asarray(found) - digits) > 0.1).any((1, 2, 3))
    assert changed.mean() > 0.8


KINDS = {
    "randaugment": jax.jit(lambda x, seeds: policies.randaugment(x, seeds, count=2, magnitude=9.0, white=255.0)),
    "imagenet": jax.jit(lambda x, seeds: policies.autoaugment(x, seeds, policy="imagenet", white=255.0)),
    "cifar10": jax.jit(lambda x, seeds: policies.autoaugment(x, seeds, policy="cifar10", white=255.0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_augmented_by_its_own_seed_in_any_batch(kind):
    images, seeds = np.repeat(PICTURES[:1], 48, 0), np.arange(48, dtype=np.uint32)
    whole, order = np.asarray(KINDS[kind](images, seeds)), np.random.default_rng(1).permutation(48)
    np.testing.assert_array_equal(KINDS[kind](images, seeds[order]), whole[order])
    assert len({image.tobytes() for image in whole}) > 12


def test_the_policies_have_25_pairs_each():
    for text in policies.POLICIES.values():
        table = policies._parse(text)
        assert table.shape == (25, 2, 3) and table[..., 1:].min() >= 0 and table[..., 1:].max() <= 1


def test_only_one_policy_is_allowed():
    options = Config({"augment": "", "color": 0.0, "white": 255.0, "randaugment": 2, "autoaugment": "cifar10"})
    with pytest.raises(ConfigError, match=r"config.data.randaugment=2 and config.data.autoaugment='cifar10'"):
        pixels.for_training({"image": PICTURES, "seed": np.arange(3, dtype=np.uint32)}, options)
