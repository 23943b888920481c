"""Choice among given answers, by a model that has `answer_logits` and `answer_nats`, such as `models.BLIP`."""

from typing import Any

import jax
import jax.numpy as jnp

TOKENS = 256  # of candidates that are scored at once


def rank(
    model: Any, params: Any, states: jax.Array, segment_ids: jax.Array, candidates: jax.Array, end: int, count: int
) -> tuple[jax.Array, jax.Array]:
    """Choose the candidate with the highest sum of its tokens' log probabilities for each question.

    Of more than `count` candidates, only the `count` with the likeliest first tokens are scored (BLIP, Li et al. 2022).

    Args:
      model: has `answer_logits` and `answer_nats`.
      params: the model's parameters.
      states: [b, s, width] of the questions, which are encoded once.
      segment_ids: [b, s], 0 for padding.
      candidates: int32 [c, t], each the id that begins an answer, the answer's ids, and `end`, once or more.
      end: id that ends an answer.
      count: maximum number of candidates that are scored.

    Returns:
      The number of the best candidate [b] int32 and its log probability [b] float32.
    """
    candidates = jnp.asarray(candidates)
    b, (c, t) = len(states), candidates.shape
    if count < c:
        first = model.apply(
            {"params": params},
            states,
            segment_ids,
            jnp.broadcast_to(candidates[:1, :1], (b, 1)),
            method="answer_logits",
        )
        _, kept = jax.lax.top_k(first[:, 0][:, candidates[:, 1]], count)
    else:
        kept = jnp.broadcast_to(jnp.arange(c, dtype=jnp.int32)[None], (b, c))

    def score(numbers: jax.Array) -> jax.Array:
        answers = candidates[numbers]
        nats, _ = model.apply({"params": params}, states, segment_ids, answers, method="answer_nats")
        return -jnp.sum(jnp.where(until_end(answers[..., 1:], end), nats, 0), axis=-1)

    size = max(1, min(TOKENS // t, kept.shape[1]))
    padded = jnp.pad(kept, ((0, 0), (0, -kept.shape[1] % size)), mode="edge")
    if padded.shape[1] == size:
        scores = score(padded)
    else:
        blocks = jnp.moveaxis(padded.reshape(b, -1, size), 1, 0)
        scores = jnp.moveaxis(jax.lax.map(score, blocks), 0, 1).reshape(b, -1)
    best = jnp.argmax(scores, axis=1)[:, None]  # the first of equal ones, never the padding
    return jnp.take_along_axis(padded, best, axis=1)[:, 0], jnp.take_along_axis(scores, best, axis=1)[:, 0]


def until_end(tokens: jax.Array, end: int) -> jax.Array:
    """Return whether each of `tokens` [..., t] is part of its text: up to the first `end`, with it."""
    ends = (tokens == end).astype(jnp.int32)
    return jnp.cumsum(ends, axis=-1) - ends == 0
