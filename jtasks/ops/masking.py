"""Masked language modeling: which tokens to hide, drawn on the device from each example's own key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_SKIPS = 8  # words too long for what is left of an example's share that are passed over in search of shorter ones


class Masked(NamedTuple):
    """Inputs with tokens hidden, and what to predict."""

    inputs: jax.Array  # [b, t] int32
    places: jax.Array  # [b, m] int32 positions, all different
    labels: jax.Array  # [b, m] int32: what stood there
    weights: jax.Array  # [b, m] float32: 1, or 0 for a place that is not used


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
    """Choose tokens to predict; hide 80 % of them, replace 10 % at random, leave 10 % (Devlin et al. 2019, 3.1).

    An example's number of chosen tokens is fixed, `rate` of those that may be, rounded, at least 1. Whole words
    are drawn in random order, each with all its pieces; one that is too long for what is left of the number is
    passed over for the next that fits, and after 8 such the rest stays undrawn.

    Args:
      tokens: [b, t] int32.
      maskable: [b, t] bool, False for padding and special tokens.
      keys: one random key an example, [b].
      rate: share of the tokens, 0.15 in the paper.
      places: m, the most tokens that are chosen; at most t.
      vocab: ids that a random replacement is drawn from.
      mask_token: the id that hides.
      begins: [b, t] bool, where words begin, for whole words; None: each token by itself.
    """
    count = jnp.clip(jnp.round(rate * jnp.sum(maskable, axis=1)), 1, places).astype(jnp.int32)
    places, every_token = min(places, tokens.shape[1]), begins is None
    arguments = (tokens, maskable, maskable if begins is None else begins, count, keys)

    def one(tokens: jax.Array, maskable: jax.Array, begins: jax.Array, count: jax.Array, key: jax.Array) -> Masked:
        # All from one call: generators of random numbers are slow to compile.
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
    """The `places` [m] drawn first by the scores [t], and whether each is chosen."""
    values, where = jax.lax.top_k(jnp.where(maskable, scores, -1.0), places)
    return where, (values >= 0) & (jnp.arange(places) < count)


def _words(
    scores: jax.Array, maskable: jax.Array, begins: jax.Array, count: jax.Array, places: int
) -> tuple[jax.Array, jax.Array]:
    """The same for whole words, each drawn by the score of its first piece."""
    t = jnp.arange(scores.shape[0])
    # Words end where tokens that may not be chosen stand, too.
    starts = begins | ~jnp.concatenate([jnp.zeros(1, bool), maskable[:-1]])
    first = scores[jax.lax.cummax(jnp.where(starts, t, 0))]
    # In order of scores; top_k takes equal ones by place, so a word's pieces stay together.
    _, order = jax.lax.top_k(jnp.where(maskable, first, -1.0), len(t))
    word, alive = (jnp.cumsum(starts) - 1)[order], maskable[order]
    last = jnp.concatenate([word[1:] != word[:-1], jnp.ones(1, bool)])
    ends = jax.lax.cummin(jnp.where(last, t, len(t)), reverse=True)  # the place of each word's last piece

    def skip(_: int, alive: jax.Array) -> jax.Array:
        over = alive & (jnp.cumsum(alive)[ends] > count)
        return alive & ~(over.any() & (word == word[jnp.argmax(over)]))

    alive = jax.lax.fori_loop(0, _SKIPS, skip, alive)
    chosen = alive & (jnp.cumsum(alive)[ends] <= count)
    used, front = jax.lax.top_k(chosen.astype(jnp.int32), places)
    return order[front], used > 0
