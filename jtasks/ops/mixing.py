"""Mixup and CutMix: each training picture is mixed with a second one of the data set, and so are their classes.

The second picture comes with the batch, drawn by the seed of the first (see `needs_partner` in task.py). Rows of a
batch are not mixed with each other, so no split of the batch changes the result.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.errors import ConfigError
from jtasks.ops import augment
from jtasks.ops.precision import wide
from jtasks.ranges import Field

QUANTILES = 2**14

# Fields of config.data of a task of labeled pictures, for its `defaults`.
FIELDS = {
    "data.mixup": Field(float, "[0, inf)", 0.0),  # alpha of the Beta distribution of a picture's share; 0: off
    "data.cutmix": Field(float, "[0, inf)", 0.0),  # the same of its area; with both, each picture has one of them
}


def is_on(options: Any) -> bool:
    """Return whether config.data asks for Mixup or CutMix, for a task's `needs_partner`."""
    return bool(options.get("mixup") or options.get("cutmix"))


def training_pairs(
    batch: dict[str, jax.Array], options: Any, classes: int, augmented: Callable[[dict[str, jax.Array]], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Return the training pictures [b, h, w, c] of a batch with their labels, mixed as `options` (config.data) says.

    Args:
      batch: `image`, `label` [b] and, for mixing, `seed` and the same entries of the partners.
      options: has FIELDS.
      classes: number of classes.
      augmented: returns the augmented pictures of a batch.

    Returns:
      The pictures, and the labels [b], or of mixed pictures the shares of their classes [b, classes]. Labels that are
      numbers or shares already, in floats or as [b, classes], are mixed as they are.
    """
    if not is_on(options):
        return augmented(batch), batch["label"]
    other = partner(batch)
    alphas = {"mixup": options.mixup, "cutmix": options.cutmix}
    images, share = mix(augmented(batch), augmented(other), batch["seed"], **alphas)
    first, second = (_shares(each["label"], classes).astype(share.dtype) for each in (batch, other))
    share = share.reshape(-1, *(1,) * (first.ndim - 1))
    return images, share * first + (1 - share) * second


def _shares(labels: jax.Array, classes: int) -> jax.Array:
    """Return the shares of the classes [b, classes] of labels [b]; numbers and shares as they are."""
    plain = labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)
    return jax.nn.one_hot(labels, classes) if plain else labels


def partner(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the second examples of a batch as a batch, with seeds of their own.

    Raises:
      ConfigError: the batch has none.
    """
    if "partner_image" not in batch or "seed" not in batch:
        raise ConfigError(
            "config.data.mixup and config.data.cutmix mix each picture with another one: give the batch the entries"
            " partner_image, partner_label and seed, as the batches of training have"
        )
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(augment.keys(batch["seed"]))
    seeds = jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32))(keys)
    return {"image": batch["partner_image"], "label": batch["partner_label"], "seed": seeds}


def mix(
    images: jax.Array, partners: jax.Array, seeds: jax.Array, *, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Mix pictures [b, h, w, c] with their partners; returns float32 pictures, and the share [b] of the first.

    Args:
      images: the pictures, of any type of numbers.
      partners: as many pictures of the same shape.
      seeds: [b] uint32.
      mixup: alpha of Mixup (Zhang et al. 2018, arXiv:1710.09412), the weighted mean of both; 0: none.
      cutmix: alpha of CutMix (Yun et al. 2019, arXiv:1905.04899), which fills a rectangle from the partner; 0: none.
        With both, each picture has one of them, by a fair coin.
    """
    height, width = images.shape[1:3]
    shares, areas = beta_quantiles(mixup), beta_quantiles(cutmix)

    def draw(key: jax.Array, quantiles: np.ndarray) -> jax.Array:
        return jnp.asarray(quantiles)[jax.random.randint(key, (), 0, len(quantiles))]

    def one(image: jax.Array, other: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        coin, share_key, box_key, place_key = jax.random.split(jax.random.fold_in(key, 3), 4)
        inside = rectangle(place_key, draw(box_key, areas), height, width)
        cuts = jax.random.bernoulli(coin) if mixup and cutmix else bool(cutmix)
        share = jnp.where(cuts, 1 - inside.mean(), draw(share_key, shares))
        own = jnp.where(cuts, 1 - inside, share)[:, :, None].astype(wide(image))
        return own * image + (1 - own) * other, share

    return jax.vmap(one)(images, partners, augment.keys(seeds))


@functools.cache
def beta_quantiles(alpha: float) -> np.ndarray:
    """Return the quantiles of Beta(alpha, alpha) at QUANTILES equally likely levels, float32; ones for alpha 0.

    A random one of these is a draw, without the loops of a rejection sampler, which take long to compile.
    """
    from scipy import special

    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return (special.betaincinv(alpha, alpha, levels) if alpha else np.ones(1)).astype(np.float32)


def rectangle(key: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """Return 1 inside a rectangle of the fraction 1 - `share` of a picture, around a random center, else 0: [h, w].

    Its part outside of the picture is cut off, so the fraction inside may be smaller.
    """
    rows, columns = jnp.arange(height), jnp.arange(width)
    y, x = jax.random.randint(key, (2,), 0, jnp.array([height, width]))

    def within(places: jax.Array, center: jax.Array, side: int) -> jax.Array:
        size = jnp.floor(side * jnp.sqrt(1 - share)).astype(jnp.int32)
        begin = center - size // 2
        return (places >= begin) & (places < begin + size)

    inside = within(rows, y, height)[:, None] & within(columns, x, width)[None]
    return inside.astype(jnp.float32)
