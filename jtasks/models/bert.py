"""BERT: a bidirectional transformer with heads for pre-training and fine-tuning (Devlin et al. 2019)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks import ranges
from jtasks.errors import ConfigError
from jtasks.models.blocks import stack
from jtasks.models.dense import Dense
from jtasks.models.dropout import Dropout
from jtasks.models.layers import ACTIVATIONS, NORMAL, Head, make_norm, vocabulary_logits
from jtasks.models.vocabulary import vocabulary_loss
from jtasks.ops import pooling


class Bias(nn.Module):
    """A bias vector [size] as a module, so that the parameter exists only if it is used."""

    size: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("bias", nn.initializers.zeros, (self.size,))


class BERT(nn.Module):
    """Post-norm encoder over token ids; a head's parameters exist only if its method was initialized.

    All methods take `tokens` and `token_types` (0 for the first text, 1 for the second), [b, t] int32, and
    `segment_ids` [b, t] int32: the attention mask, or the numbers of packed texts; 0 is padding.

    Attributes:
      labels: outputs of the fine-tuning head.
      classifier_dropout: dropout rate before the fine-tuning head.
      remat: save only each layer's input for the backward pass, for less memory.
      plain: use an attention with forward-mode derivatives (`jax.jvp`), which holds all scores in memory.
      dtype: of the computation; None: that of parameters and inputs. Parameters are float32.
    """

    vocab: int
    max_length: int
    width: int
    depth: int
    heads: int
    mlp_dim: int = 0
    token_types: int = 2
    labels: int = 0
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.1
    remat: bool = False
    plain: bool = False
    dtype: Any = None

    def setup(self) -> None:
        ranges.check_module(self)

        def dense(width: int) -> Dense:
            return Dense(width, dtype=self.dtype, kernel_init=NORMAL)

        def embed(ids: int) -> nn.Embed:
            return nn.Embed(ids, self.width, dtype=self.dtype, embedding_init=NORMAL)

        self.tokens, self.position, self.type = embed(self.vocab), embed(self.max_length), embed(self.token_types)
        self.norm = make_norm("layer", self.epsilon, self.dtype)
        self.dropout_in = Dropout(self.dropout)
        self.blocks = stack(self, causal=False, post_norm=True)
        self.pooler = dense(self.width)
        self.masked_dense = dense(self.width)
        self.masked_norm = make_norm("layer", self.epsilon, self.dtype)
        self.masked_out = Bias(self.vocab)
        self.next_sentence = Head(2, dtype=self.dtype, kernel_init=NORMAL)
        self.dropout_out = Dropout(self.classifier_dropout)
        self.classifier = Head(self.labels, dtype=self.dtype, kernel_init=NORMAL)

    def __call__(
        self, tokens: jax.Array, token_types: jax.Array, segment_ids: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Return the activations of the last layer, [b, t, width]."""
        if tokens.shape[1] > self.max_length:
            raise ConfigError(f"{tokens.shape[1]} tokens, but the model has {self.max_length} positions")
        x = self.tokens(tokens) + self.position(jnp.arange(tokens.shape[1]))[None] + self.type(token_types)
        x = self.dropout_in(self.norm(x), deterministic)
        return self.blocks(x, None, segment_ids, deterministic)[0]

    def pretrain(
        self,
        tokens: jax.Array,
        token_types: jax.Array,
        segment_ids: jax.Array,
        places: jax.Array,
        labels: jax.Array,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Predict masked tokens and the next sentence.

        Args:
          places: [b, m] positions of the masked tokens.
          labels: [b, m] the original ids at `places`.
          deterministic: no dropout.

        Returns:
          Nats [b, m] of the labels, whether each label is the likeliest id [b, m], and next-sentence logits [b, 2].
        """
        x = self(tokens, token_types, segment_ids, deterministic)
        masked = self._transform_masked(jnp.take_along_axis(x, places[:, :, None], axis=1))
        nats, correct = vocabulary_loss(masked, self.tokens.embedding, labels, self.masked_out())
        return nats, correct, self.next_sentence(self._pool(x))

    def fill(
        self,
        tokens: jax.Array,
        token_types: jax.Array,
        segment_ids: jax.Array,
        places: jax.Array,
        deterministic: bool = True,
    ) -> jax.Array:
        """Return logits [b, m, vocab] of the tokens at `places` [b, m]."""
        x = self(tokens, token_types, segment_ids, deterministic)
        x = jnp.take_along_axis(x, places[:, :, None], axis=1)
        return vocabulary_logits(self._transform_masked(x), self.tokens.embedding, self.masked_out())

    def masked_logits(
        self, tokens: jax.Array, token_types: jax.Array, segment_ids: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return logits [b, t, vocab] at every position, and next-sentence logits [b, 2], without dropout."""
        x = self(tokens, token_types, segment_ids)
        logits = vocabulary_logits(self._transform_masked(x), self.tokens.embedding, self.masked_out())
        return logits, self.next_sentence(self._pool(x))

    def classify(
        self, tokens: jax.Array, token_types: jax.Array, segment_ids: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Return logits [b, labels] from the pooled first token; with one label, a score per text (multiple choice)."""
        pooled = self._pool(self(tokens, token_types, segment_ids, deterministic))
        return self.classifier(self.dropout_out(pooled, deterministic))

    def embed(
        self, tokens: jax.Array, token_types: jax.Array, segment_ids: jax.Array, deterministic: bool = True
    ) -> dict[str, jax.Array]:
        """Return features [b, width] float32 of each text.

        Returns:
          `cls`, the first token's activations of the last layer; `mean`, the average over all tokens but padding, as in
          sentence encoders (Reimers and Gurevych 2019); and `pooled`, the pooler's output, if the parameters have one.
        """
        x = self(tokens, token_types, segment_ids, deterministic)
        features = {"cls": x[:, 0], "mean": pooling.mean(x, segment_ids > 0)}
        if "pooler" in self.variables["params"]:
            features["pooled"] = self._pool(x)
        return {name: value.astype(jnp.float32) for name, value in features.items()}

    def tag(
        self, tokens: jax.Array, token_types: jax.Array, segment_ids: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Return logits [b, t, labels] of each token; with two labels, logits of an answer's start and end."""
        x = self(tokens, token_types, segment_ids, deterministic)
        return self.classifier(self.dropout_out(x, deterministic))

    def _pool(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.pooler(x[:, 0]))

    def _transform_masked(self, x: jax.Array) -> jax.Array:
        return self.masked_norm(ACTIVATIONS[self.activation](self.masked_dense(x)))
