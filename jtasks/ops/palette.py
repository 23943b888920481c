"""Pixels as color tokens: the nearest color of a palette, and back (Chen et al. 2020, 3.1)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Palette = tuple[tuple[float, ...], ...]


def nearest(images: jax.Array, palette: Palette) -> jax.Array:
    """Return the index of each pixel's nearest color in raster order: [b, h, w, c] -> [b, h * w] int32."""
    pixels = images.reshape(images.shape[0], -1, images.shape[-1]).astype(jnp.float32)
    # Channel by channel instead of a matrix product, which accelerators would round.
    distance = sum(
        jnp.square(pixels[..., c, None] - jnp.asarray(levels)[None, None])
        for c, levels in enumerate(np.asarray(palette, np.float32).T)
    )
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def pictures(tokens: np.ndarray, palette: Palette, shape: Sequence[int]) -> np.ndarray:
    """Return uint8 images [..., h, w, c] of tokens [..., h * w]; a palette that ends below 128 is stretched to 255."""
    colors = np.asarray(palette, np.float32)
    if colors.max() < 128:
        colors = colors * (255 / max(colors.max(), 1))
    images = np.rint(colors).clip(0, 255).astype(np.uint8)[tokens]
    return images.reshape(*tokens.shape[:-1], *shape, colors.shape[1])
