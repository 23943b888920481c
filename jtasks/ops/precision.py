"""Types of numbers: the one that models compute in, and the one for sums, scores, logits and losses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def computation(precision: str) -> Any:
    """Return the `dtype` of a model for `config.precision`.

    None stands for float32: Flax then computes in the type of parameters and inputs, so float64 parameters under
    `jax_enable_x64` are computed in float64.
    """
    return None if precision == "float32" else jnp.dtype(precision)


def wide(*arrays: jax.Array) -> Any:
    """Return float32, or float64 if an array is float64.

    >>> print(wide(jnp.zeros(2, jnp.bfloat16)), wide(jnp.zeros(2, bool)))
    float32 float32
    """
    return functools.reduce(jnp.promote_types, (x.dtype for x in arrays), jnp.dtype(jnp.float32))
