"""The cross-entropy over a vocabulary, without all logits in memory at once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from jtasks.distributed import sharding
from jtasks.models import kernels
from jtasks.models.layers import vocabulary_logits

ROWS = 1024  # rows of logits that a device has in memory at once
ENTRIES = 2**29  # logits that a TPU has in memory at once, if these are more rows: each block adds to a whole gradient
TILE = 128  # rows of a TPU's blocks are multiples of this
LOG_SUMS = "log_sums"  # checkpoint_name of the log-sum-exps, from which the backward pass computes the softmax


def vocabulary_loss(
    hidden: jax.Array,
    table: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None = None,
    rows: int = 0,
    smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Return the cross-entropy of `hidden @ table.T + bias`, computed some rows at a time to save memory.

    Args:
      hidden: [..., width].
      table: [vocab, width].
      labels: [...] int32.
      bias: [vocab], or None.
      rows: number of rows of `hidden` whose logits a device has in memory at once; 0: by the platform.
      smoothing: probability mass spread evenly over all ids (Szegedy et al. 2016, section 7).

    Returns:
      Nats [...], at least float32, and whether the likeliest id is the label [...] bool.
    """
    shape, n, on_tpu = labels.shape, labels.size, kernels.platform() == "tpu"
    shards = sharding.count_shards(shape[0])
    own = n // shards  # rows of a device, cut into blocks
    if not rows:
        vocab = len(table) // kernels.count_parts(len(table))  # of a device
        rows = max(ROWS, _rows_on_tpu(own, vocab)) if on_tpu else ROWS

    # The backward pass recomputes the logits of each block.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(LOG_SUMS))
    def block(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = vocabulary_logits(part[0], table, bias)
        return cross_entropy_on_tpu(logits, part[1], smoothing) if on_tpu else cross_entropy(logits, part[1], smoothing)

    flat, ids = hidden.reshape(n, -1), labels.reshape(n)
    if n <= rows and not on_tpu:
        # Logits of a single block are kept, outside of the checkpoint, which would copy them.
        logits = vocabulary_logits(flat, table, bias)
        nats, correct = jax.checkpoint(cross_entropy, static_argnums=(2,))(logits, ids, smoothing)
    elif own <= rows and on_tpu:
        nats, correct = block((flat, ids))
    else:

        def cut(x: jax.Array) -> jax.Array:
            x = jnp.pad(x.reshape(shards, own, -1), ((0, 0), (0, -own % rows), (0, 0)))
            x = jnp.swapaxes(x.reshape(shards, -1, rows, x.shape[-1]), 0, 1)
            return sharding.constrain_batch(x.reshape(len(x), shards * rows, -1), axis=1)

        def join(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(x.reshape(-1, shards, rows), 0, 1).reshape(shards, -1)[:, :own]

        cut_ids = cut(ids[:, None])[:, :, 0]
        nats, correct = (join(x) for x in jax.lax.map(block, (cut(flat), cut_ids)))
    return nats.reshape(shape), correct.reshape(shape)


def _rows_on_tpu(own: int, vocab: int) -> int:
    """Return the rows of the fewest equal blocks that hold `own` rows of at most ENTRIES logits."""
    blocks = -(-own * vocab // ENTRIES)
    return -(-own // (blocks * TILE)) * TILE


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Return the nats of `labels` [n] by logits [n, vocab], and whether each is the likeliest id."""
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    label, ids = jnp.take_along_axis(logits, labels[:, None], axis=-1), jnp.arange(logits.shape[-1])[None]
    if smoothing:
        nats += smoothing * (label[:, 0] - jnp.mean(logits, axis=-1))
    # `logits.argmax(-1) == labels`, in a tenth of its time on the CPU.
    beaten = ~((label > logits) | ((label == logits) & (labels[:, None] <= ids)))
    return nats, ~jnp.any(beaten, axis=-1)


def cross_entropy_on_tpu(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Return `cross_entropy` by one reduction, which a TPU's compiler makes part of the product before it.

    So the forward pass writes no logits. The backward pass takes the softmax from the log-sum-exps.
    """
    nats, _, label, largest, earlier = _reduce(logits, labels, smoothing)
    # Of equally likely ids the first is the likeliest.
    return nats, ~((largest > label) | ((earlier >= label) & (labels > 0)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _reduce(logits: jax.Array, labels: jax.Array, smoothing: float) -> tuple[jax.Array, ...]:
    """Return nats, log-sum-exps, the labels' logits, the largest logits, and the largest before the label, each [n].

    Maxima and sums of exponentials are joined as by Milakov and Gimelshein (2018). Each device along `tensor` reduces
    its own part of the vocabulary, which XLA would otherwise gather.
    """
    vocab = logits.shape[-1]
    logits = logits.reshape(len(logits), kernels.count_parts(vocab), -1)
    ids, lowest = jnp.arange(vocab).reshape(1, *logits.shape[1:]), jnp.finfo(logits.dtype).min
    label = jnp.where(ids == labels[:, None, None], logits, 0)
    earlier = jnp.where(ids < labels[:, None, None], logits, lowest)
    terms = (logits, jnp.ones_like(logits), earlier, label, *([logits] if smoothing else []))

    def join(a: Any, b: Any) -> Any:
        shrink, first = jnp.exp(-jnp.abs(a[0] - b[0])), a[0] >= b[0]
        total = jnp.where(first, a[1] + shrink * b[1], shrink * a[1] + b[1])
        sums = (one + other for one, other in zip(a[3:], b[3:], strict=True))
        return (jnp.maximum(a[0], b[0]), total, jnp.maximum(a[2], b[2]), *sums)

    start = tuple(jnp.asarray(x, logits.dtype) for x in (lowest, 0, lowest, 0, 0))[: len(terms)]
    highest, totals, earlier, *sums = jax.lax.reduce(terms, start, join, (2,))  # each [n, parts]
    largest = jnp.max(highest, axis=1)
    log_sums = largest + jnp.log(jnp.sum(totals * jnp.exp(highest - largest[:, None]), axis=1))
    label, *rest = (jnp.sum(x, axis=1) for x in sums)
    nats = log_sums - label
    for total in rest:
        nats += smoothing * (label - total / vocab)
    return nats, log_sums, label, largest, jnp.max(earlier, axis=1)


@_reduce.defjvp
def _reduce_jvp(smoothing: float, primals: Any, tangents: Any) -> Any:
    (logits, labels), results = primals, _reduce(*primals, smoothing)
    own = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    log_sums = checkpoint_name(results[1], LOG_SUMS)
    targets = jnp.where(own, 1 - smoothing, 0) + smoothing / logits.shape[-1]
    gradient = jnp.exp(logits - log_sums[:, None]) - targets
    rest = (jnp.zeros_like(x) for x in results[1:])
    return results, (jnp.sum(gradient * tangents[0], axis=-1), *rest)
