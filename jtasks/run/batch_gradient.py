"""The exact gradient of a loss that compares the examples of a batch with each other, however the batch is split.

The loss needs the embeddings of the whole batch, but not the activations from which they come. So each microbatch is
embedded first, without a gradient. The loss of all embeddings gives their cotangents. Then each microbatch is embedded
again, with the same rng, and its vector-Jacobian products with these cotangents add up to the gradient (GradCache, Gao
et al. 2021, arXiv:2101.06983).
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jtasks.config import Config
from jtasks.run.microbatches import Batch, Metrics, Params, deinterleave, interleave, select_float, term_totals, vjp

Embeddings = dict[str, jax.Array]


class Functions(NamedTuple):
    """The two parts of a loss that compares examples."""

    embed: Callable[[Params, Batch, jax.Array | None], Embeddings]  # of a part of the batch
    loss: Callable[[Params, Embeddings, Batch], tuple[jax.Array, Metrics]]  # of the whole batch


def functions(task: ModuleType, config: Config) -> Functions | None:
    """Return embed_fn and batch_loss_fn of a task without their config; None if the task has no batch_loss_fn."""
    if not hasattr(task, "batch_loss_fn"):
        return None
    return Functions(
        lambda params, batch, rng: task.embed_fn(params, batch, rng, config),
        lambda params, embeddings, batch: task.batch_loss_fn(params, embeddings, batch, config),
    )


def exact_gradient(
    functions: Functions,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    *,
    microbatches: int,
    after: Callable[..., Any] = lambda params, earlier, divided=False: params,
) -> tuple[Params, Metrics]:
    """Return the gradient of the weighted sum of the terms' means over the whole batch, and the metrics.

    Args:
      functions: the two parts of the loss.
      params: the parameters.
      batch: arrays [b, ...]; b must be divisible by `microbatches`.
      rng: random key; each microbatch gets its own, folded from this one.
      microbatches: number of parts that are embedded one after the other.
      after: (params, earlier, divided=False) -> params; may make XLA compute `earlier`, sharded like the batch if
        `divided`, before it uses the parameters.
    """
    parts = jax.tree.map(lambda x: interleave(x, microbatches), batch)
    embed = _embedder(functions, parts, rng, jnp.arange(microbatches))
    embeddings = jax.lax.map(lambda i: embed(params, i), jnp.arange(microbatches))
    embeddings = jax.tree.map(deinterleave, embeddings)
    direct, cotangents, metrics = _of_loss(functions, after(params, embeddings, divided=True), embeddings, batch)
    cotangents = jax.tree.map(lambda x: interleave(x, microbatches), cotangents)
    return _add_microbatches(embed, after(params, metrics), cotangents, microbatches, direct), metrics


def uneven_gradient(
    functions: Functions,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    *,
    shares: tuple[int, ...],
    mesh: Mesh,
) -> tuple[Params, Metrics]:
    """Return the exact gradient and the metrics where device d of the `data` axis takes shares[d] equal microbatches.

    The arguments are those of `gradient.uneven_gradient`. Each device embeds its own microbatches in a loop without
    waiting for another device; its further rows, which are padding, have embeddings of ones. Between the two loops the
    devices take the loss of all rows together.
    """
    most, whole, divided = max(shares), PartitionSpec(), PartitionSpec("data")
    first = jnp.array(np.cumsum((0, *shares[:-1])), jnp.int32)
    share = jnp.array(shares, jnp.int32)

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(most, -1, *x.shape[1:])

    def embedder(slab: Batch, rng: jax.Array, first: jax.Array) -> Callable[[Params, Any], Embeddings]:
        return _embedder(functions, jax.tree.map(split, slab), rng, first[0] + jnp.arange(most))

    def embed(params: Params, slab: Batch, rng: jax.Array, share: jax.Array, first: jax.Array) -> Embeddings:
        one = embedder(slab, rng, first)
        shapes = jax.eval_shape(lambda p: one(p, 0), params)
        ones = jax.tree.map(lambda x: jnp.ones((most, *x.shape), x.dtype), shapes)  # zeros cannot be normalized

        def put(i: jax.Array, known: Embeddings) -> Embeddings:
            return jax.tree.map(lambda x, row: x.at[i].set(row), known, one(params, i))

        embeddings = jax.lax.fori_loop(0, share[0], put, ones)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), embeddings)

    def pull_back(
        params: Params, cotangents: Embeddings, slab: Batch, rng: jax.Array, share: jax.Array, first: jax.Array
    ) -> Params:
        one, parts = embedder(slab, rng, first), jax.tree.map(split, cotangents)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.psum(_add_microbatches(one, params, parts, share[0], zeros), "data")

    # check_vma=False: the check would insert a psum inside the loop, and devices run different trip counts.
    rest = (divided, whole, divided, divided)
    embed = jax.shard_map(embed, mesh=mesh, in_specs=(whole, *rest), out_specs=divided, check_vma=False)
    pull_back = jax.shard_map(pull_back, mesh=mesh, in_specs=(whole, divided, *rest), out_specs=whole, check_vma=False)
    embeddings = embed(params, batch, rng, share, first)
    direct, cotangents, metrics = _of_loss(functions, params, embeddings, batch)
    gradient = pull_back(params, cotangents, batch, rng, share, first)
    return select_float(jax.tree.map(jnp.add, direct, gradient), gradient), metrics


def plain_loss(
    functions: Functions, rngs: Sequence[jax.Array]
) -> Callable[[Params, Sequence[Batch]], tuple[jax.Array, Metrics]]:
    """Return the loss (params, parts of the batch) -> (loss, metrics) that `exact_gradient` differentiates.

    Checks compare the two, and a replay finds the line of a NaN by this function.

    Args:
      functions: the two parts of the loss.
      rngs: the random key of each part.
    """

    def loss_fn(params: Params, parts: Sequence[Batch]) -> tuple[jax.Array, Metrics]:
        embeddings = [functions.embed(params, part, rng) for part, rng in zip(parts, rngs, strict=True)]
        whole = [jax.tree.map(lambda *rows: jnp.concatenate(rows), *trees) for trees in (embeddings, parts)]
        return functions.loss(params, *whole)

    return loss_fn


def _embedder(
    functions: Functions, parts: Batch, rng: jax.Array, numbers: jax.Array
) -> Callable[[Params, Any], Embeddings]:
    """Return a function of the parameters and i: the embeddings of microbatch i of `parts` [k, b, ...]."""

    def embed(params: Params, i: Any) -> Embeddings:
        part, number = jax.tree.map(lambda x: x[i], (parts, numbers))
        return dict(functions.embed(params, part, jax.random.fold_in(rng, number)))

    return embed


def _of_loss(
    functions: Functions, params: Params, embeddings: Embeddings, batch: Batch
) -> tuple[Params, Embeddings, Metrics]:
    """Return the gradient by parameters that the loss uses directly, the embeddings' cotangents, and the metrics."""

    def totals(params: Params, embeddings: Embeddings) -> Any:
        return term_totals(functions.loss(params, embeddings, batch), "batch_loss_fn")

    (direct, cotangents), metrics = vjp(totals, params, embeddings)
    return direct, cotangents, metrics


def _add_microbatches(
    embed: Callable[[Params, Any], Embeddings], params: Params, cotangents: Embeddings, count: Any, direct: Params
) -> Params:
    """Return `direct` plus the vector-Jacobian products of the first `count` microbatches with `cotangents` [k, b]."""

    def add(i: jax.Array, sums: Params) -> Params:
        _, pullback = jax.vjp(lambda p: embed(p, i), params)
        (gradient,) = pullback(jax.tree.map(lambda x: x[i], cotangents))
        return jax.tree.map(jnp.add, sums, select_float(gradient, jax.tree.map(jnp.zeros_like, params)))

    return jax.lax.fori_loop(0, count, add, direct)
