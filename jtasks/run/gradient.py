"""The exact gradient of the whole batch, however the batch is split.

The loss is a sum of means over the batch, and a mean of means is not the mean: microbatches may
count differently (masks, padding, tokens). So the counts of the whole batch come first; then each
microbatch's vector-Jacobian product of its totals with cotangents 1/count, summed up, is the gradient.
A loss that compares the examples of a batch has a gradient of its own, see `batch_gradient`.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jtasks import task as tasks
from jtasks.config import Config
from jtasks.distributed import sharding
from jtasks.distributed.shares import count_microbatches, unequal
from jtasks.metrics import Mean, example_weights
from jtasks.run import adapter, batch_gradient, by_source, noise
from jtasks.run.microbatches import Batch, Metrics, Params, interleave, select_float, term_cotangents, term_totals, vjp

LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]
Totals = Callable[[Params, Any], tuple[dict[str, jax.Array], Metrics]]  # by term, with all metrics


def gradient_fn(
    task: ModuleType, config: Config, mesh: Mesh | None, square: noise.Square | None = None
) -> Callable[..., tuple[Params, Metrics]]:
    """Return a function (params, batch, rng, base) -> (exact gradient, metrics), on a mesh, split as the config says.

    The gradient is that of `params`, which are an adapter on the frozen parameters `base` unless that is None. With
    `square`, which returns the squared norm of a gradient, the metrics have the gradient noise scale.
    """
    shares, microbatches = unequal(config.shares), count_microbatches(config)
    functions = batch_gradient.functions(task, config)

    def whole_loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        return tasks.loss_fn(task)(params, batch, rng, config)

    # A loss that compares examples is no sum over them, so it has no parts by source.
    compares = functions or getattr(task, "MIXES_EXAMPLES", False)
    loss_fn = whole_loss_fn if compares else by_source.split_metrics(whole_loss_fn, config.data.mix)

    def with_noise(result: tuple[Params, Metrics], batch: Batch) -> tuple[Params, Metrics]:
        gradient, metrics = result
        if square is None:
            return result
        parts, count = metrics.pop(noise.NAME).total, sum(shares) if shares else microbatches
        return gradient, metrics | {
            noise.NAME: noise.estimate(parts, square(gradient), count, jnp.sum(example_weights(batch)))
        }

    def measure(params: Params, batch: Batch, rng: jax.Array, base: Params | None = None) -> tuple[Params, Metrics]:
        names = None if base is None else adapter.named(params, base)
        on_mesh = functools.partial(sharding.on_mesh, mesh, config.sharding)
        after = functools.partial(sharding.params_after, mesh=mesh, rules=config.sharding, names=names)
        on = functools.partial(adapter.on_base, base=base, config=config, mesh=None if shares else mesh)
        if shares and mesh is not None:
            if functions:
                split = batch_gradient.Functions(on(functions.embed), on(on_mesh(functions.loss)))
                return batch_gradient.uneven_gradient(split, params, batch, rng, shares=shares, mesh=mesh)
            uneven = uneven_gradient(on(loss_fn), params, batch, rng, shares=shares, mesh=mesh, square=square)
            return with_noise(uneven, batch)
        if functions and microbatches > 1:
            split = batch_gradient.Functions(on(on_mesh(functions.embed)), on(on_mesh(functions.loss)))
            exact = functools.partial(batch_gradient.exact_gradient, split)
        else:
            exact = functools.partial(exact_gradient, on(on_mesh(loss_fn)), square=square)
        gradient, metrics = with_noise(exact(params, batch, rng, microbatches=microbatches, after=after), batch)
        return sharding.constrain_params(gradient, mesh, config.sharding, names=names), metrics

    return measure


def exact_gradient(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    *,
    microbatches: int = 1,
    after: Callable[[Any, Any], Any] = lambda params, counts: params,
    square: noise.Square | None = None,
) -> tuple[Params, Metrics]:
    """Return the gradient of the weighted sum of the terms' means over the whole batch, and the metrics.

    Args:
      loss_fn: (params, batch, rng) -> (loss, metrics); the terms are those of `metrics.terms`.
      batch: arrays [b, ...]; b must be divisible by `microbatches`.
      rng: random key; each microbatch gets its own, folded from this one.
      after: (params, counts) -> params; may make XLA compute the counts before it uses the parameters.
      square: squared norm of a gradient; the metrics then have their sum over the microbatches under `noise.NAME`.
    """
    if microbatches == 1:
        (gradient,), metrics = vjp(lambda p: _totals(loss_fn, p, batch, rng, 0), params)
        return gradient, metrics
    parts = jax.tree.map(lambda x: interleave(x, microbatches), batch)
    totals = _microbatch_totals(loss_fn, parts, rng, jnp.arange(microbatches))
    return _sum_microbatches(totals, params, microbatches, after=after, square=square)


def uneven_gradient(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    *,
    shares: tuple[int, ...],
    mesh: Mesh,
    square: noise.Square | None = None,
) -> tuple[Params, Metrics]:
    """Return the exact gradient and the metrics where device d of the `data` axis takes shares[d] equal microbatches.

    All devices run one program: each loops over its own microbatches without waiting for another device, and the sums
    are combined once after the loop. Microbatches, with their rngs and rows, are numbered through the devices in turn,
    so the result equals that of `exact_gradient` with sum(shares) microbatches.

    Args:
      loss_fn: (params, batch, rng) -> (loss, metrics).
      params: replicated over the mesh.
      batch: arrays [b, ...] with rows in the order of `shares.layout`.
      rng: random key; each microbatch gets its own, folded from this one.
      shares: microbatches of each device.
      mesh: has whole parameters on each device.
      square: see `exact_gradient`.
    """

    def on_device(params: Params, slab: Batch, rng: jax.Array, share: jax.Array, first: jax.Array) -> Any:
        parts = jax.tree.map(lambda x: x.reshape(max(shares), -1, *x.shape[1:]), slab)
        totals = _microbatch_totals(loss_fn, parts, rng, first[0] + jnp.arange(max(shares)))
        everywhere = functools.partial(jax.lax.psum, axis_name="data")
        return _sum_microbatches(totals, params, share[0], everywhere=everywhere, square=square)

    first = np.cumsum((0, *shares[:-1]))
    whole, divided = PartitionSpec(), PartitionSpec("data")
    # check_vma=False: the check would insert a psum inside the loop, and devices run different trip counts.
    run = jax.shard_map(
        on_device, mesh=mesh, in_specs=(whole, divided, whole, divided, divided), out_specs=whole, check_vma=False
    )
    return run(params, batch, rng, jnp.array(shares, jnp.int32), jnp.array(first, jnp.int32))


def _totals(
    loss_fn: LossFn, params: Params, part: Batch, rng: jax.Array, number: Any
) -> tuple[dict[str, jax.Array], Metrics]:
    return term_totals(loss_fn(params, part, jax.random.fold_in(rng, number)), "loss_fn")


def _microbatch_totals(loss_fn: LossFn, parts: Batch, rng: jax.Array, numbers: jax.Array) -> Totals:
    """Return a function of the parameters and i: `_totals` of microbatch i of `parts` [k, b, ...]."""

    def totals(params: Params, i: Any) -> tuple[dict[str, jax.Array], Metrics]:
        part, number = jax.tree.map(lambda x: x[i], (parts, numbers))
        return _totals(loss_fn, params, part, rng, number)

    return totals


def _sum_microbatches(
    totals: Totals,
    params: Params,
    count: Any,
    *,
    everywhere: Callable[[Any], Any] = lambda sums: sums,
    after: Callable[[Any, Any], Any] = lambda params, counts: params,
    square: noise.Square | None = None,
) -> tuple[Params, Metrics]:
    """Return gradient and metrics of the first `count` microbatches, summed by `everywhere`."""
    shapes = jax.eval_shape(lambda p: totals(p, 0)[1], params)
    gradients, zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, shapes))
    # Counts need no parameters, so the compiler drops the model from this first pass.
    counts = jax.lax.fori_loop(
        0, count, lambda i, sums: jax.tree.map(jnp.add, sums, _counts(totals(params, i)[1])), zeros
    )
    counts = everywhere(counts)
    cotangents, params = term_cotangents(counts), after(params, counts)

    def add(i: jax.Array, sums: tuple[Params, Metrics]) -> tuple[Params, Metrics]:
        _, pullback, metrics = jax.vjp(lambda p: totals(p, i), params, has_aux=True)
        (gradient,) = pullback(cotangents)
        gradient = select_float(gradient, gradients)
        squares = {noise.NAME: Mean(square(gradient), jnp.float32(0))} if square else {}
        return jax.tree.map(jnp.add, sums, (gradient, metrics | squares))

    if square:
        zeros = zeros | {noise.NAME: Mean(jnp.float32(0), jnp.float32(0))}
    return everywhere(jax.lax.fori_loop(0, count, add, (gradients, zeros)))


def _counts(metrics: Metrics) -> Metrics:
    return {name: dataclasses.replace(mean, total=jnp.zeros_like(mean.total)) for name, mean in metrics.items()}
