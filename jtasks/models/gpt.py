"""A GPT: causal transformer over token ids (Radford et al. 2019; for pixels, Chen et al. 2020)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks.models.layers import NORMAL, Cache, empty_cache, stack


def shifted(tokens: jax.Array, start: int) -> jax.Array:
    """Inputs that predict `tokens` [b, t]: the start id, then all but the last."""
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=start)


class GPT(nn.Module):
    """Pre-norm causal transformer with learned positions.

    Attributes:
      vocab: number of input ids.
      outputs: number of ids it predicts (a start token is an input only).
      positions: longest sequence.
      classes: of the classifier on pooled features; 0 for none.
      remat: recompute each layer in the backward pass, for less memory.
      dtype: of the computation; parameters are float32.
    """

    vocab: int
    outputs: int
    positions: int
    width: int
    depth: int
    heads: int
    classes: int = 0
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be divisible by heads {self.heads}")
        self.tokens = nn.Embed(self.vocab, self.width, dtype=self.dtype, embedding_init=NORMAL)
        self.position = nn.Embed(self.positions, self.width, dtype=self.dtype, embedding_init=NORMAL)
        self.dropout_in = nn.Dropout(self.dropout)
        self.blocks = stack(
            depth=self.depth,
            remat=self.remat,
            name=None,
            width=self.width,
            heads=self.heads,
            causal=True,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        self.norm = nn.LayerNorm(dtype=self.dtype)
        self.head = nn.Dense(self.outputs, use_bias=False, dtype=self.dtype, kernel_init=NORMAL)
        if self.classes:
            self.classifier = nn.Dense(self.classes, dtype=self.dtype, kernel_init=NORMAL)

    def __call__(self, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        """Logits of the next id, [b, t, outputs] float32, for `tokens` [b, t]."""
        hidden, _, _ = self._encode(tokens, None, 0, deterministic)
        return self.head(hidden).astype(jnp.float32)

    def decode(self, tokens: jax.Array, cache: Cache, position: Any) -> tuple[jax.Array, Cache]:
        """Logits [b, outputs] float32 of the id after the last of `tokens` [b, t], which stand at `position` and on."""
        hidden, cache, _ = self._encode(tokens, cache, position, True)
        return self.head(hidden[:, -1]).astype(jnp.float32), cache

    def classify(self, tokens: jax.Array, layer: int = -1, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """Next-id logits [b, t, outputs], and class logits [b, classes] from the features of `layer`.

        Features are the layer-normed activations that enter layer 0 ... depth - 1, or leave the last
        (`depth` or -1), averaged over positions (Chen et al. 2020, sections 3.3 and 3.4).
        """
        hidden, _, features = self._encode(tokens, None, 0, deterministic)
        return self.head(hidden).astype(jnp.float32), self.classifier(features[layer]).astype(jnp.float32)

    def cache(self, b: int, length: int) -> Cache:
        """An empty cache for `b` sequences of `length`."""
        return empty_cache(self.depth, b, self.heads, length, self.width // self.heads, self.dtype)

    def _encode(
        self, tokens: jax.Array, cache: Cache | None, position: Any, deterministic: bool
    ) -> tuple[jax.Array, Any, jax.Array]:
        if tokens.shape[1] > self.positions:
            raise ValueError(f"{tokens.shape[1]} tokens, but the model has {self.positions} positions")
        x = self.tokens(tokens) + self.position(position + jnp.arange(tokens.shape[1]))[None]
        x = self.dropout_in(x, deterministic)
        x, (cache, features) = self.blocks(x, cache, position, deterministic)
        hidden = self.norm(x)
        last = jnp.mean(hidden.astype(jnp.float32), axis=1)
        return hidden, cache, jnp.concatenate([features, last[None]])
