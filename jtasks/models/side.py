"""One side of an encoder-decoder: positions, the stack of blocks, and norms around it."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtasks.errors import ConfigError
from jtasks.models import cache as caches
from jtasks.models.blocks import stack
from jtasks.models.dropout import Dropout
from jtasks.models.layers import Cache, make_norm
from jtasks.ops.precision import wide


class Side(nn.Module):
    """Encoder, or decoder that attends to a memory in each layer; fields are those of `EncoderDecoder` and `Block`."""

    width: int
    depth: int
    heads: int
    mlp_dim: int
    causal: bool
    max_length: int
    head_dim: int
    activation: str
    gated: bool
    norm: str
    epsilon: float
    post_norm: bool
    final_norm: bool
    embed_norm: bool
    bias: bool
    positions: str
    buckets: int
    max_distance: int
    position_offset: int
    attention_scale: float
    init_std: float
    dropout: float
    attention_dropout: float
    activation_dropout: float
    remat: bool
    plain: bool
    dtype: Any

    def setup(self) -> None:
        init = nn.initializers.normal(self.init_std)
        if self.positions == "learned":
            rows = self.max_length + self.position_offset
            self.position = nn.Embed(rows, self.width, dtype=self.dtype, embedding_init=init)
        if self.positions == "relative":
            self.distances = self.param("relative", init, (self.buckets, self.heads))
        if self.embed_norm:
            self.first_norm = make_norm(self.norm, self.epsilon, self.dtype)
        self.dropout_in = Dropout(self.dropout)
        self.blocks = stack(self, cross=self.causal, relative=True)
        if self.final_norm:
            self.last_norm = make_norm(self.norm, self.epsilon, self.dtype, name="norm")
            self.dropout_out = Dropout(self.dropout)

    def __call__(
        self,
        x: jax.Array,
        segment_ids: jax.Array | None,
        deterministic: bool,
        memory: jax.Array | None = None,
        memory_mask: Any = None,
    ) -> jax.Array:
        """Return states [b, t, width] of embeddings `x` [b, t, width]; positions count from each text's start."""
        places = run_places(segment_ids, x.shape[1])
        return self.run(x, places, None, segment_ids, deterministic, memory, memory_mask)[0]

    def run(
        self,
        x: jax.Array,
        places: jax.Array,
        cache: Cache | None,
        segment_ids: jax.Array | None,
        deterministic: bool,
        memory: jax.Array | None = None,
        memory_mask: Any = None,
    ) -> tuple[jax.Array, Any]:
        """Return states [b, t, width], and the cache of a stack; `places` [b or 1, t] are the positions."""
        t = x.shape[1]
        relative = self._by_distance(t) if self.positions == "relative" else None
        x = self._start(x, places, deterministic)
        x, (cache, _) = self.blocks(x, cache, segment_ids, deterministic, memory, memory_mask, relative)
        return self._finish(x, deterministic), cache

    def read(
        self, x: jax.Array, valid: jax.Array, memory: jax.Array, mask: jax.Array | None, length: int, branches: int
    ) -> tuple[jax.Array, Cache]:
        """Return states [b, t, width] of prompts, and the cache to continue them; see `EncoderDecoder.read`."""
        limit = self._limit() or x.shape[1] + length
        hidden, layers = self.run(x, caches.places(valid), {}, valid.astype(jnp.int32), True, memory, mask)
        return hidden, caches.start(layers, valid, length, branches, limit, mask)

    def extend(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Return states [b, n, width] of one more embedding of each branch, and the cache."""
        slots, bias = cache["places"].shape[1], None
        if self.positions == "relative":
            line = self._by_distance(slots)

            def bias(distances: jax.Array) -> jax.Array:
                return jnp.moveaxis(line[:, slots - 1 + distances], 0, 1)[:, :, None]

        x, cache = caches.extend(self.blocks, self._start(x, cache["place"][:, None], True), cache, bias)
        return self._finish(x, True), cache

    def _start(self, x: jax.Array, places: jax.Array, deterministic: bool) -> jax.Array:
        if (limit := self._limit()) and x.shape[1] > limit:
            raise ConfigError(f"a text of {x.shape[1]} tokens, but the model has {limit} positions")
        if self.positions == "learned":
            x = x + self.position(places + self.position_offset)
        elif self.positions == "sinusoidal":
            x = x + jnp.asarray(sinusoids(self.max_length, self.width), x.dtype)[places]
        x = self.first_norm(x) if self.embed_norm else x
        return self.dropout_in(x, deterministic)

    def _finish(self, x: jax.Array, deterministic: bool) -> jax.Array:
        return self.dropout_out(self.last_norm(x), deterministic) if self.final_norm else x

    def _limit(self) -> int | None:
        return None if self.positions == "relative" else self.max_length

    def _by_distance(self, t: int) -> jax.Array:
        """Return the bias [heads, 2 t - 1] of scores that `models/attention.py` defines."""
        ids = bucket_ids(np.arange(1 - t, t), self.buckets, self.max_distance, both=not self.causal)
        table = jnp.asarray(self.distances)
        return table[ids].T.astype(wide(table))


def run_places(segment_ids: jax.Array | None, t: int) -> jax.Array:
    """Return the position [b or 1, t] of each token in its run of equal segment ids [b, t]."""
    places = jnp.arange(t)[None]
    if segment_ids is None:
        return places
    opens = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    return places - jax.lax.cummax(jnp.where(opens, places, 0), axis=1)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Return sinusoidal positions [length, width] float64, sines and then cosines (Vaswani et al. 2017)."""
    frequencies = 10_000.0 ** -(2 * np.arange(math.ceil(width / 2)) / width)
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles[:, : width // 2])], axis=1)


def bucket_ids(distances: np.ndarray, buckets: int, longest: int, *, both: bool) -> np.ndarray:
    """Return T5's bucket of each distance of a key from a query (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, and the others logarithmically more, up to `longest`. With `both` half
    of all buckets are for keys after the query; otherwise all these keys are in bucket 0.
    """
    count = buckets // 2 if both else buckets
    after = np.where(distances > 0, count, 0) if both else 0
    away = np.abs(distances) if both else np.maximum(-distances, 0)
    exact = count // 2
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(longest / exact))
    large = np.minimum(exact + (ratio * np.float32(count - exact)).astype(np.int64), count - 1)
    return after + np.where(away < exact, away, large)
