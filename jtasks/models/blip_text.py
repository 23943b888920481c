"""The text side of BLIP (Li et al. 2022): a BERT that may read a memory, as an encoder or as a decoder."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks import ranges
from jtasks.errors import ConfigError
from jtasks.models import cache as caches
from jtasks.models.bert import Bias
from jtasks.models.blocks import stack
from jtasks.models.dense import Dense
from jtasks.models.dropout import Dropout
from jtasks.models.layers import ACTIVATIONS, NORMAL, Cache, Head, make_norm, vocabulary_logits
from jtasks.models.vocabulary import vocabulary_loss


class BLIPText(nn.Module):
    """Post-norm transformer over token ids whose layers may attend to a memory, such as a picture's states.

    The parameters of the vocabulary's head exist only if a method that predicts ids was initialized, those of
    cross-attention only if it was initialized with a memory.

    Attributes:
      causal: a decoder: no position attends to later ones.
      tied: predict with the input embedding instead of a separate matrix.
      mlp_dim, activation, epsilon: see `blocks.Block`.
      remat: save only each layer's input for the backward pass, for less memory.
      plain: use an attention with forward-mode derivatives (`jax.jvp`), which holds all scores in memory.
      dtype: of the computation; None: that of parameters and inputs. Parameters are float32.
    """

    vocab: int
    max_length: int
    width: int
    depth: int
    heads: int
    causal: bool
    tied: bool = True
    mlp_dim: int = 0
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    plain: bool = False
    dtype: Any = None

    def setup(self) -> None:
        ranges.check_module(self)
        self.tokens = nn.Embed(self.vocab, self.width, dtype=self.dtype, embedding_init=NORMAL)
        self.position = nn.Embed(self.max_length, self.width, dtype=self.dtype, embedding_init=NORMAL)
        self.norm = make_norm("layer", self.epsilon, self.dtype)
        self.dropout_in = Dropout(self.dropout)
        self.blocks = stack(self, post_norm=True, cross=True)
        self.transform = Dense(self.width, dtype=self.dtype, kernel_init=NORMAL)
        self.transform_norm = make_norm("layer", self.epsilon, self.dtype)
        output: Any = Bias(self.vocab) if self.tied else Head(self.vocab, dtype=self.dtype, kernel_init=NORMAL)
        self.output = output

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
        *,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Return the activations of the last layer, [b, t, width].

        Args:
          tokens: [b, t] int32.
          segment_ids: [b, t] numbers that group tokens, 0 for padding; None: one group.
          deterministic: no dropout.
          memory: [b, s, d] states that all layers attend to; None: layers without cross-attention.
          memory_mask: bool [b, s], False for padding of the memory; None: no padding.
          positions: [b, t] or [t], learned positions; None: 0, 1, ...

        Raises:
          ConfigError: more tokens than the model has positions.
        """
        if positions is None and tokens.shape[1] > self.max_length:
            raise ConfigError(f"{tokens.shape[1]} tokens, but the model has {self.max_length} positions")
        positions = jnp.arange(tokens.shape[1]) if positions is None else positions
        x = self._embed(tokens, positions, deterministic)
        return self.blocks(x, None, segment_ids, deterministic, memory, memory_mask)[0]

    def token_loss(
        self,
        tokens: jax.Array,
        labels: jax.Array,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
        *,
        smoothing: float = 0.0,
        **options: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """Return nats of `labels` [b, t], and whether each is the likeliest id; see `__call__`.

        Args:
          smoothing: probability mass spread evenly over all ids (Szegedy et al. 2016).
        """
        hidden = self._transform(self(tokens, segment_ids, deterministic, **options))
        table, bias = self._table(hidden)
        return vocabulary_loss(hidden, table, labels, bias, smoothing=smoothing)

    def logits(
        self, tokens: jax.Array, segment_ids: jax.Array | None = None, deterministic: bool = True, **options: Any
    ) -> jax.Array:
        """Return the logits [b, t, vocab] float32 at each position; see `__call__`."""
        return self._logits(self(tokens, segment_ids, deterministic, **options))

    def prefill(
        self,
        tokens: jax.Array,
        length: int,
        branches: int = 1,
        valid: jax.Array | None = None,
        *,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Read prompts [b, t] and the memory, as `GPT.prefill` does; all branches share the memory's keys and values.

        Raises:
          ConfigError: prompt and continuation exceed the model's positions.
        """
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid.astype(bool)
        x = self._embed(tokens, caches.places(valid), True)
        hidden, (layers, _) = self.blocks(x, {}, valid.astype(jnp.int32), True, memory, memory_mask)
        cache = caches.start(layers, valid, length, branches, self.max_length, memory_mask)
        return self._logits(caches.at_last(hidden, valid)), cache

    def unstack(self) -> Cache:
        """Return the parameters of each layer, for a cache; see `cache.unstack`."""
        return caches.unstack(self.blocks)

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Read one token of each branch, `tokens` [b, n]; return logits [b, n, vocab] float32, and the cache."""
        x = self._embed(tokens, cache["place"][:, None], True)
        hidden, cache = caches.extend(self.blocks, x, cache)
        return self._logits(hidden), cache

    def _embed(self, tokens: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
        rows = positions if positions.ndim == 2 else positions[None]  # shared positions are looked up once
        return self.dropout_in(self.norm(self.tokens(tokens) + self.position(rows)), deterministic)

    def _transform(self, x: jax.Array) -> jax.Array:
        return self.transform_norm(ACTIVATIONS[self.activation](self.transform(x)))

    def _table(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the matrix [vocab, width] and the bias [vocab] that predict ids."""
        if self.tied:
            return self.tokens.embedding, self.output()
        self.output(hidden[:, :1])  # creates the parameters during initialization
        params = self.output.variables["params"]
        return params["kernel"].T, params["bias"]

    def _logits(self, x: jax.Array) -> jax.Array:
        hidden = self._transform(x)
        return vocabulary_logits(hidden, self.tokens.embedding, self.output()) if self.tied else self.output(hidden)
