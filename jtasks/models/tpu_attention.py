"""Self-attention as a Pallas kernel for TPUs, for sequences whose keys and values fit into the memory of a core.

Queries, keys and values are one array [b, h, 3, d, t]: the form in which one product makes them, since the positions
are last in memory in both. JAX's splash attention wants the width of a head last, which costs copies and pads a width
of 64 to 128. Scores are [keys, queries]: so sums over keys need no transposition, and the log-sum-exps are dense rows.

The method is FlashAttention-2 (Dao 2023): softmax over blocks of keys, and a backward pass that computes the scores
again from the log-sum-exps. Blocks above the diagonal are skipped with `causal`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jtasks.ops.precision import wide

Residuals = tuple[jax.Array, jax.Array | None, jax.Array, jax.Array]

HIDDEN = -1e30  # score of a key that a query does not attend to
BYTES = 16 * 2**20  # of a core's memory, the least of all generations


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def attention(
    fused: jax.Array, segment_ids: jax.Array | None, causal: bool, scale: float, block: int, save_as: str
) -> jax.Array:
    """Return attention [b, h, d, t] of queries, keys and values `fused` [b, h, 3, d, t].

    Args:
      fused: the arrays, of one type.
      segment_ids: [b, t] int32: a position attends to positions of its own number; None: to all.
      causal: hide later positions.
      scale: factor of the products of queries and keys.
      block: number of queries, and of keys, in a block; a multiple of 128 that divides t.
      save_as: `checkpoint_name` of what the backward pass needs.
    """
    return _forward(fused, segment_ids, causal, scale, block, save_as)[0]


def _forward(
    fused: jax.Array, segment_ids: jax.Array | None, causal: bool, scale: float, block: int, save_as: str
) -> tuple[jax.Array, Residuals]:
    b, h, _, d, t = fused.shape
    ids, id_specs = _ids(segment_ids, t, block)
    output, log_sums = pl.pallas_call(
        functools.partial(_forward_kernel, causal=causal, scale=scale, block=block),
        grid=(b, h, t // block),
        in_specs=[_whole(3, d, t), *id_specs],
        out_specs=[_of_block(d, block), _of_block(1, block)],
        out_shape=[
            jax.ShapeDtypeStruct((b, h, d, t), fused.dtype),
            jax.ShapeDtypeStruct((b, h, 1, t), wide(fused)),
        ],
        compiler_params=_compiler_params(),
        cost_estimate=_cost(fused, causal, block, products=2),
        name="attention_forward",
    )(fused, *ids)
    output, log_sums = _saved(output, save_as), _saved(log_sums, save_as)
    return output, (fused, segment_ids, output, log_sums)


def _backward(
    causal: bool, scale: float, block: int, save_as: str, residuals: Residuals, cotangent: jax.Array
) -> tuple[jax.Array, None]:
    fused, segment_ids, output, log_sums = residuals
    b, h, _, d, t = fused.shape
    ids, id_specs = _ids(segment_ids, t, block)
    gradient = pl.pallas_call(
        functools.partial(_backward_kernel, causal=causal, scale=scale, block=block),
        grid=(b, h, t // block),
        in_specs=[_whole(3, d, t), *[_of_block(size, block) for size in (d, d, 1)], *id_specs],
        out_specs=_whole(3, d, t),
        out_shape=jax.ShapeDtypeStruct(fused.shape, fused.dtype),
        scratch_shapes=[pltpu.VMEM((2, d, t), wide(fused))],
        compiler_params=_compiler_params(),
        cost_estimate=_cost(fused, causal, block, products=5),
        name="attention_backward",
    )(fused, output, cotangent, log_sums, *ids)
    return gradient, None


attention.defvjp(_forward, _backward)


def fits(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, block: int) -> bool:
    """Return whether a core's memory holds the backward pass of one head of arrays of a shape [b, h, 3, d, t]."""
    d, t = -(-shape[3] // 16) * 16, shape[4]
    buffers = 2 * (2 * 3 * d * t + 2 * d * block) * jnp.dtype(dtype).itemsize  # two of each, for what comes next
    parts = 30 * d * block * 4 if dtype == jnp.float32 else 0  # bfloat16 parts of the factors of exact products
    return buffers + parts + 2 * d * t * 4 + 6 * block * block * 4 <= BYTES


def _cost(fused: jax.Array, causal: bool, block: int, products: int) -> pl.CostEstimate:
    """Return the operations of a kernel, for XLA's scheduler and for counts of operations."""
    b, h, _, d, t = fused.shape
    count = t // block
    scores = b * h * block**2 * (count * (count + 1) // 2 if causal else count**2)
    return pl.CostEstimate(
        flops=2 * products * d * scores,
        transcendentals=scores,
        bytes_accessed=(products + 2) * b * h * d * t * fused.dtype.itemsize,
    )


def _saved(x: jax.Array, name: str) -> jax.Array:
    """Name an array as bits: of floating point numbers that it saves, `jax.checkpoint` makes a copy."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return jax.lax.bitcast_convert_type(checkpoint_name(bits, name), x.dtype)


def _forward_kernel(fused: Any, *refs: Any, causal: bool, scale: float, block: int) -> None:
    *ids, output, log_sums = refs
    i, count = pl.program_id(2), fused.shape[-1] // block
    query = _read(fused, 0, i, block)

    def add(j: Any, sums: Any, diagonal: bool = False) -> Any:
        largest, total, mixed = sums
        scores = _scores(fused, query, ids, j, block, scale, diagonal)
        new = jnp.maximum(largest, jnp.max(scores, axis=0, keepdims=True))
        weights, shrink = jnp.exp(scores - new), jnp.exp(largest - new)
        value = _read(fused, 2, j, block)
        mixed = shrink * mixed + _dot(value, weights.astype(value.dtype), 1, 0)
        return new, shrink * total + jnp.sum(weights, axis=0, keepdims=True), mixed

    kind = log_sums.dtype
    row = functools.partial(jnp.full, (1, block), dtype=kind)
    sums = row(HIDDEN), row(0.0), jnp.zeros((fused.shape[1], block), kind)
    sums = jax.lax.fori_loop(0, i if causal else count, add, sums)
    largest, total, mixed = add(i, sums, diagonal=True) if causal else sums
    output[...] = (mixed / total).astype(output.dtype)
    log_sums[...] = largest + jnp.log(total)


def _backward_kernel(
    fused: Any, output: Any, cotangent: Any, log_sums: Any, *refs: Any, causal: bool, scale: float, block: int
) -> None:
    *ids, gradient, sums = refs
    i, count = pl.program_id(2), fused.shape[-1] // block
    query, d_output = _read(fused, 0, i, block), cotangent[...]
    # The softmax's own term: sum over keys of weight times its cotangent.
    inner = jnp.sum(d_output.astype(sums.dtype) * output[...].astype(sums.dtype), axis=0, keepdims=True)

    @pl.when(i == 0)
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)

    def add(j: Any, d_query: jax.Array, diagonal: bool = False) -> jax.Array:
        key, value = _read(fused, 1, j, block), _read(fused, 2, j, block)
        weights = jnp.exp(_scores(fused, query, ids, j, block, scale, diagonal) - log_sums[...])
        d_weights = _dot(value.T, d_output, 1, 0)
        d_scores = (weights * (d_weights - inner) * scale).astype(key.dtype)
        keys = pl.ds(pl.multiple_of(j * block, block), block)
        sums[0, :, keys] += _dot(query, d_scores, 1, 1)
        sums[1, :, keys] += _dot(d_output, weights.astype(d_output.dtype), 1, 1)
        return d_query + _dot(key, d_scores, 1, 0)

    d_query = jnp.zeros(query.shape, sums.dtype)
    d_query = jax.lax.fori_loop(0, i if causal else count, add, d_query)
    d_query = add(i, d_query, diagonal=True) if causal else d_query
    gradient[0, :, pl.ds(pl.multiple_of(i * block, block), block)] = d_query.astype(gradient.dtype)

    @pl.when(i == count - 1)
    def _() -> None:
        gradient[1:] = sums[...].astype(gradient.dtype)


def _scores(fused: Any, query: jax.Array, ids: Any, j: Any, block: int, scale: float, diagonal: bool) -> jax.Array:
    """Return the scores [keys, queries] of key block j and a query block; HIDDEN where a query does not attend."""
    scores = _dot(_read(fused, 1, j, block).T, query, 1, 0) * scale
    mask = None
    if diagonal:
        key, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
        mask = key <= column
    if ids:
        own, all_ids = ids
        same = all_ids[pl.ds(pl.multiple_of(j * block, block), block), :] == own[...]
        mask = same if mask is None else mask & same
    return scores if mask is None else jnp.where(mask, scores, HIDDEN)


def _read(fused: Any, part: int, i: Any, block: int) -> jax.Array:
    """Return query (part 0), key (1) or value (2) [d, block] of block i."""
    x: jax.Array = fused[part, :, pl.ds(pl.multiple_of(i * block, block), block)]
    return x


def _dot(a: jax.Array, b: jax.Array, axis: int, other: int) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((axis,), (other,)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=wide(a))


def _whole(*shape: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, *shape), lambda b, h, i: (b, h, *[0] * len(shape)))


def _of_block(rows: int, block: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, rows, block), lambda b, h, i: (b, h, 0, i))


def _ids(segment_ids: jax.Array | None, t: int, block: int) -> tuple[list[jax.Array], list[pl.BlockSpec]]:
    """Return the segment ids as rows of queries and as columns of keys."""
    if segment_ids is None:
        return [], []
    rows = pl.BlockSpec((None, 1, block), lambda b, h, i: (b, 0, i))
    columns = pl.BlockSpec((None, t, 1), lambda b, h, i: (b, 0, 0))
    return [segment_ids[:, None], segment_ids[:, :, None]], [rows, columns]


def _compiler_params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=BYTES)
