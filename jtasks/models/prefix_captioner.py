"""Captions by a GPT that reads a picture's states before the text (Mokady et al. 2021, arXiv:2111.09734)."""

from typing import Any

import jax
import jax.numpy as jnp

from jtasks.models.blip import BLIP
from jtasks.models.dense import Dense
from jtasks.models.gpt import GPT
from jtasks.models.layers import NORMAL, Cache


class PrefixGPT(GPT):
    """A GPT over [states | text]; the states, such as a picture's, are projected and have positions like tokens."""

    def setup(self) -> None:
        super().setup()
        self.project = Dense(self.width, dtype=self.dtype, kernel_init=NORMAL)

    def text_loss(
        self, states: jax.Array, tokens: jax.Array, labels: jax.Array, deterministic: bool, smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        """Return nats of `labels` [b, t], the ids after `tokens` [b, t], and whether each is the likeliest id."""
        x, _ = self._join(states, tokens, deterministic)
        hidden = self._run(x, None, None, deterministic)[0]
        return self._token_loss(hidden[:, states.shape[1] :], labels, smoothing)

    def read(self, states: jax.Array, tokens: jax.Array, length: int, branches: int = 1) -> tuple[jax.Array, Cache]:
        """Read states [b, s, d] and prompts [b, t] as `GPT.prefill` reads prompts; `extend` continues them."""
        return self._read(*self._join(states, tokens, True), length, branches)

    def _join(self, states: jax.Array, tokens: jax.Array, deterministic: bool) -> tuple[jax.Array, jax.Array]:
        """Return the embedded parts joined [b, s + t, width], all of them valid [b, s + t]."""
        x = jnp.concatenate([self.project(states), self.tokens(tokens)], axis=1)
        valid = jnp.ones(x.shape[:2], bool)
        return self._add_positions(x, valid, deterministic), valid


class PrefixCaptioner(BLIP):
    """The vision tower of a BLIP before a `PrefixGPT`, with the fields of a BLIP and its methods for captions.

    Attributes:
      max_length: maximum number of a picture's states and a text's tokens together.
    """

    def setup(self) -> None:
        super().setup()
        own = ("mlp_dim", "activation", "epsilon", "width", "depth", "heads")
        same = ("vocab", "max_length", "tied", "dropout", "attention_dropout", "remat", "plain", "dtype")
        fields: dict[str, Any] = {name: getattr(self, f"text_{name}") for name in own}
        self.text = PrefixGPT(outputs=self.vocab, **fields, **{name: getattr(self, name) for name in same})

    def caption_loss(
        self, images: jax.Array, tokens: jax.Array, deterministic: bool = True, *, smoothing: float = 0.0
    ) -> tuple[jax.Array, jax.Array]:
        """Predict each token of captions [b, k, t] from the picture and the tokens before it, as `BLIP` does."""
        b, k, t = tokens.shape
        states = jnp.repeat(self.encode_image(images, deterministic), k, axis=0)
        inputs, labels = (x.reshape(b * k, t - 1) for x in (tokens[..., :-1], tokens[..., 1:]))
        nats, correct = self.text.text_loss(states, inputs, labels, deterministic, smoothing)
        return nats.reshape(b, k, t - 1), correct.reshape(b, k, t - 1)

    def read(
        self, images: jax.Array, prompt: jax.Array, length: int, branches: int = 1, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Read pictures and the first tokens [b, t] of their captions, as `GPT.prefill` does; `extend` continues."""
        assert valid is None  # all prompts are equally long
        return self.text.read(self.encode_image(images), prompt, length, branches)

    def unstack(self) -> Cache:
        """Return the parameters of each layer, for a cache; see `cache.unstack`."""
        return self.text.unstack()

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Read one token of each branch, `tokens` [b, n]; return logits [b, n, vocab] float32, and the cache."""
        return self.text.extend(tokens, cache)
