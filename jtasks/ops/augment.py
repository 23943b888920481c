"""Image augmentation on the device with a random key per example, so that no split of a batch changes it."""

import jax
import jax.numpy as jnp

from jtasks.errors import ConfigError
from jtasks.ops.precision import wide

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
CHROMA = ((0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # I and Q of NTSC's YIQ


def keys(seeds: jax.Array | None) -> jax.Array:
    """Return a random key per example, [b], from the `seed` entry of a batch.

    Raises:
      ConfigError: the batch has no seeds.
    """
    if seeds is None:
        raise ConfigError("this needs random numbers for each example: give the batch an entry `seed`, uint32 [b]")
    return jax.vmap(jax.random.key)(seeds)


def crop(images: jax.Array, keys: jax.Array, pad: int) -> jax.Array:
    """Pad images [b, h, w, c] by reflection and crop a random [h, w] window (Krizhevsky 2009; reflection is ours)."""
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")

    def cut(image: jax.Array, key: jax.Array) -> jax.Array:
        top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(image, (top, left, 0), images.shape[1:])

    return jax.vmap(cut)(padded, keys)


def flip(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirror each of the images [b, h, w, c] left to right with probability one half."""
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def resized_crop(
    images: jax.Array,
    keys: jax.Array,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """Scale a random part of each of the images [b, h, w, c] up to [h, w], bilinearly; returns float32.

    This is ImageNet's augmentation (Szegedy et al. 2015). The fraction of the area is uniform in `area`. The ratio of
    width to height is log-uniform in `ratio`; parts longer than the image are clipped. With a fraction above 1 the part
    has the whole image in it, scaled down, with the mean color of the image's border around (as in Liu et al. 2016).
    """
    shape, shrinks = jnp.asarray(images.shape[1:3], jnp.float32), area[1] > 1
    longest = shape * max(1.0, area[1] ** 0.5)

    def cut(image: jax.Array, key: jax.Array) -> jax.Array:
        share_key, ratio_key, place_key = jax.random.split(key, 3)
        share = jax.random.uniform(share_key, minval=area[0], maxval=area[1])
        stretch = jnp.exp(0.5 * jax.random.uniform(ratio_key, minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])))
        # In square pixels, so that parts of a wide image keep the drawn ratio.
        side = jnp.sqrt(share * shape[0] * shape[1])
        size = jnp.minimum(side * jnp.stack([1 / stretch, stretch]), longest)
        corner = jax.random.uniform(place_key, (2,)) * (shape - size)
        scale, image = shape / size, image.astype(wide(image))
        border = _border(image) if shrinks else jnp.zeros((1, 1, image.shape[-1]), image.dtype)
        part = jax.image.scale_and_translate(
            image - border if shrinks else image,  # what lies outside is 0
            image.shape,
            (0, 1),
            scale,
            -corner * scale,
            method="linear",
            antialias=shrinks,
        )
        return part + border if shrinks else part

    return jax.vmap(cut)(images, keys)


def color(images: jax.Array, seeds: jax.Array | None, *, strength: float, white: float) -> jax.Array:
    """Multiply brightness, contrast and saturation of each of the images [b, h, w, c] by random factors; float32.

    The factors are uniform in [1 - strength, 1 + strength]; levels stay within 0 to `white`. This is the color jitter
    of Howard (2013, arXiv:1312.5402).
    """
    luma = jnp.array(LUMA) if images.shape[-1] == len(LUMA) else jnp.ones(images.shape[-1])

    def change(image: jax.Array, key: jax.Array) -> jax.Array:
        brightness, contrast, saturation = jax.random.uniform(
            jax.random.fold_in(key, 1), (3,), minval=1 - strength, maxval=1 + strength
        )
        image = image.astype(wide(image)) * brightness
        image = (image - jnp.mean(image)) * contrast + jnp.mean(image)
        gray = jnp.sum(image * luma[None, None], axis=-1, keepdims=True) / jnp.sum(luma)
        return jnp.clip((image - gray) * saturation + gray, 0, white)

    return jax.vmap(change)(images, keys(seeds))


def hue(images: jax.Array, seeds: jax.Array | None, *, turn: float, white: float) -> jax.Array:
    """Turn the hue of each of the images [b, h, w, 3] by a random part of the color circle; returns float32.

    The part is uniform in [-turn, turn]; 0.5 gives any hue. The turn is one of I and Q in NTSC's YIQ, so grays and the
    luma stay until levels are cut to 0 to `white`. Hue jitter is one of the augmentations of Chen et al. 2020
    (arXiv:2002.05709). Images of another number of channels stay as they are.
    """
    to_yiq = jnp.array([LUMA, *CHROMA])
    to_rgb = jnp.linalg.inv(to_yiq)

    def change(image: jax.Array, key: jax.Array) -> jax.Array:
        angle = 2 * jnp.pi * jax.random.uniform(jax.random.fold_in(key, 6), minval=-turn, maxval=turn)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rotation = jnp.eye(3).at[1:, 1:].set(jnp.array([[cos, -sin], [sin, cos]]))
        mixed = jnp.einsum("hwc,dc->hwd", image.astype(wide(image)), to_rgb @ rotation @ to_yiq)
        return jnp.clip(mixed, 0, white)

    return jax.vmap(change)(images, keys(seeds)) if images.shape[-1] == len(LUMA) else images


def grayscale(images: jax.Array, seeds: jax.Array | None, *, fraction: float) -> jax.Array:
    """Make a random fraction of the images [b, h, w, 3] gray (as in Chen et al. 2020, arXiv:2002.05709); float32."""

    def change(image: jax.Array, key: jax.Array) -> jax.Array:
        image = image.astype(wide(image))
        gray = jnp.sum(image * jnp.array(LUMA)[None, None], axis=-1, keepdims=True)
        return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 5), fraction), gray, image)

    return jax.vmap(change)(images, keys(seeds)) if images.shape[-1] == len(LUMA) else images


def resized_crop_and_flip(
    images: jax.Array, seeds: jax.Array | None, *, area: float, mirror: bool, max_area: float = 1.0
) -> jax.Array:
    """Apply the standard augmentation of ImageNet; a crop has `area` to `max_area` times the pixels of the image."""
    crop_keys, flip_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys(seeds)), 1, 0)
    images = resized_crop(images, crop_keys, (area, max_area))
    return flip(images, flip_keys) if mirror else images


def crop_and_flip(images: jax.Array, seeds: jax.Array | None, *, pad: int, mirror: bool) -> jax.Array:
    """Apply the standard augmentation of CIFAR-10; with `pad` 0 and no `mirror`, seeds are not needed."""
    if not pad and not mirror:
        return images
    crop_keys, flip_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys(seeds)), 1, 0)
    images = crop(images, crop_keys, pad) if pad else images
    return flip(images, flip_keys) if mirror else images


def _border(image: jax.Array) -> jax.Array:
    """Return the mean color [1, 1, c] of the outermost pixels of an image [h, w, c]."""
    edges = image[0], image[-1], image[:, 0], image[:, -1]
    return jnp.mean(jnp.concatenate(edges), axis=0)[None, None]
