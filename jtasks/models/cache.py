"""The cache of a decoder that continues prompts: keys and values of all layers, and which ones each branch sees.

The branches of a prompt share its keys and values, and those of an encoder's states. Their own keys and values follow,
step by step, and never move: `seen` [b, n, slots] selects the slots that each branch descends from, and `places`
[b, slots] are their positions.
"""

import jax
import jax.numpy as jnp

from jtasks.errors import ConfigError
from jtasks.models.layers import Cache

OWN = ("key", "value")  # [depth, b, h, slots, d]
MEMORY = ("memory_key", "memory_value")  # [depth, b, h, s, d], of a stack with `cross`


def places(valid: jax.Array) -> jax.Array:
    """Return the learned position [b, t] of each token, counting only `valid` [b, t] tokens."""
    return jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)


def start(
    layers: Cache,
    valid: jax.Array,
    length: int,
    branches: int,
    max_length: int,
    memory_mask: jax.Array | None = None,
) -> Cache:
    """Return the cache after prompts, with room for what follows.

    Args:
      layers: the result of a stack that was called with an empty cache.
      valid: bool [b, t], False for padding of the prompts.
      length: maximum number of tokens that will follow.
      branches: number of sequences that continue each prompt.
      max_length: number of the model's positions.
      memory_mask: bool [b, s], False for padding of the memory; None: no padding or no memory.

    Raises:
      ConfigError: prompt and continuation exceed the model's positions.
    """
    (b, t), slots = valid.shape, branches * max(length - 1, 1)  # the last token needs no slot, but traced loops do
    if t + length - 1 > max_length:
        raise ConfigError(f"a prompt of {t} and {length} tokens more, but the model has {max_length} positions")
    room = ((0, 0), (0, 0), (0, 0), (0, slots), (0, 0))
    return {
        **{name: jnp.pad(layers[name], room) for name in OWN},
        **{name: layers[name] for name in MEMORY if name in layers},
        **({} if memory_mask is None else {"memory_mask": memory_mask}),
        "places": jnp.pad(places(valid), ((0, 0), (0, slots))),
        "seen": jnp.broadcast_to(jnp.pad(valid, ((0, 0), (0, slots)))[:, None], (b, branches, t + slots)),
        "place": jnp.sum(valid, axis=1, dtype=jnp.int32),
        "slot": jnp.int32(t),
    }


def layers(cache: Cache) -> Cache:
    """Return the part of a cache that a stack reads, with the layers as first axis."""
    return {name: cache[name] for name in (*OWN, *MEMORY) if name in cache}


def append(cache: Cache, new: Cache) -> Cache:
    """Return the cache with keys and values of one more token of each branch, the result of a stack."""
    b, n, _ = cache["seen"].shape
    slot = cache["slot"]
    stored = {name: jax.lax.dynamic_update_slice_in_dim(cache[name], new[name], slot, axis=3) for name in OWN}
    own = jnp.broadcast_to(jnp.eye(n, dtype=bool), (b, n, n))
    seen = jax.lax.dynamic_update_slice_in_dim(cache["seen"], own, slot, axis=2)
    rows = jnp.broadcast_to(cache["place"][:, None], (b, n))
    filled = jax.lax.dynamic_update_slice_in_dim(cache["places"], rows, slot, axis=1)
    return {**cache, **stored, "places": filled, "seen": seen, "place": cache["place"] + 1, "slot": slot + n}


def reorder_branches(cache: Cache, parents: jax.Array) -> Cache:
    """Return the cache with each branch continuing its parent in `parents` [b, n]; keys and values stay in place."""
    return cache | {"seen": jnp.take_along_axis(cache["seen"], parents[..., None], axis=1)}


def at_last(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the row [b, d] of `x` [b, t, d] at the last `valid` position [b, t] of each sequence."""
    last = jnp.max(jnp.where(valid, jnp.arange(valid.shape[1])[None], 0), axis=1)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
