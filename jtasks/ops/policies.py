"""RandAugment and AutoAugment on the device: color and geometry of each picture, drawn from the example's seed.

The operations are those of Pillow, on whole levels from 0 to 255, as in the code of both papers. One operation of a
picture is a table of levels, a blend with a blurred or gray picture, or an affine map; a batch computes all three, and
those that a picture did not draw leave it as it is. Augmax and PIX, the libraries of augmentation for JAX, lack both
policies and the operations autocontrast, equalize, posterize and sharpness.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.ops import augment

Draw = Callable[[jax.Array], tuple[jax.Array, jax.Array]]  # from a key: operations and strengths [n]

OPERATIONS = (
    *("identity", "autocontrast", "equalize", "posterize", "solarize", "brightness", "contrast", "color", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "invert"),
)
BLENDS = ("color", "sharpness")
RANDOM = len(OPERATIONS) - 1  # RandAugment has all but invert
STRONGEST = 30  # magnitude of RandAugment, and 9 of AutoAugment's table
LUMA = np.array([[[19595, 38470, 7471]]], np.float32)  # of ITU-R 601-2, times 65536
GRAY = 128.0  # where an affine map finds no pixel

# The policies that AutoAugment found (Cubuk et al. 2019, arXiv:1805.09501, appendix): pairs of operations, each with
# its probability in tenths and its magnitude from 0 to 9.
POLICIES = {
    "imagenet": """posterize 4 8 rotate 6 9|solarize 6 5 autocontrast 6 0|equalize 8 0 equalize 6 0|
        posterize 6 7 posterize 6 6|equalize 4 0 solarize 2 4|equalize 4 0 rotate 8 8|solarize 6 3 equalize 6 0|
        posterize 8 5 equalize 10 0|rotate 2 3 solarize 6 8|equalize 6 0 posterize 4 6|rotate 8 8 color 4 0|
        rotate 4 9 equalize 6 0|equalize 0 0 equalize 8 0|invert 6 0 equalize 10 0|color 6 4 contrast 10 8|
        rotate 8 8 color 10 2|color 8 8 solarize 8 7|sharpness 4 7 invert 6 0|shear_x 6 5 equalize 10 0|
        color 4 0 equalize 6 0|equalize 4 0 solarize 2 4|solarize 6 5 autocontrast 6 0|invert 6 0 equalize 10 0|
        color 6 4 contrast 10 8|equalize 8 0 equalize 6 0""",
    "cifar10": """invert 1 0 contrast 2 6|rotate 7 2 translate_x 3 9|sharpness 8 1 sharpness 9 3|
        shear_y 5 8 translate_y 7 9|autocontrast 5 0 equalize 9 0|shear_y 2 7 posterize 3 7|color 4 3 brightness 6 7|
        sharpness 3 9 brightness 7 9|equalize 6 0 equalize 5 0|contrast 6 7 sharpness 6 5|color 7 7 translate_x 5 8|
        equalize 3 0 autocontrast 4 0|translate_y 4 3 sharpness 2 6|brightness 9 6 color 2 8|solarize 5 2 invert 0 0|
        equalize 2 0 autocontrast 6 0|equalize 2 0 equalize 6 0|color 9 9 equalize 6 0|autocontrast 8 0 solarize 2 8|
        brightness 1 3 color 7 0|solarize 4 5 autocontrast 9 0|translate_y 9 9 translate_y 7 9|
        autocontrast 9 0 solarize 8 3|equalize 8 0 invert 1 0|translate_y 7 9 autocontrast 9 0""",
}


def randaugment(images: jax.Array, seeds: jax.Array | None, *, count: int, magnitude: float, white: float) -> jax.Array:
    """Apply `count` random operations to each of the images [b, h, w, c]; returns float32 (Cubuk et al. 2020).

    Args:
      images: levels 0 to `white`.
      seeds: [b] uint32.
      count: number of operations, each one of 14.
      magnitude: their strength, 0 to 30; those with a sign have a random one.
      white: highest level.
    """

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen, sign = jax.random.split(key)
        operations = jax.random.randint(chosen, (count,), 0, RANDOM)
        return operations, jax.random.rademacher(sign, (count,), jnp.float32) * (magnitude / STRONGEST)

    return _augment(images, seeds, draw, white)


def autoaugment(images: jax.Array, seeds: jax.Array | None, *, policy: str, white: float) -> jax.Array:
    """Apply a random pair of operations of one of POLICIES to each of the images [b, h, w, c]; returns float32."""
    table = jnp.asarray(_parse(POLICIES[policy]))

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        pair, applied, sign = jax.random.split(key, 3)
        operations, chances, strengths = table[jax.random.randint(pair, (), 0, len(table))].T
        on = jax.random.uniform(applied, (2,)) < chances
        signs = jax.random.rademacher(sign, (2,), jnp.float32)
        return jnp.where(on, operations, 0).astype(jnp.int32), signs * strengths

    return _augment(images, seeds, draw, white)


def operate(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """Apply one operation to a picture [h, w, c] of whole levels, float32.

    Args:
      image: levels 0 to 255.
      operation: its index in OPERATIONS.
      strength: -1 to 1; only brightness, contrast, color, sharpness and affine maps have a sign.
    """
    gray = _gray(image)
    # A factor of 1 leaves a blend, as a matrix of 1 and 0 leaves an affine map.
    factors = {name: jnp.where(operation == OPERATIONS.index(name), 0.9 * strength, 0) + 1 for name in BLENDS}
    image = _warp(image, *_matrix(operation, strength, *image.shape[:2]))
    image = _look_up(image, _table(image, jnp.floor(gray.mean() + 0.5), operation, strength))
    image = _blend(gray, image, factors["color"])
    return _blend(_smooth(image), image, factors["sharpness"])


def _augment(images: jax.Array, seeds: jax.Array | None, draw: Draw, white: float) -> jax.Array:
    levels = jnp.round(images.astype(jnp.float32) * (255 / white))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 4))(augment.keys(seeds))

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda image, drawn: (operate(image, *drawn), None), image, draw(key))[0]

    return jax.vmap(one)(levels, keys) * (white / 255)


@functools.cache
def _parse(text: str) -> np.ndarray:
    """Return a policy as [pairs, 2, 3]: index of the operation, probability, and strength from 0 to 1."""
    steps = np.array(text.replace("|", " ").split()).reshape(-1, 2, 3)
    operations = [[OPERATIONS.index(name) for name in pair] for pair in steps[..., 0]]
    chances, strengths = steps[..., 1].astype(float) / 10, steps[..., 2].astype(float) / 9
    return np.stack([operations, chances, strengths], -1).astype(np.float32)


def _table(image: jax.Array, mean: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """Return the new level of each level of each channel, [256, c]."""
    channels = image.shape[-1]
    size, levels = jnp.abs(strength), jnp.broadcast_to(jnp.arange(256.0)[:, None], (256, channels))
    counts = jnp.sum(image.reshape(1, -1, channels) == levels[:, None], axis=1, dtype=jnp.int32)
    low, high = (x[None] for x in (image.min((0, 1)), image.max((0, 1))))  # [1, c]
    last = jnp.take_along_axis(counts, high.astype(jnp.int32), axis=0)
    step = (counts.sum(0, keepdims=True) - last) // 255
    equal = (step // 2 + jnp.cumsum(counts, axis=0) - counts) // jnp.maximum(step, 1)
    bits = 2.0 ** jnp.round(4 * size)
    tables = {
        "autocontrast": jnp.where(high > low, jnp.floor((levels - low) * 255 / jnp.maximum(high - low, 1)), levels),
        "equalize": jnp.where(step > 0, equal, levels),
        "posterize": jnp.floor(levels / bits) * bits,
        "solarize": jnp.where(levels < 256 * (1 - size), levels, 255 - levels),
        "brightness": jnp.floor(levels * (1 + 0.9 * strength)),
        "contrast": jnp.floor(mean + (1 + 0.9 * strength) * (levels - mean)),
        "invert": 255 - levels,
    }
    result = levels
    for name, table in tables.items():
        result = jnp.where(operation == OPERATIONS.index(name), jnp.clip(table, 0, 255), result)
    return result


def _matrix(operation: jax.Array, strength: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Return the map [2, 2] and the shift [2] from a place (x, y) of the result to its place in the picture."""

    def only(name: str, value: jax.Array) -> jax.Array:
        return jnp.where(operation == OPERATIONS.index(name), value, 0.0)

    angle, far = only("rotate", jnp.deg2rad(30 * strength)), 150 / 331  # of the side, as in the papers' pictures
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    linear = jnp.array([[cos, only("shear_x", 0.3 * strength) - sin], [only("shear_y", 0.3 * strength) + sin, cos]])
    x, y = (only(f"translate_{axis}", jnp.trunc(far * side * strength)) for axis, side in (("x", width), ("y", height)))
    center = np.array([width / 2, height / 2], np.float32)  # stays where it is
    turned = jnp.array([cos * center[0] - sin * center[1], sin * center[0] + cos * center[1]])
    return linear, jnp.array([x, y]) + center - turned


