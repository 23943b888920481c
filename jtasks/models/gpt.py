"""A GPT: causal transformer over token ids (Radford et al. 2019; for pixels, Chen et al. 2020)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks import ranges
from jtasks.errors import ConfigError
from jtasks.models import cache as caches
from jtasks.models.blocks import stack
from jtasks.models.dropout import Dropout
from jtasks.models.layers import NORMAL, Cache, Head, make_norm, vocabulary_logits
from jtasks.models.vocabulary import vocabulary_loss
from jtasks.ops.precision import wide


def shift_right(tokens: jax.Array, start: int) -> jax.Array:
    """Return the inputs that predict `tokens` [b, t]: the start id, then all tokens but the last."""
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=start)


class GPT(nn.Module):
    """Pre-norm causal transformer with learned positions.

    Attributes:
      vocab: number of input ids.
      outputs: number of predicted ids; fewer than `vocab` if a start token is only an input.
      max_length: maximum sequence length.
      classes: outputs of the classifier on pooled features; 0: no classifier.
      tied: predict with the input embedding instead of a separate matrix; requires `outputs` equal to `vocab`.
      mlp_dim, activation, norm, epsilon: see `blocks.Block`.
      remat: save only each layer's input for the backward pass, for less memory.
      plain: use an attention with forward-mode derivatives (`jax.jvp`), which holds all scores in memory.
      dtype: of the computation; None: that of parameters and inputs. Parameters are float32.
    """

    vocab: int
    outputs: int
    max_length: int
    width: int
    depth: int
    heads: int
    classes: int = 0
    tied: bool = False
    mlp_dim: int = 0
    activation: str = "gelu_tanh"
    norm: str = "layer"
    epsilon: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    plain: bool = False
    dtype: Any = None

    def setup(self) -> None:
        ranges.check_module(self)
        if self.tied and self.outputs != self.vocab:
            raise ConfigError(f"a tied head predicts all {self.vocab} input ids, not {self.outputs}")
        self.tokens = nn.Embed(self.vocab, self.width, dtype=self.dtype, embedding_init=NORMAL)
        self.position = nn.Embed(self.max_length, self.width, dtype=self.dtype, embedding_init=NORMAL)
        self.dropout_in = Dropout(self.dropout)
        self.blocks = stack(self, causal=True)
        self.last_norm = make_norm(self.norm, self.epsilon, self.dtype, name="norm")
        if not self.tied:
            self.head = Head(self.outputs, use_bias=False, dtype=self.dtype, kernel_init=NORMAL)
        if self.classes:
            self.classifier = Head(self.classes, dtype=self.dtype, kernel_init=NORMAL)

    def __call__(
        self,
        tokens: jax.Array,
        deterministic: bool = True,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Return logits of the next id, [b, t, outputs] float32, for `tokens` [b, t].

        Args:
          deterministic: no dropout.
          segment_ids: [b, t] numbers that group tokens, 0 for padding; None: one group.
          positions: [b, t] or [t], learned positions; None: 0, 1, ...

        Raises:
          ConfigError: more tokens than the model has positions.
        """
        return self._logits(self.encode(tokens, deterministic, segment_ids, positions))

    def token_loss(
        self,
        tokens: jax.Array,
        labels: jax.Array,
        deterministic: bool = True,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Return nats of `labels` [b, t], and whether each is the likeliest id, without holding all logits."""
        return self._token_loss(self.encode(tokens, deterministic, segment_ids, positions), labels)

    def encode(
        self,
        tokens: jax.Array,
        deterministic: bool = True,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Return the normalized activations of the last layer, [b, t, width]; arguments as for `__call__`."""
        positions = jnp.arange(tokens.shape[1]) if positions is None else positions
        return self._run(self._embed(tokens, positions, deterministic), None, segment_ids, deterministic)[0]

    def prefill(
        self, tokens: jax.Array, length: int, branches: int = 1, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Read the prompts `tokens` [b, t].

        Args:
          length: maximum number of tokens that will follow.
          branches: number of sequences that continue each prompt.
          valid: bool [b, t], False for padding, on either side; None: no padding.

        Returns:
          Logits [b, outputs] float32 of the next id, and a cache for `extend`.

        Raises:
          ConfigError: prompt and continuation exceed the model's positions.
        """
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid.astype(bool)
        x = self._embed(tokens, caches.places(valid), True)
        return self._read(x, valid, length, branches)

    def unstack(self) -> Cache:
        """Return the parameters of each layer, for a cache; see `cache.unstack`."""
        return caches.unstack(self.blocks)

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Read one token of each branch, `tokens` [b, n]; return logits [b, n, outputs] float32, and the cache."""
        x = self._embed(tokens, cache["place"][:, None], True)
        x, cache = caches.extend(self.blocks, x, cache)
        return self._logits(self.last_norm(x)), cache

    def _read(self, x: jax.Array, valid: jax.Array, length: int, branches: int) -> tuple[jax.Array, Cache]:
        """Read prompts that are embedded already, [b, t, width]; see `prefill`."""
        hidden, layers, _ = self._run(x, {}, valid.astype(jnp.int32), True)
        cache = caches.start(layers, valid, length, branches, self.max_length)
        return self._logits(caches.at_last(hidden, valid)), cache

    def classify(self, tokens: jax.Array, layer: int = -1, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """Return next-id logits [b, t, outputs], and class logits [b, classes] from the features of `layer`.

        Features are layer-normed activations averaged over positions: the inputs of layers 0 ... depth - 1, or for
        `depth` or -1 the output of the last layer (Chen et al. 2020, sections 3.3 and 3.4).
        """
        hidden, features = self._features(tokens, layer, deterministic)
        return self._logits(hidden), self.classifier(features)

    def pool(self, tokens: jax.Array, layer: int = -1, deterministic: bool = True) -> jax.Array:
        """Return the features [b, width] that `classify` classifies."""
        return self._features(tokens, layer, deterministic)[1]

    def _features(self, tokens: jax.Array, layer: int, deterministic: bool) -> tuple[jax.Array, jax.Array]:
        x = self._embed(tokens, jnp.arange(tokens.shape[1]), deterministic)
        hidden, _, features = self._run(x, None, None, deterministic)
        return hidden, features[layer]

    def _embed(self, tokens: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
        if tokens.shape[1] > self.max_length:
            raise ConfigError(f"{tokens.shape[1]} tokens, but the model has {self.max_length} positions")
        rows = positions if positions.ndim == 2 else positions[None]  # shared positions are looked up once
        return self.dropout_in(self.tokens(tokens) + self.position(rows), deterministic)

    def _add_positions(self, x: jax.Array, valid: jax.Array, deterministic: bool) -> jax.Array:
        """Add learned positions of the `valid` [b, t] ones to `x` [b, t, width], as `_embed` does to tokens."""
        if x.shape[1] > self.max_length:
            raise ConfigError(f"a sequence of {x.shape[1]}, but the model has {self.max_length} positions")
        return self.dropout_in(x + self.position(caches.places(valid)), deterministic)

    def _run(
        self, x: jax.Array, cache: Cache | None, segment_ids: jax.Array | None, deterministic: bool
    ) -> tuple[jax.Array, Any, jax.Array]:
        """Return activations [b, t, width], the cache, and pooled features [depth + 1, b, width]."""
        x, (cache, features) = self.blocks(x, cache, segment_ids, deterministic)
        hidden = self.last_norm(x)
        last = jnp.mean(hidden.astype(wide(hidden)), axis=1)
        return hidden, cache, jnp.concatenate([features, last[None]])

    def _token_loss(self, hidden: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> tuple[jax.Array, jax.Array]:
        if self.tied:
            table = self.tokens.embedding
        else:
            self.head(hidden[:, :1])  # creates the parameters during initialization
            table = self.head.variables["params"]["kernel"].T
        return vocabulary_loss(hidden, table, labels, smoothing=smoothing)

    def _logits(self, hidden: jax.Array) -> jax.Array:
        return vocabulary_logits(hidden, self.tokens.embedding) if self.tied else self.head(hidden)
