"""Softmax attention: plain, and in blocks of queries so that not all scores are in memory at once.

`segment_ids` [b, t] int32 groups positions: a position attends to positions of its own number. Number 0 is padding, to
which no position attends. One array thus serves padding, packed documents and both.

`relative` [h, t + s - 1] is a bias of scores that depends on the distance of a key from a query alone (Shaw et al.
2018, Raffel et al. 2020): entry `t - 1 + j - i` belongs to query i and key j. So no array of [t, s] biases is kept.

`scale` is the factor of the products of queries and keys; 0: `d ** -0.5`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jtasks.models import kernels
from jtasks.models.dropout import drop
from jtasks.ops.precision import wide

BLOCK = 128  # queries; on two CPU cores 64 and 128 were equally fast, 256 a third slower

RECOMPUTED = "rematted_computation"  # JAX's name of what jax.checkpoint computes again
SAVED = "attention"  # checkpoint_name of values saved for the backward pass

Ids = tuple[jax.Array, jax.Array]  # segment ids of queries [b, t] and of keys [b, s]
Residuals = tuple[jax.Array, jax.Array, jax.Array, Ids | None, jax.Array | None, jax.Array, jax.Array]


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    relative: jax.Array | None = None,
    scale: float = 0.0,
) -> jax.Array:
    """Return softmax attention of arrays [b, h, t, d].

    `mask`, broadcast to [b, h, t, s], is True where a query may attend. Scores and softmax are at least float32.
    """
    return mix(attention_weights(query, key, mask, relative, scale), value)


def attention_with_dropout(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    rng: jax.Array,
    rate: float,
    relative: jax.Array | None = None,
    scale: float = 0.0,
) -> jax.Array:
    """Return `attention` with dropout on the weights (Vaswani et al. 2017, as in BERT)."""
    return mix(drop(attention_weights(query, key, mask, relative, scale), rng, rate), value)


def attention_weights(
    query: jax.Array,
    key: jax.Array,
    mask: jax.Array | None = None,
    relative: jax.Array | None = None,
    scale: float = 0.0,
) -> jax.Array:
    """Return the weights [b, h, t, s], at least float32, of `attention`."""
    bias = None if relative is None else diagonals(relative, 0, query.shape[2], query.shape[2], key.shape[2])
    if kernels.platform() == "cpu" and query.dtype == wide(query):
        # Beside a product of scores YNNPACK would read the scale from an array of their size.
        query, scale = query * (scale or query.shape[-1] ** -0.5), 1.0
    return jax.nn.softmax(_scores(query, key, mask, bias, scale), axis=-1)


def mix(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Return the sums [b, h, t, d] of values [b, h, s, d] with weights [b, h, t, s]."""
    mixed = jnp.einsum("bhts,bhsd->bhtd", weights.astype(value.dtype), value)
    if kernels.platform() == "cpu":  # saved in the order in which the next layer's gradient reads it
        return jnp.swapaxes(checkpoint_name(jnp.swapaxes(mixed, 1, 2), SAVED), 1, 2)
    return checkpoint_name(mixed, SAVED)


def attend_to_seen(
    query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array, bias: jax.Array | None, scale: float = 0.0
) -> jax.Array:
    """Attend from each of n queries [b, h, n, d] to the keys and values [b, h, s, d] that `seen` [b, n, s] selects.

    `bias` [b, h, 1, s] is added to the scores; `scale` is that of the module.
    """
    return mix(jax.nn.softmax(_scores(query, key, seen[:, None], bias, scale), axis=-1), value)


def self_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool,
    segment_ids: jax.Array | None = None,
    relative: jax.Array | None = None,
    scale: float = 0.0,
    plain: bool = False,
) -> jax.Array:
    """Attend from each position to its segment; with `causal` only to itself and earlier positions.

    Accelerators have kernels (`models/kernels.py`). Elsewhere long sequences are processed in blocks of queries. With
    `causal` a block needs only the keys up to its end, so half of the [t, t] scores are never computed. Scores are not
    stored: the backward pass recomputes them from the log-sum-exp of each row (FlashAttention, Dao et al. 2022). These
    forms have reverse-mode derivatives only.

    Args:
      query, key, value: [b, h, t, d].
      causal: hide later positions.
      segment_ids: [b, t] int32, 0 for padding; None: one segment. Outputs at padding are finite and meaningless.
      relative: [h, 2 t - 1], see the module; None: no bias.
      scale: see the module.
      plain: compute all scores at once, in a form that `jax.jvp` and `jax.linearize` can differentiate.

    Returns:
      [b, h, t, d].
    """
    t = query.shape[2]
    if plain or t <= BLOCK:
        return attention(query, key, value, attention_mask(t, causal, segment_ids), relative, scale)
    platform = kernels.platform()
    if platform == "tpu" and relative is None:
        fused = jnp.swapaxes(jnp.stack([query, key, value], axis=2), 3, 4)
        return jnp.swapaxes(fused_self_attention(fused, segment_ids, causal=causal, scale=scale), 2, 3)
    if platform == "gpu" and relative is None:
        mask = attention_mask(t, False, segment_ids)
        mixed = kernels.on_gpu(query, key, value, mask, causal=causal, scale=scale)
        if mixed is not None:
            return mixed
    ids = None if segment_ids is None else (segment_ids, segment_ids)
    return _blockwise(query, key, value, ids, relative, causal, scale)


