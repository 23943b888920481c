"""BLIP (Li et al. 2022, arXiv:2201.12086): a vision transformer whose states texts attend to."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks import ranges
from jtasks.errors import ConfigError
from jtasks.models.blip_text import BLIPText
from jtasks.models.dense import Dense
from jtasks.models.layers import NORMAL, Cache, Head
from jtasks.models.vit import ViT
from jtasks.ops import pooling


class Scale(nn.Module):
    """The log of what multiplies similarities, for `scale_and_bias`, as a module, so that it exists only if used."""

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("scale", nn.initializers.constant(math.log(1 / 0.07)), ())


class BLIP(nn.Module):
    """Pictures [b, h, w, c] and texts of token ids; a part's parameters exist only if its method was initialized.

    Attributes:
      vocab: number of ids; the last ones are often the marks that begin a text.
      max_length: maximum number of tokens of a text.
      patch: side of the square patches in pixels.
      image_width, image_depth, image_heads, image_mlp_dim, image_activation, image_epsilon: of the vision tower, a
        `ViT` with a class token; see `blocks.Block`.
      text_width, text_depth, text_heads, text_mlp_dim, text_activation, text_epsilon: of the text encoder and decoder.
      tied: predict with the decoder's input embedding instead of a separate matrix.
      classes: outputs of the classifier of a text about pictures; 0: no classifier.
      pictures: number of pictures that the classifier reads, 1 or more.
      embed_dim: width of the joint space of pictures and texts.
      dropout, attention_dropout: of the texts; `image_dropout`, `image_attention_dropout`: of the vision tower.
      remat: save only each layer's input for the backward pass, for less memory.
      plain: use an attention with forward-mode derivatives (`jax.jvp`), which holds all scores in memory.
      dtype: of the computation; None: that of parameters and inputs. Parameters are float32.
    """

    vocab: int
    max_length: int
    image_width: int
    image_depth: int
    image_heads: int
    patch: int
    text_width: int
    text_depth: int
    text_heads: int
    image_mlp_dim: int = 0
    image_activation: str = "gelu"
    image_epsilon: float = 1e-5
    image_dropout: float = 0.0
    image_attention_dropout: float = 0.0
    text_mlp_dim: int = 0
    text_activation: str = "gelu"
    text_epsilon: float = 1e-12
    tied: bool = True
    classes: int = 0
    pictures: int = 1
    embed_dim: int = 256
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    plain: bool = False
    dtype: Any = None

    def setup(self) -> None:
        ranges.check_module(self)
        options = {"remat": self.remat, "plain": self.plain, "dtype": self.dtype}
        self.vision = ViT(
            classes=0,
            width=self.image_width,
            depth=self.image_depth,
            heads=self.image_heads,
            patch=self.patch,
            pool="token",
            mlp_dim=self.image_mlp_dim,
            activation=self.image_activation,
            epsilon=self.image_epsilon,
            dropout=self.image_dropout,
            attention_dropout=self.image_attention_dropout,
            **options,
        )

        def text(*, causal: bool) -> BLIPText:
            return BLIPText(
                vocab=self.vocab,
                max_length=self.max_length,
                width=self.text_width,
                depth=self.text_depth,
                heads=self.text_heads,
                causal=causal,
                tied=self.tied,
                mlp_dim=self.text_mlp_dim,
                activation=self.text_activation,
                epsilon=self.text_epsilon,
                dropout=self.dropout,
                attention_dropout=self.attention_dropout,
                **options,
            )

        self.text_encoder, self.text_decoder = text(causal=False), text(causal=True)
        self.place = nn.Embed(self.pictures, self.image_width, dtype=self.dtype, embedding_init=NORMAL)
        self.class_dense = Dense(self.text_width, dtype=self.dtype, kernel_init=NORMAL)
        self.classifier = Head(self.classes, dtype=self.dtype, kernel_init=NORMAL)
        self.image_projection = Dense(self.embed_dim, dtype=self.dtype, kernel_init=NORMAL)
        self.text_projection = Dense(self.embed_dim, dtype=self.dtype, kernel_init=NORMAL)
        self.matcher = Head(2, dtype=self.dtype, kernel_init=NORMAL)
        self.contrast = Scale()

    def encode_image(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        """Return the states [b, 1 + patches, image_width] of normalized pictures; the class token's come first."""
        return self.vision.encode(images, deterministic)

    def caption_loss(
        self, images: jax.Array, tokens: jax.Array, deterministic: bool = True, *, smoothing: float = 0.0
    ) -> tuple[jax.Array, jax.Array]:
        """Predict each token of captions from the picture and the tokens before it.

        Args:
          images: normalized, [b, h, w, c].
          tokens: [b, k, t] int32, k captions of each picture, padded at the end.
          deterministic: no dropout.
          smoothing: see `BLIPText.token_loss`.

        Returns:
          Nats [b, k, t - 1] of the tokens after the first, and whether each is the likeliest id.

        Raises:
          ConfigError: more tokens than the model has positions.
        """
        states = self.encode_image(images, deterministic)
        return self._texts_loss(tokens, deterministic, memory=states, smoothing=smoothing)

    def caption_logits(self, images: jax.Array, tokens: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
        """Return the logits [b, t, vocab] of the token after each of `tokens` [b, t], without dropout.

        Only at padding do the logits depend on `segment_ids` [b, t], 0 for padding.
        """
        return self.text_decoder.logits(tokens, segment_ids, memory=self.encode_image(images))

    def read(
        self, images: jax.Array, prompt: jax.Array, length: int, branches: int = 1, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Read pictures and the first tokens [b, t] of their captions, as `GPT.prefill` does; `extend` continues."""
        return self.text_decoder.prefill(prompt, length, branches, valid, memory=self.encode_image(images))

    def unstack(self) -> Cache:
        """Return the parameters of each layer, for a cache; see `cache.unstack`."""
        return self.text_decoder.unstack()

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Read one token of each branch, `tokens` [b, n]; return logits [b, n, vocab] float32, and the cache."""
        return self.text_decoder.extend(tokens, cache)

    def fuse(
        self, images: jax.Array, tokens: jax.Array, segment_ids: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Return the states [b, t, text_width] of texts that have read their pictures.

        Args:
          images: normalized, [b, pictures, h, w, c]. The states of several pictures stand side by side, each with an
            embedding of its picture's place.
          tokens: [b, t] int32.
          segment_ids: [b, t], 0 for padding.
          deterministic: no dropout.
        """
        b, n = images.shape[:2]
        states = self.encode_image(images.reshape(b * n, *images.shape[2:]), deterministic)
        states = states.reshape(b, n, *states.shape[1:])
        if self.pictures > 1:
            states = states + self.place(jnp.arange(n))[None, :, None]
        memory = states.reshape(b, -1, states.shape[-1])
        return self.text_encoder(tokens, segment_ids, deterministic, memory=memory)

    def classify(
        self, images: jax.Array, tokens: jax.Array, segment_ids: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Return logits [b, classes] from the first state of `fuse`, through a hidden layer (ALBEF, Li et al. 2021)."""
        first = self.fuse(images, tokens, segment_ids, deterministic)[:, 0]
        return self.classifier(nn.relu(self.class_dense(first)))

    def embed_images(self, images: jax.Array, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """Return embeddings [b, embed_dim] float32 of length 1, and states, of normalized pictures [b, h, w, c]."""
        states = self.encode_image(images, deterministic)
        return pooling.unit_length(self.image_projection(states[:, 0])), states

    def embed_texts(self, tokens: jax.Array, segment_ids: jax.Array, deterministic: bool = True) -> jax.Array:
        """Return embeddings [b, embed_dim] float32 of length 1 of texts [b, t] that read no picture."""
        return pooling.unit_length(self.text_projection(self.text_encoder(tokens, segment_ids, deterministic)[:, 0]))

    def match(
        self, states: jax.Array, tokens: jax.Array, segment_ids: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Return logits [b, 2] of whether the texts [b, t] belong to the pictures of `states` (0: no, 1: yes)."""
        return self.matcher(self.text_encoder(tokens, segment_ids, deterministic, memory=states)[:, 0])

    def retrieve(self, images: jax.Array, tokens: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, ...]:
        """Return embeddings of pictures and texts, and the logits of `match` of each pair, without dropout."""
        image, states = self.embed_images(images)
        self.contrast()  # creates the parameter during initialization
        return image, self.embed_texts(tokens, segment_ids), self.match(states, tokens, segment_ids)

    def answer_loss(
        self,
        images: jax.Array,
        question: jax.Array,
        segment_ids: jax.Array,
        answers: jax.Array,
        deterministic: bool = True,
        *,
        smoothing: float = 0.0,
    ) -> tuple[jax.Array, jax.Array]:
        """Predict each token of answers [b, k, t] from the question's states and the tokens before it.

        Returns the same as `caption_loss`; the other arguments are those of `fuse` for one picture [b, h, w, c] each.
        """
        states = self.fuse(images[:, None], question, segment_ids, deterministic)
        return self.answer_nats(states, segment_ids, answers, deterministic, smoothing=smoothing)

    def answer_nats(
        self,
        states: jax.Array,
        segment_ids: jax.Array,
        answers: jax.Array,
        deterministic: bool = True,
        *,
        smoothing: float = 0.0,
    ) -> tuple[jax.Array, jax.Array]:
        """Predict the tokens of answers [b, k, t] as `answer_loss` does, from the states of `fuse`."""
        mask = segment_ids > 0
        return self._texts_loss(answers, deterministic, memory=states, memory_mask=mask, smoothing=smoothing)

    def answer_logits(self, states: jax.Array, segment_ids: jax.Array, answers: jax.Array) -> jax.Array:
        """Return the logits [b, t, vocab] of the token after each of `answers` [b, t], without dropout."""
        return self.text_decoder.logits(answers, memory=states, memory_mask=segment_ids > 0)

    def begin_answer(
        self,
        images: jax.Array,
        question: jax.Array,
        segment_ids: jax.Array,
        prompt: jax.Array,
        length: int,
        branches: int = 1,
    ) -> tuple[jax.Array, Cache]:
        """Read pictures, questions and the first tokens [b, p] of answers as `GPT.prefill` does; `extend` continues."""
        states = self.fuse(images[:, None], question, segment_ids)
        return self.text_decoder.prefill(prompt, length, branches, memory=states, memory_mask=segment_ids > 0)

    def _texts_loss(self, tokens: jax.Array, deterministic: bool, **options: Any) -> tuple[jax.Array, jax.Array]:
        """Return nats [b, k, t - 1] of the tokens after the first of k texts each, and whether each is the likeliest.

        The texts of an example are segments of one row, so that they share the keys and values of the memory.
        """
        b, k, t = tokens.shape
        if t - 1 > self.max_length:
            raise ConfigError(f"texts of {t} tokens, but the model has {self.max_length} positions")
        inputs, labels = (x.reshape(b, k * (t - 1)) for x in (tokens[..., :-1], tokens[..., 1:]))
        numbers, positions = jnp.repeat(jnp.arange(1, k + 1), t - 1), jnp.tile(jnp.arange(t - 1), k)
        segment_ids = None if k == 1 else jnp.broadcast_to(numbers[None], inputs.shape)
        nats, correct = self.text_decoder.token_loss(
            inputs, labels, segment_ids, deterministic, positions=positions, **options
        )
        return nats.reshape(b, k, t - 1), correct.reshape(b, k, t - 1)
