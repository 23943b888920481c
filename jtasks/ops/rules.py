"""Rules that bar or penalize the next token, independent of the model, for the loops of `ops/decode.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jtasks import ranges
from jtasks.errors import ConfigError
from jtasks.ranges import Field

RANGES = {
    "min_len": Field(int, "[0, 2e9]"),
    "forced_bos_token_id": Field(int, "[0, 2e9]"),
    "forced_eos_token_id": Field(int, "[0, 2e9]"),
    "repetition_penalty": Field(float, "(0, inf)"),
    "no_repeat_ngram_size": Field(int, "[0, 2e9]"),
}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Rules:
    """Arguments that sampling and beam search share, and what they mean.

    Attributes:
      eos: id or ids that end a sequence; None: none.
      pad: id after the end.
      min_len: minimum number of new tokens before EOS is allowed.
      repetition_penalty: above 1 lowers the scores of tokens that occur already (Keskar et al. 2019, CTRL).
      no_repeat_ngram_size: no n-gram of this size repeats (Paulus et al. 2018); 0: all may.
      bad_words_ids: sequences of ids that never occur.
      forced_bos_token_id: the first new id; None: any.
      forced_eos_token_id: the id at the maximum length, if the sequence has not ended before; None: any.
      prompt: [b, t], tokens that count as occurring already for penalty, n-grams and bad words; None: new tokens only.
      valid: bool [b, t], False for padding of the prompt; None: no padding.

    Raises:
      ConfigError: an argument is out of range.
    """

    eos: int | tuple[int, ...] | None = None
    pad: int = 0
    min_len: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    prompt: jax.Array | None = None
    valid: jax.Array | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in RANGES}
        forced = [name for name in given if name.startswith("forced") and given[name] is None]
        check(RANGES, **{name: value for name, value in given.items() if name not in forced})
        for word in self.bad_words_ids:
            if not (isinstance(word, tuple | list) and word and all(type(id) is int and id >= 0 for id in word)):
                raise ConfigError(f"bad_words_ids={self.bad_words_ids} must hold tuples of ids, such as ((3,), (5, 7))")

    @property
    def ending(self) -> tuple[int, ...]:
        """The ids that end a sequence."""
        return () if self.eos is None else (self.eos,) if isinstance(self.eos, int) else tuple(self.eos)

    def ends(self, tokens: jax.Array) -> jax.Array:
        """Return which tokens end a sequence, a bool array of their shape."""
        return jnp.isin(tokens, jnp.array(self.ending, jnp.int32)) if self.ending else jnp.zeros(tokens.shape, bool)

    def history(self, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Return the prompts `[*shape, t]` padded on the left, and where they have tokens; t is 0 if unneeded."""
        long = any(len(word) > 1 for word in self.bad_words_ids)
        if self.prompt is None or not (self.repetition_penalty != 1 or self.no_repeat_ngram_size or long):
            return jnp.zeros((*shape, 0), jnp.int32), jnp.zeros((*shape, 0), bool)
        valid = jnp.ones(self.prompt.shape, bool) if self.valid is None else self.valid.astype(bool)
        order = jnp.argsort(valid, axis=1, stable=True)

        def spread(x: jax.Array) -> jax.Array:
            x = jnp.take_along_axis(x, order, axis=1)
            return jnp.broadcast_to(x.reshape(len(x), *(1,) * (len(shape) - 1), -1), (*shape, x.shape[-1]))

        return spread(self.prompt.astype(jnp.int32)), spread(valid)

    def apply(self, scores: jax.Array, sequences: jax.Array, filled: jax.Array, i: Any) -> jax.Array:
        """Return the scores [..., vocab] of the next token under the rules.

        Args:
          scores: [..., vocab].
          sequences: [..., t + length], prompts and `i` new tokens.
          filled: bool [..., t], False for padding of the prompts.
          i: number of new tokens so far.
        """
        scores, start, penalty = scores.astype(jnp.float32), filled.shape[-1], self.repetition_penalty
        if penalty != 1:
            there = jnp.pad(filled, [(0, 0)] * (filled.ndim - 1) + [(0, sequences.shape[-1] - start)])
            there = there | _between(start, start + i, there)
            repeated = _among(sequences, there, scores.shape[-1])
            scores = jnp.where(repeated, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
        if self.no_repeat_ngram_size:
            scores = jnp.where(self._completes(sequences, start + i, scores.shape[-1]), -jnp.inf, scores)
        ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
        for word in self.bad_words_ids:
            scores = jnp.where(self._follows(word, sequences, start + i) & (ids == word[-1]), -jnp.inf, scores)
        if self.ending and self.min_len:
            scores = jnp.where(self.ends(ids) & (i < self.min_len), -jnp.inf, scores)
        last = sequences.shape[-1] - start - 1
        for id, place in ((self.forced_bos_token_id, 0), (self.forced_eos_token_id, last)):
            if id is not None:
                scores = jnp.where(i == place, jnp.where(ids == id, 0.0, -jnp.inf), scores)
        return scores

    def _follows(self, word: tuple[int, ...], sequences: jax.Array, count: Any) -> jax.Array:
        """Return whether the first `count` tokens of a sequence end with all ids of a word but its last, [..., 1]."""
        follows = jnp.broadcast_to(count >= jnp.array(len(word) - 1), (*sequences.shape[:-1], 1))
        for before, id in enumerate(reversed(word[:-1]), 1):
            place = jnp.maximum(count - before, 0)
            follows &= jax.lax.dynamic_slice_in_dim(sequences, place, 1, axis=-1) == id
        return follows

    def _completes(self, sequences: jax.Array, count: Any, vocab: int) -> jax.Array:
        """Return which tokens [..., vocab] would repeat an n-gram of the first `count` positions."""
        size = self.no_repeat_ngram_size
        windows = sequences.shape[-1] - size + 1
        if windows < 1:
            return jnp.zeros((*sequences.shape[:-1], vocab), bool)
        match = _between(0, count - size + 1, sequences[..., :windows])
        for offset in range(size - 1):
            place = jnp.maximum(count - size + 1 + offset, 0)
            wanted = jax.lax.dynamic_slice_in_dim(sequences, place, 1, axis=-1)
            match = match & (sequences[..., offset : offset + windows] == wanted)
        return _among(sequences[..., size - 1 :], match, vocab)


def check(allowed: Mapping[str, Field], **arguments: Any) -> None:
    """Raise ConfigError if an argument is out of range; values traced by `jax.jit` are not checked."""
    for name, value in arguments.items():
        if not isinstance(value, jax.core.Tracer):
            number = value.item() if hasattr(value, "item") else value
            if number is None:
                raise ConfigError(f"{name} must be a number, not None")
            ranges.check(name, number, allowed[name])


def _between(start: Any, stop: Any, like: jax.Array) -> jax.Array:
    """Return which indices along the last axis of `like` are in a range; bool of its shape."""
    places = jax.lax.broadcasted_iota(jnp.int32, like.shape, like.ndim - 1)
    return (places >= start) & (places < stop)


def _among(tokens: jax.Array, there: jax.Array, vocab: int) -> jax.Array:
    """Return which ids [..., vocab] are among the `tokens` [..., t] that are `there`."""
    flat = jnp.where(there, tokens, vocab).reshape(-1, tokens.shape[-1])
    present = jax.vmap(lambda ids: jnp.zeros(vocab, bool).at[ids].set(True, mode="drop"))(flat)
    return present.reshape(*tokens.shape[:-1], vocab)