def fuses(t: int, relative: jax.Array | None, plain: bool) -> bool:
    """Return whether `self_attention` with these arguments is fastest as `fused_self_attention`."""
    return kernels.platform() == "tpu" and t > BLOCK and relative is None and not plain


def fused_self_attention(
    fused: jax.Array, segment_ids: jax.Array | None = None, *, causal: bool, scale: float = 0.0
) -> jax.Array:
    """Return `self_attention` [b, h, d, t] on TPUs, of queries, keys and values `fused` [b, h, 3, d, t]."""
    return kernels.on_tpu(fused, segment_ids, causal=causal, scale=scale, save_as=SAVED)


def cross_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    valid: jax.Array | Ids | None = None,
    *,
    scale: float = 0.0,
    plain: bool = False,
) -> jax.Array:
    """Attend from each position of one sequence to the `valid` positions of another, as in encoder-decoders.

    Args:
      query: [b, h, t, d]. More than BLOCK queries are processed in blocks, with reverse-mode derivatives only.
      key, value: [b, h, s, d].
      valid: bool [b, s], False for padding of the other sequence; or the segment ids of both sequences, [b, t] and
        [b, s]: a position attends to its own segment, and one of segment 0 to all that is no padding; None: no padding.
      scale: see the module.
      plain: compute all scores at once; see `self_attention`.

    Returns:
      [b, h, t, d].
    """
    t = query.shape[2]
    if plain or t <= BLOCK:
        return attention(query, key, value, memory_mask(t, valid), None, scale)
    return _blockwise(query, key, value, _ids(t, valid), None, False, scale)


def memory_mask(t: int, valid: jax.Array | Ids | None) -> jax.Array | None:
    """Return the mask [b, 1, t or 1, s] of `cross_attention` from t positions, or None for all."""
    if valid is None or not isinstance(valid, tuple):
        return None if valid is None else valid[:, None, None]
    return _block_mask(0, t, valid[1].shape[1], False, valid)


def _ids(t: int, valid: jax.Array | Ids | None) -> Ids | None:
    if valid is None or isinstance(valid, tuple):
        return valid
    return jnp.zeros((len(valid), t), jnp.int32), valid.astype(jnp.int32)


def attention_mask(t: int, causal: bool, segment_ids: jax.Array | None) -> jax.Array | None:
    """Return the mask [b or 1, 1, t, t] of keys that each query attends to, or None for all."""
    return _block_mask(0, t, t, causal, None if segment_ids is None else (segment_ids, segment_ids))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _blockwise(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    ids: Ids | None,
    relative: jax.Array | None,
    causal: bool,
    scale: float,
) -> jax.Array:
    return _forward(query, key, value, ids, relative, causal, scale)[0]


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    ids: Ids | None,
    relative: jax.Array | None,
    causal: bool,
    scale: float,
) -> tuple[jax.Array, Residuals]:
    outputs, log_sums, t = [], [], query.shape[2]
    for start, stop, seen in _blocks(t, key.shape[2], causal):
        mask = _block_mask(start, stop, seen, causal, ids)
        bias = None if relative is None else diagonals(relative, start, stop, t, seen)
        scores = _scores(query[:, :, start:stop], key[:, :, :seen], mask, bias, scale)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "bhts,bhsd->bhtd", weights.astype(value.dtype), value[:, :, :seen], preferred_element_type=wide(value)
        )
        outputs.append((mixed / total).astype(value.dtype))
        log_sums.append(largest + jnp.log(total))
    output = checkpoint_name(jnp.concatenate(outputs, axis=2), SAVED)
    log_sums = checkpoint_name(jnp.concatenate(log_sums, axis=2), SAVED)
    return output, (query, key, value, ids, relative, output, log_sums)


