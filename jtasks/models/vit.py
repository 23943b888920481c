"""A vision transformer (Dosovitskiy et al. 2021), pooled by averaging as in Beyer et al. 2022."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks.models.layers import NORMAL, stack


class ViT(nn.Module):
    """Images [b, h, w, c] in [-1, 1] -> class logits [b, classes], float32.

    Attributes:
      patch: side of the square patches; h and w must be multiples of it.
      dtype: of the computation; parameters are float32.
    """

    classes: int
    width: int
    depth: int
    heads: int
    patch: int
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        b, h, w, c = images.shape
        p = self.patch
        if h % p or w % p:
            raise ValueError(f"images {h}x{w} are not divisible into patches {p}x{p}")
        patches = images.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(b, -1, p * p * c)
        x = nn.Dense(self.width, dtype=self.dtype, name="embed")(patches.astype(self.dtype))
        position = self.param("position", NORMAL, (x.shape[1], self.width))
        x = nn.Dropout(self.dropout, name="dropout")(x + position[None].astype(self.dtype), deterministic)
        blocks = stack(
            depth=self.depth,
            remat=self.remat,
            name="blocks",
            width=self.width,
            heads=self.heads,
            causal=False,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        x, _ = blocks(x, None, 0, deterministic)
        pooled = jnp.mean(nn.LayerNorm(dtype=self.dtype, name="norm")(x), axis=1)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(pooled).astype(jnp.float32)
