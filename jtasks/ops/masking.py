"""Masked language modeling: tokens to hide, drawn on the device with a random key per example."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_SKIPS = 8  # number of words too long for the remaining budget that are skipped in search of shorter ones


class Masked(NamedTuple):
    """Inputs with hidden tokens, and labels to predict."""

    inputs: jax.Array  # [b, t] int32
    places: jax.Array  # [b, m] int32 positions, all different
    labels: jax.Array  # the original ids
    weights: jax.Array  # 1, or 0 for an unused place


def mask(
    tokens: jax.Array,
    maskable: jax.Array,
    keys: jax.Array,
    *,
    rate: float,
    places: int,
    vocab: int,
    mask_token: int,
    begins: jax.Array | None = None,
) -> Masked:
    """Choose tokens to predict; hide 80 %, replace 10 % at random, leave 10 % (Devlin et al. 2019, 3.1).

    An example has a fixed number of chosen tokens: `rate` of its maskable ones, rounded, at least 1. Whole words are
    drawn in random order with all their pieces. A word longer than the remaining number is skipped in favor of the next
    that fits; after 8 skipped words the rest stays undrawn.

    Args:
      tokens: [b, t] int32.
      maskable: [b, t] bool, False for padding and special tokens.
      keys: a random key per example, [b].
      rate: fraction of the tokens to choose, 0.15 in the paper.
      places: m, the maximum number of chosen tokens; at most t.
      vocab: number of ids that random replacements are drawn from.
      mask_token: id that hides a token.
      begins: [b, t] bool, True where words begin, to choose whole words; None: choose single tokens.
    """
    count = jnp.clip(jnp.round(rate * jnp.sum(maskable, axis=1)), 1, places).astype(jnp.int32)
    places, every_token = min(places, tokens.shape[1]), begins is None
    arguments = (tokens, maskable, maskable if begins is None else begins, count, keys)

    def one(tokens: jax.Array, maskable: jax.Array, begins: jax.Array, count: jax.Array, key: jax.Array) -> Masked:
        # One call for all draws: random number generators are slow to compile.
        drawn = jax.random.uniform(key, (len(tokens) + 2 * places,))
        scores, kind, other = jnp.split(drawn, (len(tokens), len(tokens) + places))
        draw = _tokens if every_token else _words
        where, used = draw(scores, maskable, begins, count, places)
        labels = tokens[where]
        random = jnp.floor(other * vocab).astype(tokens.dtype)
        new = jnp.where(kind < 0.8, mask_token, jnp.where(kind < 0.9, random, labels))
        inputs = tokens.at[where].set(jnp.where(used, new, labels))
        return Masked(inputs, where, labels, used.astype(jnp.float32))

    return jax.vmap(one)(*arguments)


def _tokens(
    scores: jax.Array, maskable: jax.Array, begins: jax.Array, count: jax.Array, places: int
) -> tuple[jax.Array, jax.Array]:
    """Return the `places` [m] drawn first by scores [t], and whether each is chosen."""
    values, where = jax.lax.top_k(jnp.where(maskable, scores, -1.0), places)
    return where, (values >= 0) & (jnp.arange(places) < count)


def _words(
    scores: jax.Array, maskable: jax.Array, begins: jax.Array, count: jax.Array, places: int
) -> tuple[jax.Array, jax.Array]:
    """Return `places` and whether each is chosen, with whole words drawn by the score of their first piece."""
    t = jnp.arange(scores.shape[0])
    # Tokens that may not be chosen also end a word.
    starts = begins | ~jnp.concatenate([jnp.zeros(1, bool), maskable[:-1]])
    first = scores[jax.lax.cummax(jnp.where(starts, t, 0))]
    # top_k orders equal scores by position, so a word's pieces stay together.
    _, order = jax.lax.top_k(jnp.where(maskable, first, -1.0), len(t))
    word, alive = (jnp.cumsum(starts) - 1)[order], maskable[order]
    last = jnp.concatenate([word[1:] != word[:-1], jnp.ones(1, bool)])
    ends = jax.lax.cummin(jnp.where(last, t, len(t)), reverse=True)  # position of each word's last piece

    def skip(_: int, alive: jax.Array) -> jax.Array:
        over = alive & (jnp.cumsum(alive)[ends] > count)
        return alive & ~(over.any() & (word == word[jnp.argmax(over)]))

    alive = jax.lax.fori_loop(0, _SKIPS, skip, alive)
    chosen = alive & (jnp.cumsum(alive)[ends] <= count)
    used, front = jax.lax.top_k(chosen.astype(jnp.int32), places)
    return order[front], used > 0
