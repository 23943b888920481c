"""A vision transformer (Dosovitskiy et al. 2021) and ways to pool its patches."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks import ranges
from jtasks.errors import ConfigError
from jtasks.models.attention import attention
from jtasks.models.blocks import stack
from jtasks.models.dense import Dense
from jtasks.models.dropout import Dropout
from jtasks.models.layers import ACTIVATIONS, NORMAL, Head, make_norm


class Projections(nn.Module):
    """Query [1, h, 1, d] of one vector [width], and keys and values [b, h, n, d] of states [b, n, width]."""

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, probe: jax.Array, states: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        width, three = states.shape[-1], (self.heads, 3, states.shape[-1] // self.heads)
        kernel = self.param("kernel", NORMAL, (width, 3 * width)).astype(self.dtype or states.dtype)
        bias = self.param("bias", nn.initializers.zeros, (3 * width,)).astype(kernel.dtype)
        # Heads come before q, k, v, as in `layers.Attention`.
        kernel, bias = kernel.reshape(width, *three), bias.reshape(three)
        query = jnp.einsum("w,whd->hd", probe.astype(kernel.dtype), kernel[:, :, 0]) + bias[:, 0]
        pairs = jnp.einsum("bnw,whkd->kbhnd", states.astype(kernel.dtype), kernel[:, :, 1:])
        key, value = pairs + jnp.moveaxis(bias[:, 1:], 1, 0)[:, None, :, None]
        return query[None, :, None], key, value


class AttentionPool(nn.Module):
    """Attention pooling: a learned probe attends to the states [b, n, width]; then an MLP -> [b, width].

    This is the head of Zhai et al. 2022 (arXiv:2106.04560), which SigLIP has. The fields are those of `blocks.Block`.
    """

    heads: int
    mlp_dim: int = 0
    activation: str = "gelu_tanh"
    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        b, _, width = states.shape

        def dense(features: int, name: str) -> Dense:
            return Dense(features, dtype=self.dtype, kernel_init=NORMAL, name=name)

        probe = self.param("probe", NORMAL, (width,))
        query, key, value = Projections(self.heads, self.dtype, name="query_key_value")(probe, states)
        mixed = attention(jnp.broadcast_to(query, (b, *query.shape[1:])), key, value)
        x = dense(width, "output")(mixed.reshape(b, width))
        y = dense(self.mlp_dim or 4 * width, "up")(make_norm("layer", self.epsilon, self.dtype, name="norm")(x))
        return x + dense(width, "down")(ACTIVATIONS[self.activation](y))


class ViT(nn.Module):
    """Images [b, h, w, c] in [-1, 1] -> class logits [b, classes], float32; the classifier's input with `pooled`.

    Attributes:
      patch: side of the square patches in pixels; must divide h and w.
      pool: input of the classifier: the `mean` over patches (Beyer et al. 2022), a `token` prepended to the patches, or
        their `map`, attention pooling with a learned probe.
      norm_first: normalize before the blocks too, as CLIP does (Radford et al. 2021).
      patch_bias: whether the embedding of the patches has a bias.
      mlp_dim, activation, epsilon: see `blocks.Block`.
      remat: save only each layer's input for the backward pass, for less memory.
      plain: use an attention with forward-mode derivatives (`jax.jvp`), which holds all scores in memory.
      dtype: of the computation; None: that of parameters and inputs. Parameters are float32.
    """

    classes: int
    width: int
    depth: int
    heads: int
    patch: int
    pool: str = "mean"
    norm_first: bool = False
    patch_bias: bool = True
    mlp_dim: int = 0
    activation: str = "gelu_tanh"
    epsilon: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    plain: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: jax.Array, deterministic: bool = True, *, pooled: bool = False, states: bool = False
    ) -> jax.Array:
        ranges.check_module(self)
        b, h, w, c = images.shape
        p = self.patch
        if h % p or w % p:
            raise ConfigError(f"images {h}x{w} are not divisible into patches {p}x{p} (config.model.patch)")
        patches = images.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(b, -1, p * p * c)
        x = Dense(self.width, self.patch_bias, dtype=self.dtype, name="embed")(patches)
        if self.pool == "token":
            token = self.param("token", NORMAL, (self.width,)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, self.width)), x], axis=1)
        position = self.param("position", NORMAL, (x.shape[1], self.width))
        x = Dropout(self.dropout, name="dropout")(x + position[None].astype(x.dtype), deterministic)
        if self.norm_first:
            x = make_norm("layer", self.epsilon, self.dtype, name="first_norm")(x)
        blocks = stack(self, name="blocks", causal=False)
        x, _ = blocks(x, None, None, deterministic)
        x = make_norm("layer", self.epsilon, self.dtype, name="norm")(x)
        if states:
            return x
        pool = AttentionPool(self.heads, self.mlp_dim, self.activation, self.epsilon, self.dtype, name="pool")
        features = pool(x) if self.pool == "map" else x[:, 0] if self.pool == "token" else jnp.mean(x, axis=1)
        return features if pooled else Head(self.classes, dtype=self.dtype, name="head")(features)

    def encode(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        """Return the states [b, n, width] after the last norm: the class token's, if there is one, and the patches'."""
        return self(images, deterministic, states=True)
