"""Softmax attention: plain, and causal in blocks that are never whole in memory."""

import jax
import jax.numpy as jnp

BLOCK = 128  # queries; on two CPU cores 64 and 128 were as fast as each other, 256 slower by a third

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Softmax attention, [b, h, t, d] each; `mask` (broadcast to [b, h, t, s]) is True where a query may look.

    Scores and softmax are float32 whatever the type of the arguments.
    """
    scores = _scores(query, key)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights, value)


def causal_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Each position looks at itself and what came before; [b, h, t, d] each.

    Long sequences go in blocks of queries, each against only the keys up to its end, so half of the
    [t, t] scores are never computed and the rest never stored: the backward pass computes them again
    from the log-sum-exp of each row (FlashAttention, Dao et al. 2022). Reverse-mode derivatives only.
    """
    t = query.shape[2]
    if t <= BLOCK:
        return attention(query, key, value, _visible(0, t)[None, None])
    return _blockwise(query, key, value)


@jax.custom_vjp
def _blockwise(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return _forward(query, key, value)[0]


def _forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Residuals]:
    outputs, log_sums = [], []
    for start, stop in _blocks(query.shape[2]):
        scores = _block_scores(query, key, start, stop)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "bhts,bhsd->bhtd", weights.astype(value.dtype), value[:, :, :stop], preferred_element_type=jnp.float32
        )
        outputs.append((mixed / total).astype(value.dtype))
        log_sums.append(largest + jnp.log(total))
    output = jnp.concatenate(outputs, axis=2)
    return output, (query, key, value, output, jnp.concatenate(log_sums, axis=2))


def _backward(residuals: Residuals, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value, output, log_sums = residuals
    # The softmax's own term: the sum over keys of weight times its cotangent.
    inner = jnp.sum(cotangent.astype(jnp.float32) * output, axis=-1, keepdims=True)
    d_query, d_key, d_value = [], jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    for start, stop in _blocks(query.shape[2]):
        rows = slice(start, stop)
        weights = jnp.exp(_block_scores(query, key, start, stop) - log_sums[:, :, rows])
        d_weights = jnp.einsum(
            "bhtd,bhsd->bhts", cotangent[:, :, rows], value[:, :, :stop], preferred_element_type=jnp.float32
        )
        d_scores = weights * (d_weights - inner[:, :, rows]) * query.shape[-1] ** -0.5
        d_scores, weights = d_scores.astype(query.dtype), weights.astype(value.dtype)
        d_query.append(jnp.einsum("bhts,bhsd->bhtd", d_scores, key[:, :, :stop]))
        d_key = d_key.at[:, :, :stop].add(jnp.einsum("bhts,bhtd->bhsd", d_scores, query[:, :, rows]))
        d_value = d_value.at[:, :, :stop].add(jnp.einsum("bhts,bhtd->bhsd", weights, cotangent[:, :, rows]))
    return jnp.concatenate(d_query, axis=2), d_key.astype(key.dtype), d_value.astype(value.dtype)


_blockwise.defvjp(_forward, _backward)


def _blocks(t: int) -> list[tuple[int, int]]:
    """Bounds of the blocks of queries; at most 32, so that long sequences do not make long programs."""
    size = max(BLOCK, -(-t // 32))
    return [(start, min(start + size, t)) for start in range(0, t, size)]


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=jnp.float32)
    return scores * query.shape[-1] ** -0.5


def _block_scores(query: jax.Array, key: jax.Array, start: int, stop: int) -> jax.Array:
    """Scores [b, h, stop - start, stop] of a block of queries, masked above the diagonal."""
    scores = _scores(query[:, :, start:stop], key[:, :, :stop])
    return jnp.where(_visible(start, stop)[None, None], scores, jnp.finfo(jnp.float32).min)


def _visible(start: int, stop: int) -> jax.Array:
    """[stop - start, stop]: which keys each query of a block may look at."""
    return jnp.arange(stop)[None] <= jnp.arange(start, stop)[:, None]
