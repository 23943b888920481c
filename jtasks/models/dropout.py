"""Dropout (Srivastava et al. 2014) from 16 random bits a number.

The generator, threefry, gives the same numbers however arrays are divided over devices, and is slow on a CPU: there
32 bits a number, as `jax.random.bernoulli` takes, made dropout four times as expensive as this.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

LEVELS = 2**16
DRAWN = "dropout"  # name of the draws, for what a backward pass shall not compute again


def dropped(x: jax.Array, rng: jax.Array, rate: float, broadcast: tuple[int, ...] = ()) -> jax.Array:
    """`x` with each number set to 0 with probability `rate` (to within 1/2**17), and the rest scaled up to make up.

    Args:
      broadcast: dimensions along which all numbers share one draw.
    """
    threshold = min(round(rate * LEVELS), LEVELS - 1)
    if threshold <= 0:
        return x
    shape = tuple(1 if d in broadcast else size for d, size in enumerate(x.shape))
    kept = checkpoint_name(_bits(rng, shape) >= threshold, DRAWN)
    return jnp.where(kept, x / (1 - threshold / LEVELS), jnp.zeros_like(x))


def _bits(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint16 random numbers: the halves of 32-bit ones."""
    words = jax.random.bits(rng, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)
    return halves.reshape(*shape[:-1], math.prod(halves.shape[-2:]))[..., : shape[-1]]


class Dropout(nn.Module):
    """Dropout where it is not `deterministic`, with the rng "dropout"."""

    rate: float
    broadcast: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or not self.rate:
            return x
        return dropped(x, self.make_rng("dropout"), self.rate, self.broadcast)
