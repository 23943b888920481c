"""Softmax attention: plain, and in blocks of queries whose scores are never whole in memory.

`segments` [b, t] int32 says which positions belong together: a position sees those of its own number, and
0 is padding, which nothing sees. So one array serves padding, packed documents and both.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jtasks.models import kernels
from jtasks.models.dropout import dropped
from jtasks.ops.precision import wide

BLOCK = 128  # queries; on two CPU cores 64 and 128 were as fast as each other, 256 slower by a third

KEPT = "attention"  # name of what the backward pass shall not compute again

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]


def attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Softmax attention, [b, h, t, d] each; `mask` (broadcast to [b, h, t, s]) is True where a query may look.

    Scores and softmax are float32 for narrower arguments.
    """
    return _mix(_weights(query, key, mask), value)


def dropped_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, rng: jax.Array, rate: float
) -> jax.Array:
    """The same with dropout on the weights (Vaswani et al. 2017, as in BERT)."""
    return _mix(dropped(_weights(query, key, mask), rng, rate), value)


def continued(
    query: jax.Array, key: jax.Array, value: jax.Array, past_key: jax.Array, past_value: jax.Array, seen: jax.Array
) -> jax.Array:
    """Each of n new positions looks at itself and at what it may see of the past, but not at the other new ones.

    Args:
      query: [b, h, n, d], as `key` and `value`.
      past_key: [b, h, s, d], as `past_value`.
      seen: bool [b, n, s].
    """
    past = _scores(query, past_key, seen[:, None])
    own = jnp.sum(query.astype(wide(query)) * key, axis=-1, keepdims=True) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.concatenate([past, own], axis=-1), axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights[..., :-1], past_value) + weights[..., -1:] * value


def self_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool,
    segments: jax.Array | None = None,
    plain: bool = False,
) -> jax.Array:
    """Each position looks at those of its segment, with `causal` only at itself and what came before.

    Accelerators have kernels for it (`models/kernels.py`). Elsewhere long sequences go in blocks of queries,
    causal ones each against only the keys up to its end, so half of the [t, t] scores are never computed
    and the rest never stored: the backward pass computes them again from the log-sum-exp of each row
    (FlashAttention, Dao et al. 2022). These forms have reverse-mode derivatives only.

    Args:
      query: [b, h, t, d], as `key` and `value`.
      causal: whether the order counts.
      segments: [b, t] int32, 0 for padding; None: all one segment. Rows of padding are finite and mean nothing.
      plain: compute all scores at once, in a form that `jax.jvp` and `jax.linearize` can differentiate.
    """
    t = query.shape[2]
    if plain or t <= BLOCK:
        return attention(query, key, value, visible(t, causal, segments))
    backend = jax.default_backend()
    if backend == "tpu":
        return kernels.on_tpu(query, key, value, segments, causal=causal)
    if backend == "gpu":
        mixed = kernels.on_gpu(query, key, value, visible(t, False, segments), causal=causal)
        if mixed is not None:
            return mixed
    return _blockwise(query, key, value, segments, causal)


def visible(t: int, causal: bool, segments: jax.Array | None) -> jax.Array | None:
    """Which keys each query may look at: [b or 1, 1, t, t], None for all."""
    return _visible(0, t, t, causal, segments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array | None, causal: bool
) -> jax.Array:
    return _forward(query, key, value, segments, causal)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array | None, causal: bool
) -> tuple[jax.Array, Residuals]:
    outputs, log_sums = [], []
    for start, stop, seen in _blocks(query.shape[2], causal):
        mask = _visible(start, stop, seen, causal, segments)
        scores = _scores(query[:, :, start:stop], key[:, :, :seen], mask)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "bhts,bhsd->bhtd", weights.astype(value.dtype), value[:, :, :seen], preferred_element_type=wide(value)
        )
        outputs.append((mixed / total).astype(value.dtype))
        log_sums.append(largest + jnp.log(total))
    output = checkpoint_name(jnp.concatenate(outputs, axis=2), KEPT)
    return output, (query, key, value, segments, output, checkpoint_name(jnp.concatenate(log_sums, axis=2), KEPT))


def _backward(causal: bool, residuals: Residuals, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, segments, output, log_sums = residuals
    # The softmax's own term: the sum over keys of weight times its cotangent.
    inner = jnp.sum(cotangent.astype(wide(value)) * output, axis=-1, keepdims=True)
    d_query, d_key, d_value = [], *(jnp.zeros_like(x, wide(x)) for x in (key, value))
    for start, stop, seen in _blocks(query.shape[2], causal):
        rows = slice(start, stop)
        # Turned round, [keys, queries], since then two of the three products below need no transposition.
        mask = _visible(start, stop, seen, causal, segments)
        scores = _scores(key[:, :, :seen], query[:, :, rows], None if mask is None else jnp.swapaxes(mask, 2, 3))
        weights = jnp.exp(scores - jnp.swapaxes(log_sums[:, :, rows], 2, 3))
        d_weights = jnp.einsum(
            "bhsd,bhtd->bhst", value[:, :, :seen], cotangent[:, :, rows], preferred_element_type=wide(value)
        )
        d_scores = weights * (d_weights - jnp.swapaxes(inner[:, :, rows], 2, 3)) * query.shape[-1] ** -0.5
        d_scores, weights = d_scores.astype(query.dtype), weights.astype(value.dtype)
        d_query.append(jnp.einsum("bhst,bhsd->bhtd", d_scores, key[:, :, :seen]))
        d_key = d_key.at[:, :, :seen].add(jnp.einsum("bhst,bhtd->bhsd", d_scores, query[:, :, rows]))
        d_value = d_value.at[:, :, :seen].add(jnp.einsum("bhst,bhtd->bhsd", weights, cotangent[:, :, rows]))
    return jnp.concatenate(d_query, axis=2), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_blockwise.defvjp(_forward, _backward)


def _blocks(t: int, causal: bool) -> list[tuple[int, int, int]]:
    """Bounds of the blocks of queries and how many keys each needs.

    There are at most 32, so that long sequences do not make long programs.
    """
    size = max(BLOCK, -(-t // 32))
    bounds = [(start, min(start + size, t)) for start in range(0, t, size)]
    return [(start, stop, stop if causal else t) for start, stop in bounds]


def _weights(query: jax.Array, key: jax.Array, mask: jax.Array | None) -> jax.Array:
    return jax.nn.softmax(_scores(query, key, mask), axis=-1)


def _mix(weights: jax.Array, value: jax.Array) -> jax.Array:
    return checkpoint_name(jnp.einsum("bhts,bhsd->bhtd", weights.astype(value.dtype), value), KEPT)


def _scores(query: jax.Array, key: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Scores [b, h, t, s], at least float32, as low as can be where `mask` (broadcast to them) is False."""
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=wide(query)) * query.shape[-1] ** -0.5
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(scores.dtype).min)


def _visible(start: int, stop: int, seen: int, causal: bool, segments: jax.Array | None) -> jax.Array | None:
    """[b or 1, 1, stop - start, seen]: which of the first `seen` keys each query of a block may look at."""
    mask = None
    if causal:
        mask = (jnp.arange(seen)[None] <= jnp.arange(start, stop)[:, None])[None, None]
    if segments is not None:
        rows, keys = segments[:, start:stop, None], segments[:, None, :seen]
        same = ((rows == keys) | (rows == 0)) & (keys > 0)  # padding looks at all text, as in BERT; nothing comes of it
        mask = same[:, None] if mask is None else mask & same[:, None]
    return mask
