"""An encoder-decoder (Vaswani et al. 2017): T5, BART and Marian are settings of it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks import ranges
from jtasks.errors import ConfigError
from jtasks.models import cache as caches
from jtasks.models.bert import Bias
from jtasks.models.layers import Cache, Head, vocabulary_logits
from jtasks.models.side import Side
from jtasks.models.vocabulary import vocabulary_loss


class EncoderDecoder(nn.Module):
    """Encoder and causal decoder over token ids; the decoder attends to the encoder's states in each layer.

    Segment ids number the texts of a row from 1, and are 0 at padding. A target's text attends to itself and to the
    source's text of the same number. Positions count from the start of each text.

    Attributes:
      vocab: number of ids of the source, and of the target unless `target_vocab` is given.
      target_vocab: number of ids of the target, which then has its own embedding; 0: both share one.
      max_length: number of learned or sinusoidal positions; relative positions have no limit.
      encoder_depth, decoder_depth: number of layers.
      heads, mlp_dim: of the encoder, and of the decoder if `decoder_heads` and `decoder_mlp_dim` are 0.
      head_dim, activation, gated, norm, epsilon, post_norm, attention_scale, bias, init_std: see `blocks.Block`.
      final_norm: normalize the output of each side.
      embed_norm: normalize the embeddings (BART).
      positions: `learned`, `sinusoidal` (of Marian: sines, then cosines) or `relative` (Raffel et al. 2020).
      buckets, max_distance: of relative positions; distances from `max_distance` on share a bias.
      position_offset: number of unused rows before the learned positions (BART has 2).
      embed_scale: factor of the embeddings; 0: the square root of the width.
      tied: predict with the target's embedding instead of a separate matrix.
      output_scale: factor of the states that predict; 0: the width to the power of -0.5 (T5, if tied).
      output_bias: add a bias to the logits.
      begin, end, pad: ids that start a target, end it, and follow it.
      remat: save only each layer's input for the backward pass, for less memory.
      plain: use an attention with forward-mode derivatives (`jax.jvp`), which holds all scores in memory.
      dtype: of the computation; None: that of parameters and inputs. Parameters are float32.
    """

    vocab: int
    width: int
    encoder_depth: int
    decoder_depth: int
    heads: int
    max_length: int = 512
    target_vocab: int = 0
    head_dim: int = 0
    mlp_dim: int = 0
    decoder_heads: int = 0
    decoder_mlp_dim: int = 0
    activation: str = "gelu"
    gated: bool = False
    norm: str = "layer"
    epsilon: float = 1e-6
    post_norm: bool = False
    final_norm: bool = True
    embed_norm: bool = False
    bias: bool = True
    positions: str = "learned"
    buckets: int = 32
    max_distance: int = 128
    position_offset: int = 0
    attention_scale: float = 0.0
    embed_scale: float = 1.0
    tied: bool = True
    output_scale: float = 1.0
    output_bias: bool = False
    begin: int = 0
    end: int = 1
    pad: int = 0
    init_std: float = 0.02
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    remat: bool = False
    plain: bool = False
    dtype: Any = None

    def setup(self) -> None:
        ranges.check_module(self)
        exact = self.buckets // 2  # distances with a bucket of their own
        if self.positions == "relative" and self.max_distance <= exact:
            raise ConfigError(f"max_distance={self.max_distance} must be above {exact}, half of buckets={self.buckets}")
        names = {field.name for field in dataclasses.fields(Side)} - {"depth", "mlp_dim", "heads", "causal"}
        both = {name: getattr(self, name) for name in names - {"name", "parent"}}
        heads, mlp_dim = self.decoder_heads or self.heads, self.decoder_mlp_dim or self.mlp_dim
        init = nn.initializers.normal(self.init_std)
        self.tokens = nn.Embed(self.vocab, self.width, dtype=self.dtype, embedding_init=init)
        if self.target_vocab:
            self.target_tokens = nn.Embed(self.target_vocab, self.width, dtype=self.dtype, embedding_init=init)
        self.encoder = Side(depth=self.encoder_depth, heads=self.heads, mlp_dim=self.mlp_dim, causal=False, **both)
        self.decoder = Side(depth=self.decoder_depth, heads=heads, mlp_dim=mlp_dim, causal=True, **both)
        outputs = self.target_vocab or self.vocab
        if not self.tied:
            self.head = Head(outputs, use_bias=False, dtype=self.dtype, kernel_init=init)
        if self.output_bias:
            self.output = Bias(outputs)

    def encode(
        self, source: jax.Array, source_segment_ids: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """Return the encoder's states [b, s, width].

        Args:
          source: [b, s] int32.
          source_segment_ids: [b, s], 0 for padding; None: one text a row.
          deterministic: no dropout.

        Raises:
          ConfigError: more tokens than the model has positions.
        """
        x = self._embed(self.tokens, source)
        return self.encoder(x, source_segment_ids, deterministic)

    def token_loss(
        self,
        source: jax.Array,
        inputs: jax.Array,
        labels: jax.Array,
        source_segment_ids: jax.Array | None = None,
        target_segment_ids: jax.Array | None = None,
        deterministic: bool = True,
        *,
        smoothing: float = 0.0,
    ) -> tuple[jax.Array, jax.Array]:
        """Return nats of `labels` [b, t], and whether each is the likeliest id, without holding all logits.

        Args:
          source: [b, s] int32.
          inputs: [b, t] int32, `begin` and all labels but the last.
          labels: [b, t] int32.
          source_segment_ids: [b, s], 0 for padding; None: one text a row.
          target_segment_ids: [b, t], the number of the source's text that each position attends to; None: any text.
          deterministic: no dropout.
          smoothing: probability mass spread evenly over all ids (Szegedy et al. 2016).

        Raises:
          ConfigError: more tokens than the model has positions.
        """
        hidden = self._decode(source, inputs, source_segment_ids, target_segment_ids, deterministic)
        table, bias = self._table(hidden)
        return vocabulary_loss(self._scaled(hidden), table, labels, bias, smoothing=smoothing)

    def logits(
        self,
        source: jax.Array,
        inputs: jax.Array,
        source_segment_ids: jax.Array | None = None,
        target_segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Return the logits [b, t, target vocabulary] float32 of the ids after `inputs`; see `token_loss`."""
        return self._logits(self._decode(source, inputs, source_segment_ids, target_segment_ids, deterministic))

    def read(
        self,
        source: jax.Array,
        source_segment_ids: jax.Array | None,
        prompt: jax.Array,
        length: int,
        branches: int = 1,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Read sources and the first ids of their targets, as `GPT.prefill` does; `extend` continues.

        All branches of a source share its keys and values, which are computed once.

        Args:
          source: [b, s] int32.
          source_segment_ids: [b, s], 0 for padding; None: no padding.
          prompt: [b, p] int32: `begin`, and given ids if any.
          length: maximum number of ids that will follow.
          branches: number of sequences that continue each prompt.
          valid: bool [b, p], False for padding of the prompt; None: no padding.

        Returns:
          Logits [b, target vocabulary] float32 of the next id, and a cache for `extend`.

        Raises:
          ConfigError: source, or prompt and continuation, exceed the model's positions.
        """
        states = self.encode(source, source_segment_ids)
        mask = None if source_segment_ids is None else source_segment_ids > 0
        valid = jnp.ones(prompt.shape, bool) if valid is None else valid.astype(bool)
        x = self._embed(self._target_tokens(), prompt)
        hidden, cache = self.decoder.read(x, valid, states, mask, length, branches)
        return self._logits(caches.at_last(hidden, valid)), cache

    def unstack(self) -> Cache:
        """Return the parameters of each layer, for a cache; see `cache.unstack`."""
        return caches.unstack(self.decoder.blocks)

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Read one token of each branch, `tokens` [b, n]; return logits [b, n, vocab] float32, and the cache."""
        hidden, cache = self.decoder.extend(self._embed(self._target_tokens(), tokens), cache)
        return self._logits(hidden), cache

    def _decode(
        self,
        source: jax.Array,
        inputs: jax.Array,
        source_segment_ids: jax.Array | None,
        target_segment_ids: jax.Array | None,
        deterministic: bool,
    ) -> jax.Array:
        states = self.encode(source, source_segment_ids, deterministic)
        mask = _memory_mask(source_segment_ids, target_segment_ids)
        x = self._embed(self._target_tokens(), inputs)
        return self.decoder(x, target_segment_ids, deterministic, states, mask)

    def _target_tokens(self) -> Any:
        return self.target_tokens if self.target_vocab else self.tokens

    def _embed(self, table: Any, tokens: jax.Array) -> jax.Array:
        return table(tokens) * (self.embed_scale or self.width**0.5)

    def _scaled(self, hidden: jax.Array) -> jax.Array:
        return hidden * (self.output_scale or self.width**-0.5)

    def _table(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Return the matrix [vocab, width] and the bias [vocab] that predict ids."""
        bias = self.output() if self.output_bias else None
        if self.tied:
            return self._target_tokens().embedding, bias
        self.head(hidden[:, :1])  # creates the parameters during initialization
        return self.head.variables["params"]["kernel"].T, bias

    def _logits(self, hidden: jax.Array) -> jax.Array:
        hidden, bias = self._scaled(hidden), self.output() if self.output_bias else None
        if self.tied:
            return vocabulary_logits(hidden, self._target_tokens().embedding, bias)
        logits = self.head(hidden)
        return logits if bias is None else logits + bias.reshape(*[1] * (logits.ndim - 1), -1)


def _memory_mask(source_segment_ids: jax.Array | None, target_segment_ids: jax.Array | None) -> Any:
    """Return the mask of `attention.cross_attention`."""
    if source_segment_ids is None:
        return None
    return source_segment_ids > 0 if target_segment_ids is None else (target_segment_ids, source_segment_ids)
