"""The transformer block, shared by the backbones."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks.models.attention import attention, causal_attention

Cache = dict[str, jax.Array]

NORMAL = nn.initializers.normal(0.02)


def empty_cache(depth: int, b: int, heads: int, length: int, head_width: int, dtype: Any) -> Cache:
    """Keys and values of no positions yet, with room for `length`; stacked over layers."""
    shape = (depth, b, heads, length, head_width)
    return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}


class Attention(nn.Module):
    """Multi-head self-attention; with a cache, the new positions follow the `position` ones already there."""

    width: int
    heads: int
    causal: bool
    output_scale: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, cache: Cache | None, position: Any) -> tuple[jax.Array, Cache | None]:
        b, t, _ = x.shape
        fused = nn.Dense(3 * self.width, dtype=self.dtype, kernel_init=NORMAL, name="query_key_value")(x)
        # Heads before q, k, v: so the kernel can be divided by heads over devices.
        fused = fused.reshape(b, t, self.heads, 3, self.width // self.heads)
        query, key, value = jnp.transpose(fused, (3, 0, 2, 1, 4))
        if cache is not None:
            cache = {
                "key": jax.lax.dynamic_update_slice_in_dim(cache["key"], key, position, axis=2),
                "value": jax.lax.dynamic_update_slice_in_dim(cache["value"], value, position, axis=2),
            }
            rows = position + jnp.arange(t)
            seen = jnp.arange(cache["key"].shape[2])[None] <= rows[:, None]
            mixed = attention(query, cache["key"], cache["value"], seen[None, None])
        else:
            mixed = (causal_attention if self.causal else attention)(query, key, value)
        mixed = jnp.moveaxis(mixed, 2, 1).reshape(b, t, self.width)
        init = nn.initializers.normal(0.02 * self.output_scale)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="output")(mixed), cache


class Block(nn.Module):
    """A pre-norm transformer block: the residual stream is added to, never normalised itself.

    Also gives the normalised input averaged over positions, [b, width]: the features of this layer.
    """

    width: int
    heads: int
    causal: bool
    depth: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: Cache | None, position: Any, deterministic: bool
    ) -> tuple[jax.Array, tuple[Cache | None, jax.Array]]:
        scale = (2 * self.depth) ** -0.5  # GPT-2: the residual stream's variance does not grow with depth
        normed = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        attend = Attention(self.width, self.heads, self.causal, scale, self.dtype, name="attention")
        y, cache = attend(normed, cache, position)
        x = x + nn.Dropout(self.dropout, name="dropout1")(y, deterministic)
        y = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * self.width, dtype=self.dtype, kernel_init=NORMAL, name="up")(y))
        y = nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02 * scale), name="down")(y)
        x = x + nn.Dropout(self.dropout, name="dropout2")(y, deterministic)
        return x, (cache, jnp.mean(normed.astype(jnp.float32), axis=1))


def stack(*, depth: int, remat: bool, name: str | None, **block: Any) -> nn.Module:
    """`depth` blocks as one scan: compiled once, parameters stacked along a leading axis."""
    cls = nn.remat(Block, prevent_cse=False, static_argnums=(4,)) if remat else Block
    scanned = nn.scan(
        cls,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=depth,
    )
    return scanned(depth=depth, name=name, **block)
