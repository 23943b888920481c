"""A GPT that reads a video's features before the text (Le and Hoi 2020, arXiv:2006.15319)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks.models.dense import Dense
from jtasks.models.gpt import GPT
from jtasks.models.layers import NORMAL, Cache, Head
from jtasks.ops import pooling

KINDS = ("video", "caption", "questioner", "answerer")  # of positions


class Prompt(NamedTuple):
    """The inputs before the answer."""

    video: jax.Array  # [b, f, features]
    frames: jax.Array  # [b] number of valid ones
    context: jax.Array  # [b, t] ids
    kinds: jax.Array  # [b, t] indices into KINDS, 0 for padding


class VideoGPT(GPT):
    """A GPT over [video | context | answer]; each position also has an embedding of its kind.

    No position attends to padding, and learned positions skip padding. Parameters have the names of a GPT's.

    Attributes:
      features: width of the video's features; 0: text only, with `video` [b, 0, 0].
    """

    features: int = 0

    def setup(self) -> None:
        super().setup()
        self.kind = nn.Embed(len(KINDS), self.width, dtype=self.dtype, embedding_init=NORMAL)
        if self.features:
            self.project = Dense(self.width, dtype=self.dtype, kernel_init=NORMAL)
            self.regress = Head(self.features, dtype=self.dtype, kernel_init=NORMAL)

    def losses(
        self, prompt: Prompt, answer: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the losses of the answer and of the video.

        Args:
          answer: [b, a + 1] ids; the first is the given start mark.

        Returns:
          Nats [b, a] of the ids after the start mark; whether each is the likeliest id [b, a]; and the mean squared
          error [b, max(f - 1, 0)] of each feature vector but the first, predicted from what precedes it.
        """
        x, valid = self._join(prompt, answer[:, :-1], deterministic)
        hidden, _, _ = self._run(x, None, valid.astype(jnp.int32), deterministic)
        nats, correct = self._token_loss(hidden[:, -(answer.shape[1] - 1) :], answer[:, 1:])
        video = prompt.video
        if not video.shape[1]:
            return nats, correct, jnp.zeros(video.shape[:2], jnp.float32)
        predicted = self.regress(hidden[:, : video.shape[1] - 1])
        return nats, correct, jnp.mean(jnp.square(predicted - video[:, 1:]), axis=-1)

    def embed(self, prompt: Prompt, deterministic: bool = True) -> jax.Array:
        """Return the activations of the last layer [b, width] at the last id of each context."""
        x, valid = self._join(prompt, prompt.context[:, :0], deterministic)
        hidden, _, _ = self._run(x, None, valid.astype(jnp.int32), deterministic)
        return pooling.last(hidden, valid)

    def read(self, prompt: Prompt, start: jax.Array, length: int, branches: int = 1) -> tuple[jax.Array, Cache]:
        """Read prompts as `GPT.prefill` does, for answers that begin with `start` [b]; `extend` continues them."""
        x, valid = self._join(prompt, start[:, None], True)
        return self._read(x, valid, length, branches)

    def _embed(self, tokens: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
        """Embed ids of the answer."""
        x = self.tokens(tokens) + self.position(positions) + self._kind("answerer")
        return self.dropout_in(x, deterministic)

    def _join(self, prompt: Prompt, answer: jax.Array, deterministic: bool) -> tuple[jax.Array, jax.Array]:
        """Return the embedded parts joined [b, f + t + a, width], and which positions are valid [b, f + t + a]."""
        video, frames, context, kinds = prompt
        there = [jnp.arange(video.shape[1])[None] < frames[:, None], kinds > 0, jnp.ones(answer.shape, bool)]
        parts = [self.tokens(context) + self.kind(kinds), self.tokens(answer) + self._kind("answerer")]
        if self.features:
            parts.insert(0, self.project(video) + self._kind("video"))
        valid = jnp.concatenate(there, axis=1)
        return self._add_positions(jnp.concatenate(parts, axis=1), valid, deterministic), valid

    def _kind(self, name: str) -> Any:
        return self.kind(jnp.full((1, 1), KINDS.index(name)))
