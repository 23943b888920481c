"""Dropout (Srivastava et al. 2014) with 16 random bits per number.

JAX's threefry generator draws the same bits under any sharding, but is slow on a CPU: with the 32 bits per number of
`jax.random.bernoulli`, dropout took four times as long.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

LEVELS = 2**16
DRAWS = "dropout"  # checkpoint_name of the draws, saved for the backward pass


def drop(x: jax.Array, rng: jax.Array, rate: float, broadcast: tuple[int, ...] = ()) -> jax.Array:
    """Zero each number of `x` with probability `rate` (to within 1/2**17), and scale up the rest to keep the mean.

    Args:
      broadcast: dimensions along which all numbers share one draw.
    """
    threshold = min(round(rate * LEVELS), LEVELS - 1)
    if threshold <= 0:
        return x
    shape = tuple(1 if d in broadcast else size for d, size in enumerate(x.shape))
    keep = checkpoint_name(_bits(rng, shape) >= threshold, DRAWS)
    return jnp.where(keep, x / (1 - threshold / LEVELS), jnp.zeros_like(x))


def _bits(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return random uint16 numbers: the halves of 32-bit words."""
    words = jax.random.bits(rng, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)
    return halves.reshape(*shape[:-1], math.prod(halves.shape[-2:]))[..., : shape[-1]]


class Dropout(nn.Module):
    """Dropout with the rng "dropout", unless `deterministic`."""

    rate: float
    broadcast: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or not self.rate:
            return x
        return drop(x, self.make_rng("dropout"), self.rate, self.broadcast)
