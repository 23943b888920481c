"""Layers of a stack, whose parameters are scanned along a leading axis: frozen, slowed or optimized one by one.

The parameter of layer i is row i of a leaf such as `blocks/up/kernel` [depth, ...], and is named `blocks/i/up/kernel`
here.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtasks.errors import ConfigError
from jtasks.tree import leaf_name

STACK = re.compile(r"(^|/)blocks/(?!\d+(/|$))")  # numbered layers are not stacked

# Parameters before the layers of a backbone, or of one of two towers.
INPUTS = re.compile(r"(^|/)(tokens|token|position|type|kind|embed|project)(/|$)")


def depth(name: str, leaf: Any) -> int:
    """Return the number of layers stacked in a leaf; 0 for a leaf outside stacks."""
    shape = getattr(leaf, "shape", ())
    return shape[0] if STACK.search(name) and shape else 0


def matching(regex: str, params: Any) -> Any:
    """Return a tree shaped as `params` that says whether `re.search` finds `regex` in a parameter's path.

    Leaves are bools, or bool arrays [depth, 1, ...] if only some layers of a stack match.

    >>> params = {"blocks": {"bias": np.zeros((3, 2))}, "head": {"bias": np.zeros(2)}}
    >>> matching("^blocks/[01]/", params)["blocks"]["bias"].tolist()
    [[True], [True], [False]]
    >>> matching("bias", params)
    {'blocks': {'bias': True}, 'head': {'bias': True}}
    """

    def one(keys: tuple[Any, ...], leaf: Any) -> bool | np.ndarray:
        name = leaf_name(keys)
        if re.search(regex, name):
            return True
        place, layers = STACK.search(name), range(depth(name, leaf))
        hits = [bool(place and re.search(regex, f"{name[: place.end()]}{i}/{name[place.end() :]}")) for i in layers]
        if all(hits) or not any(hits):
            return bool(hits) and all(hits)
        return np.array(hits).reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree.map_with_path(one, params)


def one_by_one(transformation: optax.GradientTransformation, params: Any) -> optax.GradientTransformation:
    """Return a transformation that treats each layer of a stacked leaf [depth, ...] as a leaf of its own.

    Needed by optimizers with statistics of whole leaves, such as LAMB's trust ratio (You et al. 2020,
    arXiv:1904.00962). Their state is stacked like the parameters, one row per layer; counts of updates stay scalars.
    """
    depths = jax.tree.map_with_path(lambda keys, leaf: depth(leaf_name(keys), leaf), params)
    kinds = {layers: _vmap(transformation, layers) if layers else transformation for layers in jax.tree.leaves(depths)}
    return optax.partition(kinds, depths) if any(kinds) else transformation


def _vmap(transformation: optax.GradientTransformation, layers: int) -> optax.GradientTransformation:
    """Return `jax.vmap` of a transformation over the leading axis [layers, ...] of all leaves except counts."""

    def axes(state: Any) -> Any:
        return jax.tree.map(lambda x: None if not x.ndim and jnp.issubdtype(x.dtype, jnp.integer) else 0, state)

    def init(params: Any) -> Any:
        row = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[0], tree), params)
        over = axes(jax.eval_shape(transformation.init, row))
        return jax.vmap(transformation.init, out_axes=over, axis_size=layers)(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        over = axes(state)
        return jax.vmap(transformation.update, (0, over, 0), (0, over), axis_size=layers)(updates, state, params)

    return optax.GradientTransformation(init, update)


def rates(decay: float, embeddings: str, params: Any) -> Any:
    """Return learning-rate factors that fall from the head to the embeddings (Clark et al. 2020, ELECTRA).

    The last of n layers has `decay`, the one before it decay ** 2, the first decay ** n, and the parameters before the
    layers decay ** (n + 1). All other parameters, such as a head's, have 1.

    Args:
      decay: above 0 and at most 1.
      embeddings: regex of the parameters before the first layer; "": names in the backbones of `jtasks.models`.
      params: nested dict of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      Floats, or float32 arrays [depth, 1, ...] for the leaves of a stack.

    Raises:
      ConfigError: there is no stack of layers, or nothing before it.

    >>> params = {"blocks": {"bias": np.zeros((2, 3))}, "head": {"bias": 0}, "tokens": {"embedding": 0}}
    >>> factors = rates(0.5, "^tokens/", params)
    >>> factors["blocks"]["bias"].tolist(), factors["head"], factors["tokens"]
    ([[0.25], [0.5]], {'bias': 1.0}, {'embedding': 0.125})
    """
    names = {leaf_name(keys): leaf for keys, leaf in jax.tree.leaves_with_path(params)}
    layers = max(depth(name, leaf) for name, leaf in names.items())
    first = [name for name in names if _is_input(name, embeddings, names) and not STACK.search(name)]
    if not layers or not first:
        lacking = f"config.optim.embeddings={embeddings!r} matches none" if layers else "there is no stack `blocks/`"
        raise ConfigError(
            f"config.optim.layer_decay={decay} needs layers and parameters before them, and {lacking};"
            f" some parameters are {', '.join(list(names)[:8])}"
        )

    def one(keys: tuple[Any, ...], leaf: Any) -> float | np.ndarray:
        name = leaf_name(keys)
        if own := depth(name, leaf):
            factors = np.float32(decay) ** np.arange(own, 0, -1, dtype=np.float32)
            return factors.reshape(-1, *[1] * (leaf.ndim - 1))
        tower = name.partition("/")[0] + "/"  # each of two towers has layers of its own
        own = max((depth(other, x) for other, x in names.items() if other.startswith(tower)), default=0)
        return decay ** ((own or layers) + 1) if name in first else 1.0

    return jax.tree.map_with_path(one, params)


def _is_input(name: str, embeddings: str, names: Any) -> bool:
    if embeddings:
        return re.search(embeddings, name) is not None
    # BERT, the only one with token types, normalizes its embeddings; other backbones' `norm` follows the layers.
    bert = any(other.startswith("type/") for other in names)
    return INPUTS.search(name) is not None or (bert and name.startswith("norm/"))
