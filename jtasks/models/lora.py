"""Low-rank adapters of linear layers: LoRA (Hu et al. 2022, arXiv:2106.09685), as functions on parameters.

An adapter is a flat dict of arrays by "/"-joined name. The layer `blocks/up` with the kernel W [in, out] gets
`blocks/up/lora_a/kernel`, A [in, rank], and `blocks/up/lora_b/kernel`, B [rank, out]; its kernel is then
W + scale * A @ B. B starts at 0, so that the model starts unchanged. Stacked layers have a leading axis [depth, ...].

A fused kernel such as `attention/query_key_value/kernel` holds the columns of several layers, which alternate head by
head. Here each of these is a layer of its own, such as `attention/query`, with B [rank, heads, size].
"""

import contextlib
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks.errors import ConfigError
from jtasks.faults import some
from jtasks.optim.layerwise import depth
from jtasks.ranges import did_you_mean
from jtasks.tree import by_name, leaf_name

FUSED = ("query_key_value", "key_value")  # names of layers that compute several projections at once
A, B = "/lora_a/kernel", "/lora_b/kernel"  # after the name of a layer


class Layer(NamedTuple):
    """A linear layer that can have an adapter.

    Attributes:
      name: "/"-joined path of the layer, such as `blocks/attention/query`.
      kernel: path of the parameter that holds its columns.
      a, b: shapes of A and B for rank 1.
    """

    name: str
    kernel: str
    a: tuple[int, ...]
    b: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """The numbers of inputs and outputs."""
        return self.a[-2], math.prod(self.b[len(self.a) - 1 :])


@contextlib.contextmanager
def recorded_heads() -> Iterator[dict[str, int]]:
    """Yield a dict that gets the number of heads of each module that runs inside, by "/"-joined path."""
    heads: dict[str, int] = {}

    def record(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
        if isinstance(number := getattr(context.module, "heads", None), int):
            heads["/".join(context.module.path)] = number
        return call(*arguments, **options)

    with nn.intercept_methods(record):
        yield heads


def layers(shapes: Any, heads: Mapping[str, int]) -> list[Layer]:
    """Return the layers that can have an adapter: matrices, or stacks of them, except tables of embeddings.

    Args:
      shapes: parameters, or their shapes.
      heads: from `recorded_heads` around the initialization.
    """
    result = []
    for name, leaf in by_name(shapes).items():
        stack = leaf.shape[:1] if depth(name, leaf) else ()
        if leaf.ndim != len(stack) + 2 or name.endswith("embedding") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        module, (inputs, outputs) = name.removesuffix("/kernel"), leaf.shape[-2:]
        split, count = parts(module), heads.get(module) or heads.get(module.rpartition("/")[0])
        columns: tuple[int, ...] = (outputs,)
        if split and count and outputs % (count * len(split)) == 0:
            columns = (count, outputs // (count * len(split)))
        for part in split if len(columns) == 2 else [module]:
            result.append(Layer(part, name, (*stack, inputs, 1), (*stack, 1, *columns)))
    return result


def match(regex: str, known: list[Layer], rank: int) -> list[Layer]:
    """Return the layers whose name `re.search` finds `regex` in; a name of a fused layer stands for its parts.

    Raises:
      ConfigError: there is none, or a layer is smaller than the rank.
    """

    def hits(module: str) -> bool:
        return bool(re.search(regex, module) or re.search(regex, f"{module}/kernel"))

    by_part = {layer.kernel for layer in known if hits(layer.name)}
    chosen = [
        layer
        for layer in known
        if hits(layer.name) or (layer.kernel not in by_part and hits(layer.kernel.removesuffix("/kernel")))
    ]
    names = [layer.name for layer in known]
    if not chosen:
        near = did_you_mean(regex, {name.rpartition("/")[2] for name in names})
        raise ConfigError(
            f"config.adapter.match={regex!r} matches no layer{near or ';'} the layers that can have an adapter are"
            f" {some(names, 24) or 'none: there is no matrix among the parameters'}"
        )
    for layer in chosen:
        if rank > min(layer.size):
            raise ConfigError(
                f"config.adapter.rank={rank} is larger than the kernel of {layer.name}, {list(layer.size)}: a rank of"
                f" {min(layer.size)} already expresses every change; lower it, or leave the layer out of"
                f" config.adapter.match={regex!r}"
            )
    return chosen


def init(rng: jax.Array, chosen: list[Layer], rank: int) -> dict[str, jax.Array]:
    """Return the adapter of the layers: A uniform in +-sqrt(1 / in), as in the authors' loralib, and B = 0.

    The numbers of a layer depend only on `rng` and its name.
    """
    adapter = {}
    for layer in chosen:
        key = jax.random.fold_in(rng, zlib.crc32(layer.name.encode()))
        bound, axis = layer.a[-2] ** -0.5, len(layer.a) - 2  # the axis of B that has the rank
        adapter[layer.name + A] = jax.random.uniform(key, (*layer.a[:-1], rank), minval=-bound, maxval=bound)
        adapter[layer.name + B] = jnp.zeros((*layer.b[:axis], rank, *layer.b[axis + 1 :]))
    return adapter


def merge(
    base: Any,
    adapter: Mapping[str, jax.Array],
    scale: float,
    add: Callable[..., jax.Array] | None = None,
) -> Any:
    """Return whole parameters: kernels with their adapters added, and arrays of the adapter where the base has None.

    Args:
      base: the frozen parameters; None in place of each parameter that is trained whole.
      adapter: arrays by name, from `init`, and the parameters that are trained whole.
      scale: factor of A @ B.
      add: what adds the pairs to a kernel; `add_pairs` by default.
    """

    def whole(path: tuple[Any, ...], leaf: Any) -> Any:
        name = leaf_name(path)
        if leaf is None:
            return adapter[name]
        module = name.removesuffix("/kernel")
        own = [(adapter.get(layer + A), adapter.get(layer + B)) for layer in [module, *parts(module)]]
        plain, fused = own[0], own[1:]
        # Of two layers of this name, the one of a fused kernel has the columns of B by head.
        fused = [(a, b) if b is not None and b.ndim == leaf.ndim + 1 else (None, None) for a, b in fused]
        if plain[0] is None and all(a is None for a, _ in fused):
            return leaf
        return (add or add_pairs)(leaf, [plain] if plain[0] is not None else fused, scale)

    return jax.tree_util.tree_map_with_path(whole, base, is_leaf=lambda leaf: leaf is None)


def add_pairs(kernel: jax.Array, pairs: list[tuple[Any, Any]], scale: float) -> jax.Array:
    """Return the kernel plus `scale` * A @ B: of one pair, or of one for each part of a fused kernel, None for none."""
    if len(pairs) == 1:
        a, b = pairs[0]
        product = jnp.matmul(a, b, precision="highest")
    else:
        size = next(b for _, b in pairs if b is not None).shape[-2:]  # heads, columns of a head
        none = jnp.zeros((*kernel.shape[:-1], *size), kernel.dtype)
        products = [
            none if a is None else jnp.einsum("...ir,...rhd->...ihd", a, b, precision="highest") for a, b in pairs
        ]
        product = jnp.stack(products, axis=-2).reshape(kernel.shape)
    return kernel + (scale * product).astype(kernel.dtype)


def parts(module: str) -> list[str]:
    """Return the names of the layers in a fused layer, in their order; none for another layer."""
    parent, slash, last = module.rpartition("/")
    return [f"{parent}{slash}{part}" for part in last.split("_")] if last in FUSED else []
