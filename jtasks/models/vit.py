"""A vision transformer (Dosovitskiy et al. 2021), pooled by averaging (Beyer et al. 2022) or by a class token."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks import ranges
from jtasks.errors import ConfigError
from jtasks.models.dropout import Dropout
from jtasks.models.layers import NORMAL, Head, make_norm, stack


class ViT(nn.Module):
    """Images [b, h, w, c] in [-1, 1] -> class logits [b, classes], float32; the classifier's input with `pooled`.

    Attributes:
      patch: side of the square patches in pixels; must divide h and w.
      pool: input of the classifier: the `mean` over patches, or a `token` prepended to the patches.
      mlp_dim, activation, epsilon: see `layers.Block`.
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
    mlp_dim: int = 0
    activation: str = "gelu_tanh"
    epsilon: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    plain: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True, *, pooled: bool = False) -> jax.Array:
        ranges.check_module(self)
        b, h, w, c = images.shape
        p = self.patch
        if h % p or w % p:
            raise ConfigError(f"images {h}x{w} are not divisible into patches {p}x{p} (config.model.patch)")
        patches = images.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(b, -1, p * p * c)
        x = nn.Dense(self.width, dtype=self.dtype, name="embed")(patches)
        if self.pool == "token":
            token = self.param("token", NORMAL, (self.width,)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, self.width)), x], axis=1)
        position = self.param("position", NORMAL, (x.shape[1], self.width))
        x = Dropout(self.dropout, name="dropout")(x + position[None].astype(x.dtype), deterministic)
        blocks = stack(self, name="blocks", causal=False)
        x, _ = blocks(x, None, None, deterministic)
        x = make_norm("layer", self.epsilon, self.dtype, name="norm")(x)
        features = x[:, 0] if self.pool == "token" else jnp.mean(x, axis=1)
        return features if pooled else Head(self.classes, dtype=self.dtype, name="head")(features)
