"""Image augmentation on the device, from each example's own key, so no split of a batch changes it."""

import jax
import jax.numpy as jnp


def keys(seeds: jax.Array) -> jax.Array:
    """One random key an example, [b], from the `seed` entry of a batch."""
    return jax.vmap(jax.random.key)(seeds)


def crop(images: jax.Array, keys: jax.Array, pad: int) -> jax.Array:
    """Pad [b, h, w, c] by reflection and cut a random [h, w] window out of each (Krizhevsky 2009; reflected)."""
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")

    def cut(image: jax.Array, key: jax.Array) -> jax.Array:
        top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(image, (top, left, 0), images.shape[1:])

    return jax.vmap(cut)(padded, keys)


def flip(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirror each of [b, h, w, c] left to right with probability one half."""
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def crop_and_flip(images: jax.Array, seeds: jax.Array, *, pad: int, mirror: bool) -> jax.Array:
    """The standard augmentation of CIFAR-10; `pad` 0 does not crop."""
    crop_keys, flip_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys(seeds)), 1, 0)
    images = crop(images, crop_keys, pad) if pad else images
    return flip(images, flip_keys) if mirror else images
