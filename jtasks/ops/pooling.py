"""Features of whole sequences from features of their positions."""

import jax
import jax.numpy as jnp

from jtasks.ops.precision import wide


def mean(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the mean [b, d], at least float32, over the `valid` positions [b, t] of `x` [b, t, d]; 0 without any.

    This is the mean pooling of sentence encoders (Reimers and Gurevych 2019, arXiv:1908.10084).
    """
    weights = valid.astype(wide(x))[:, :, None]
    return jnp.sum(x * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)


def last(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the features [b, d], at least float32, of the last `valid` position [b, t] of `x` [b, t, d].

    >>> last(jnp.arange(6.0).reshape(1, 3, 2), jnp.array([[True, True, False]])).tolist()
    [[2.0, 3.0]]
    """
    place = jnp.max(jnp.where(valid, jnp.arange(valid.shape[1])[None], 0), axis=1)
    return jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0].astype(wide(x))


def unit_length(x: jax.Array) -> jax.Array:
    """Return vectors [..., d] divided by their length, at least float32."""
    x = x.astype(wide(x))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