def _warp(image: jax.Array, linear: jax.Array, shift: jax.Array) -> jax.Array:
    """Take each pixel from the nearest one of its place in the picture, or GRAY outside."""
    height, width = image.shape[:2]
    x, y = jnp.arange(width)[None] + 0.5, jnp.arange(height)[:, None] + 0.5
    columns, rows = (jnp.floor(linear[i, 0] * x + linear[i, 1] * y + shift[i]).astype(jnp.int32) for i in (0, 1))
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    taken = image[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
    return jnp.where(inside[:, :, None], taken, GRAY)


def _look_up(image: jax.Array, table: jax.Array) -> jax.Array:
    flat = image.reshape(-1, image.shape[-1]).astype(jnp.int32)
    return jnp.take_along_axis(table, flat, axis=0).reshape(image.shape)


def _blend(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(jnp.trunc(other + factor * (image - other)), 0, 255)


def _gray(image: jax.Array) -> jax.Array:
    """Return the luma [h, w, 1], rounded as Pillow does."""
    if image.shape[-1] != 3:
        return jnp.round(image.mean(-1, keepdims=True))
    return jnp.floor((jnp.sum(image * LUMA, -1, keepdims=True) + 32768) / 65536)


def _smooth(image: jax.Array) -> jax.Array:
    """Blur the picture by 3 x 3 pixels with a heavy center; the border stays."""
    height, width = image.shape[:2]
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    total = sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3)) + 4 * image
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inner = (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)
    return jnp.where(inner, jnp.floor(total / 13 + 0.5), image)
