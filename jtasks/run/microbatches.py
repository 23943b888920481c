"""Parts of a batch and sums over them, from which exact gradients are made."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jtasks.metrics import Mean, check, terms, weight

Params = dict[str, Any]
Batch = dict[str, jax.Array]
Metrics = dict[str, Mean]
Totals = dict[str, jax.Array]  # of the loss's terms


def interleave(x: jax.Array, microbatches: int) -> jax.Array:
    """Reshape [b, ...] to [microbatches, b / microbatches, ...].

    Microbatch m holds rows m, m + microbatches, ..., so that each device has rows of all
    microbatches and no row moves to another device.
    """
    return jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1)


def deinterleave(x: jax.Array) -> jax.Array:
    """Reshape [microbatches, b / microbatches, ...] to [b, ...], the inverse of `interleave`.

    >>> x = jnp.arange(6)
    >>> deinterleave(interleave(x, 3)).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def term_totals(result: tuple[jax.Array, Any], function: str) -> tuple[Totals, Metrics]:
    """Return the totals of the terms, and all metrics, of the (loss, metrics) that a task's `function` returned."""
    metrics = check(result[1], function)
    return {name: term.total for name, term in terms(metrics).items()}, metrics


def term_cotangents(metrics: Metrics) -> Totals:
    """Return the derivative of the loss by the total of each term: weight / count, 0 without a count."""

    def of_total(term: Mean) -> jax.Array:
        return (weight(term) / jnp.where(term.count == 0, 1.0, term.count)).astype(term.total.dtype)

    return {name: of_total(term) for name, term in terms(metrics).items()}


def vjp(function: Callable[..., tuple[Totals, Metrics]], *primals: Any) -> tuple[tuple[Any, ...], Metrics]:
    """Return the gradient of the loss by each argument of a function that returns `term_totals`, and the metrics."""
    _, pullback, metrics = jax.vjp(function, *primals, has_aux=True)
    pairs = zip(pullback(term_cotangents(metrics)), primals, strict=True)
    return tuple(select_float(gradient, jax.tree.map(jnp.zeros_like, primal)) for gradient, primal in pairs), metrics


def select_float(tree: Params, other: Params) -> Params:
    """Return the leaves of `tree`, with integer and bool leaves, which are never trained, from `other`."""
    return jax.tree.map(lambda x, y: x if jnp.issubdtype(y.dtype, jnp.inexact) else y, tree, other)