def _backward(
    causal: bool, scale: float, residuals: Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
    query, key, value, ids, relative, output, log_sums = residuals
    t, d_relative = query.shape[2], jnp.zeros((0, 0) if relative is None else relative.shape, wide(query))
    # The softmax's own term: sum over keys of weight times its cotangent.
    inner = jnp.sum(cotangent.astype(wide(value)) * output, axis=-1, keepdims=True)
    d_queries, d_key, d_value = [], *(jnp.zeros_like(x, wide(x)) for x in (key, value))
    for start, stop, seen in _blocks(t, key.shape[2], causal):
        rows = slice(start, stop)
        # As [keys, queries] two of the three products below need no transposition.
        mask = _block_mask(start, stop, seen, causal, ids)
        mask = None if mask is None else jnp.swapaxes(mask, 2, 3)
        bias = None if relative is None else jnp.swapaxes(diagonals(relative, start, stop, t, seen), 1, 2)
        with jax.named_scope(RECOMPUTED):
            scores = _scores(key[:, :, :seen], query[:, :, rows], mask, bias, scale)
        weights = jnp.exp(scores - jnp.swapaxes(log_sums[:, :, rows], 2, 3))
        d_weights = jnp.einsum(
            "bhsd,bhtd->bhst", value[:, :, :seen], cotangent[:, :, rows], preferred_element_type=wide(value)
        )
        d_scores = weights * (d_weights - jnp.swapaxes(inner[:, :, rows], 2, 3))
        if relative is not None:
            d_bias = jnp.swapaxes(jnp.sum(d_scores, axis=0), 1, 2)
            spread = functools.partial(diagonals, start=start, stop=stop, t=t, seen=seen)
            d_relative += jax.linear_transpose(spread, d_relative)(d_bias)[0]
        d_scores = (d_scores * (scale or query.shape[-1] ** -0.5)).astype(query.dtype)
        weights = weights.astype(value.dtype)
        d_queries.append(jnp.einsum("bhst,bhsd->bhtd", d_scores, key[:, :, :seen]))
        d_key = d_key.at[:, :, :seen].add(jnp.einsum("bhst,bhtd->bhsd", d_scores, query[:, :, rows]))
        d_value = d_value.at[:, :, :seen].add(jnp.einsum("bhst,bhtd->bhsd", weights, cotangent[:, :, rows]))
    d_query = jnp.concatenate(d_queries, axis=2)
    others = d_key.astype(key.dtype), d_value.astype(value.dtype)
    return d_query, *others, None, None if relative is None else d_relative.astype(relative.dtype)


_blockwise.defvjp(_forward, _backward)


def _blocks(t: int, s: int, causal: bool) -> list[tuple[int, int, int]]:
    """Return start, stop and number of keys of each block of queries.

    There are at most 32 blocks, so that long sequences do not compile to long programs.
    """
    size = max(BLOCK, -(-t // 32))
    bounds = [(start, min(start + size, t)) for start in range(0, t, size)]
    return [(start, stop, stop if causal else s) for start, stop in bounds]


def diagonals(relative: jax.Array, start: int, stop: int, t: int, seen: int) -> jax.Array:
    """Return the bias [h, stop - start, seen] of queries from `start` to `stop` of t, and the first `seen` keys.

    A matrix with equal numbers on each diagonal is a list that is repeated with a period of one less than its length.
    """
    count, h = stop - start, len(relative)
    line = relative[:, t - stop : t - start + seen - 1]  # of length count + seen - 1
    if count == 1:
        return line[:, None]
    repeated = jnp.broadcast_to(line[:, None], (h, count, line.shape[1])).reshape(h, -1)
    repeated = repeated[:, count - 1 : count - 1 + count * (line.shape[1] - 1)]
    return repeated.reshape(h, count, -1)[:, :, :seen]


def _scores(
    query: jax.Array,
    key: jax.Array,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float = 0.0,
) -> jax.Array:
    """Return scores [b, h, t, s], at least float32; the lowest finite number where `mask` is False."""
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=wide(query))
    scores *= scale or query.shape[-1] ** -0.5
    scores = scores if bias is None else scores + jnp.expand_dims(bias, range(4 - bias.ndim))
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(scores.dtype).min)


def _block_mask(start: int, stop: int, seen: int, causal: bool, ids: Ids | None) -> jax.Array | None:
    """Return the mask [b or 1, 1, stop - start, seen] of the first `seen` keys for a block's queries."""
    mask = None
    if causal:
        mask = (jnp.arange(seen)[None] <= jnp.arange(start, stop)[:, None])[None, None]
    if ids is not None:
        rows, keys = ids[0][:, start:stop, None], ids[1][:, None, :seen]
        # Padding attends to all text, as in BERT; its outputs are unused.
        same = ((rows == keys) | (rows == 0)) & (keys > 0)
        mask = same[:, None] if mask is None else mask & same[:, None]
    return mask
