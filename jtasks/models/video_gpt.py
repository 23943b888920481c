"""A GPT that reads a video's features before the text (Le and Hoi 2020, arXiv:2006.15319)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks.errors import ConfigError
from jtasks.models.gpt import GPT, places
from jtasks.models.layers import NORMAL, Cache, Head

KINDS = ("video", "caption", "questioner", "answerer")  # of what stands at a position


class VideoGPT(GPT):
    """A GPT over [video | context | answer]; each position has an embedding of its kind beside token and place.

    Arguments of its methods: `video` [b, f, features] of which the first `frames` [b] are there, `context` [b, t] of
    ids with `kinds` [b, t], indices into KINDS, 0 where nothing stands. Gaps between the parts count for nothing:
    nothing sees them, and learned positions skip them. Parameters of the GPT inside have a GPT's names.

    Attributes:
      features: width of the video's features; 0 for a model of text alone, whose `video` is [b, 0, 0].
    """

    features: int = 0

    def setup(self) -> None:
        super().setup()
        self.kind = nn.Embed(len(KINDS), self.width, dtype=self.dtype, embedding_init=NORMAL)
        if self.features:
            self.project = nn.Dense(self.width, dtype=self.dtype, kernel_init=NORMAL)
            self.regress = Head(self.features, dtype=self.dtype, kernel_init=NORMAL)

    def losses(
        self,
        video: jax.Array,
        frames: jax.Array,
        context: jax.Array,
        kinds: jax.Array,
        answer: jax.Array,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Losses of the answer and of the video.

        Args:
          answer: [b, a + 1] ids, of which the first is given: the mark that an answer begins.

        Returns:
          Nats of the a ids after it [b, a], whether each was the likeliest [b, a], and for each feature vector but
          the first [b, max(f - 1, 0)] the mean squared error of what was predicted before it was seen.
        """
        x, valid = self._joined(video, frames, context, kinds, answer[:, :-1], deterministic)
        hidden, _, _ = self._run(x, None, valid.astype(jnp.int32), deterministic)
        nats, correct = self._token_loss(hidden[:, -(answer.shape[1] - 1) :], answer[:, 1:])
        if not video.shape[1]:
            return nats, correct, jnp.zeros(video.shape[:2], jnp.float32)
        predicted = self.regress(hidden[:, : video.shape[1] - 1])
        return nats, correct, jnp.mean(jnp.square(predicted - video[:, 1:]), axis=-1)

    def read(
        self,
        video: jax.Array,
        frames: jax.Array,
        context: jax.Array,
        kinds: jax.Array,
        start: jax.Array,
        length: int,
        branches: int = 1,
    ) -> tuple[jax.Array, Cache]:
        """As `GPT.prefill`, for answers that begin with `start` [b]; `extend` goes on with ids of the answer."""
        x, valid = self._joined(video, frames, context, kinds, start[:, None], True)
        return self._read(x, valid, length, branches)

    def _embedded(self, tokens: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
        """Embedded ids of the answer."""
        x = self.tokens(tokens) + self.position(positions) + self._kind("answerer")
        return self.dropout_in(x, deterministic)

    def _joined(
        self,
        video: jax.Array,
        frames: jax.Array,
        context: jax.Array,
        kinds: jax.Array,
        answer: jax.Array,
        deterministic: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """The embedded parts in a row [b, f + t + a, width], and where something stands [b, f + t + a]."""
        there = [jnp.arange(video.shape[1])[None] < frames[:, None], kinds > 0, jnp.ones(answer.shape, bool)]
        parts = [self.tokens(context) + self.kind(kinds), self.tokens(answer) + self._kind("answerer")]
        if self.features:
            parts.insert(0, self.project(video) + self._kind("video"))
        valid = jnp.concatenate(there, axis=1)
        if valid.shape[1] > self.positions:
            raise ConfigError(f"video and text take {valid.shape[1]} positions, but the model has {self.positions}")
        x = jnp.concatenate(parts, axis=1) + self.position(places(valid))
        return self.dropout_in(x, deterministic), valid

    def _kind(self, name: str) -> Any:
        return self.kind(jnp.full((1, 1), KINDS.index(name)))
