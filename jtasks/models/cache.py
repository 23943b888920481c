"""The cache of a decoder that continues prompts: keys and values of all layers, and which ones each branch sees.

The branches of a prompt share its keys and values, and those of an encoder's states. Their own keys and values follow,
step by step, and never move: `seen` [b, n, slots] selects the slots that each branch descends from, and `places`
[b, slots] are their positions.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks.errors import ConfigError
from jtasks.models.blocks import single
from jtasks.models.dense import transpose_kernels
from jtasks.models.layers import Cache

OWN = ("key", "value")  # of each layer, [b, h, slots, d]
MEMORY = ("memory_key", "memory_value")  # of each layer of a stack with `cross`, [b, h, s, d]


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
    room = dict.fromkeys(OWN, ((0, 0), (0, 0), (0, slots), (0, 0)))
    return {
        # An array a layer: a loop over tokens then writes in place, and copies no layer to read it.
        **{name: tuple(jnp.pad(x, room[name]) for x in layers[name]) for name in OWN},
        **{name: tuple(layers[name]) for name in MEMORY if name in layers},
        **({} if memory_mask is None else {"memory_mask": memory_mask}),
        "places": jnp.pad(places(valid), ((0, 0), (0, slots))),
        "seen": jnp.broadcast_to(jnp.pad(valid, ((0, 0), (0, slots)))[:, None], (b, branches, t + slots)),
        "place": jnp.sum(valid, axis=1, dtype=jnp.int32),
        "slot": jnp.int32(t),
    }


def unstack(blocks: nn.Module) -> Cache:
    """Return the parameters of each layer of a stack as `layers`, for a cache that many calls of `extend` use.

    Made outside a loop over tokens, they are copied once instead of for each token.
    """
    params = blocks.variables["params"]
    layers = (jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(blocks.depth))
    return {"layers": tuple(transpose_kernels(layer) for layer in layers)}


def extend(
    blocks: nn.Module, x: jax.Array, cache: Cache, bias: Callable[[jax.Array], jax.Array] | None = None
) -> tuple[jax.Array, Cache]:
    """Run a stack on one more token of each branch, `x` [b, n, d]; return its output [b, n, d] and the cache.

    Args:
      blocks: a stack of `blocks.stack` in a bound module.
      bias: returns the bias [b, h, 1, slots] of scores by the distances [b, slots] of the slots from the new tokens.
    """
    b, n, _ = cache["seen"].shape
    slot, place = cache["slot"], cache["place"]
    own = jnp.broadcast_to(jnp.eye(n, dtype=bool), (b, n, n))
    seen = jax.lax.dynamic_update_slice_in_dim(cache["seen"], own, slot, axis=2)
    filled = jnp.broadcast_to(place[:, None], (b, n))
    filled = jax.lax.dynamic_update_slice_in_dim(cache["places"], filled, slot, axis=1)
    options = cache.get("memory_mask"), None if bias is None else bias(filled - place[:, None])
    block, names = single(blocks), [name for name in (*OWN, *MEMORY) if name in cache]
    layers = cache["layers"] if "layers" in cache else unstack(blocks)["layers"]
    stored: list[Any] = []
    for i, params in enumerate(layers):
        past = {name: cache[name][i] for name in names} | {"slot": slot}
        x, (new, _) = block.apply({"params": params}, x, past, seen, True, None, *options)
        stored.append(new)
    keys = {name: tuple(new[name] for new in stored) for name in OWN}
    return x, {**cache, **keys, "places": filled, "seen": seen, "place": place + 1, "slot": slot + n}


def reorder_branches(cache: Cache, parents: jax.Array) -> Cache:
    """Return the cache with each branch continuing its parent in `parents` [b, n]; keys and values stay in place."""
    return cache | {"seen": jnp.take_along_axis(cache["seen"], parents[..., None], axis=1)}


def at_last(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the row [b, d] of `x` [b, t, d] at the last `valid` position [b, t] of each sequence."""
    last = jnp.max(jnp.where(valid, jnp.arange(valid.shape[1])[None], 0), axis=1)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
