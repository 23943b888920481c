"""Where arrays live: a mesh from `config.mesh`, rules that divide parameters over it, and arrays put on it.

The mesh has three axes. A batch is divided over `data` and `fsdp`. Parameters, their gradients and the
optimizer's state are divided over `fsdp`, which saves memory: the device that computes with a parameter gathers
it first (fully sharded data parallelism; ZeRO, Rajbhandari et al. 2020). `tensor` divides the computation itself:
heads, hidden units, vocabulary (Megatron-LM, Shoeybi et al. 2019).

A rule is a pair (regex, spec): the first whose regex `re.search` finds in a parameter's path, such as
`blocks/up/kernel`, says how it is divided. Those of `config.sharding` come before RULES:

    config.sharding = (("head/kernel$", ("fsdp", "tensor?")), ("embedding$", "fsdp?"), ("norm", ()))

A spec has an entry a dimension: None, an axis, or a tuple of axes; dimensions it does not reach stay whole. An axis
that does not divide its dimension is an error, unless written with a question mark: `fsdp?` is then left out.
In place of the tuple an axis alone divides the largest dimension that it can.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jtasks.errors import ConfigError
from jtasks.tree import leaf_name

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

Spec = str | Sequence[Any]
Rules = Sequence[tuple[str, Spec]]

# Layers stacked along a leading axis by scan: these are gathered a layer at a time, all else before the first use.
STACKED = r"(^|/)blocks/"
RULES: Rules = (
    (STACKED + r".*(query_key_value|up)/kernel$", (None, "fsdp?", "tensor?")),  # by heads, by hidden units
    (STACKED + r".*(query_key_value|up)/bias$", (None, ("tensor?", "fsdp?"))),
    (STACKED + r".*(output|down)/kernel$", (None, "tensor?", "fsdp?")),
    (STACKED, (None, "fsdp?")),
    (r"tokens/embedding$", ("tensor?", "fsdp?")),
    (r"head/kernel$", ("fsdp?", "tensor?")),
    (r"", "fsdp?"),
)


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """A mesh of `data`, `fsdp` and `tensor` over all devices; one axis may be -1 and takes what the others leave.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    sizes, devices = dict.fromkeys(AXES, 1) | dict(axes), jax.device_count()
    said = f"config.mesh={dict(axes)}"
    if unknown := [axis for axis in sizes if axis not in AXES]:
        raise ConfigError(f"{said} has the axis {unknown[0]}; those there are: {', '.join(AXES)}")
    open_ = [axis for axis, size in sizes.items() if size == -1]
    if len(open_) > 1 or any(size < 1 for axis, size in sizes.items() if axis not in open_):
        raise ConfigError(f"{said}: each size must be at least 1, and only one may be -1, to take all that is left")
    given = math.prod(size for size in sizes.values() if size != -1)
    if open_ and devices % given == 0:
        sizes[open_[0]] = devices // given
    if math.prod(sizes.values()) != devices:
        raise ConfigError(f"{said} asks for {'a multiple of ' * bool(open_)}{given}, but there are {devices} devices")
    # Explicit axes, the default of jax.make_mesh, keep embedding lookups from tracing.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def num_batch_shards(mesh: Any) -> int:
    """How many parts a batch is divided into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension is divided over the devices, but for those along `tensor`, which hold the same."""
    return NamedSharding(mesh, _batch_spec(mesh))


def _batch_spec(mesh: Any) -> PartitionSpec:
    return PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.shape))


def local_rows(sharding: NamedSharding, size: int) -> np.ndarray:
    """Rows [0, size) of a global batch which this process's devices hold, ascending."""
    slices = {s[0].indices(size)[:2] for s in sharding.addressable_devices_indices_map((size,)).values() if s}
    return np.concatenate([np.arange(start, stop) for start, stop in sorted(slices)])


def put(batch: Mapping[str, np.ndarray], sharding: NamedSharding, rows: np.ndarray, size: int) -> dict[str, jax.Array]:
    """Global arrays [size, ...] from this process's `rows` of them."""
    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)

    def place(array: np.ndarray) -> jax.Array:
        def block(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return array[slice(*np.searchsorted(rows, (start, stop)))]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, block)

    return {name: place(array) for name, array in batch.items()}


def shardings(tree: Any, params: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """The sharding of each leaf of `tree`, which may be the parameters or any state that holds trees like them.

    A leaf goes by the parameter that its path ends in, if it has that one's shape, as the moments of an optimizer
    and averages do; all else is replicated.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`.
      params: the same, a nested dict.
      rules: tried before RULES.

    Raises:
      ConfigError: a rule is malformed or matches no parameter, or an axis does not divide what it must.
    """
    shapes = {leaf_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    _check(rules, shapes)
    specs = {name: _spec(name, shape, mesh, rules) for name, shape in shapes.items()}

    def of(path: Any, leaf: Any) -> NamedSharding:
        keys = leaf_name(path).split("/")
        ends = ("/".join(keys[start:]) for start in range(len(keys)))
        known = (specs[end] for end in ends if end in specs and shapes[end] == leaf.shape)
        return NamedSharding(mesh, next(known, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(of, tree)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Return the shapes as `jax.ShapeDtypeStruct` with the shardings of their arrays."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def on_mesh(mesh: Mesh | None, rules: Rules, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of (params, ...) as it runs over a mesh: divided parameters are gathered where they are used.

    Layers stacked by scan stay divided until their turn comes, for which models say `divided` of their activations.
    Left to itself the compiler may divide activations as it finds the parameters divided, and compute twice.
    """
    if mesh is None or mesh.size == 1:
        return function

    def run(params: Any, *rest: Any) -> Any:
        def held(path: Any, sharding: NamedSharding) -> PartitionSpec:
            return (
                sharding.spec if re.search(STACKED, leaf_name(path)) else PartitionSpec(*map(_without, sharding.spec))
            )

        specs = jax.tree_util.tree_map_with_path(held, shardings(params, params, mesh, rules))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
            gathered = jax.lax.with_sharding_constraint(params, where)
            return function(after(gathered, specs, gathered, specs, mesh), *rest)

    return run


def params_after(params: Any, earlier: Any, mesh: Mesh | None, rules: Rules) -> Any:
    """Parameters divided by the rules, on CPUs gathered only after the whole arrays `earlier` are computed."""
    if mesh is None or mesh.size == 1:
        return params
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings(params, params, mesh, rules))
    return after(params, specs, earlier, PartitionSpec(), mesh)


def constrained(params: Any, mesh: Mesh | None, rules: Rules = ()) -> Any:
    """Parameters, or their gradients, divided by the rules, inside a jitted function."""
    if mesh is None or mesh.size == 1:
        return params
    return jax.lax.with_sharding_constraint(params, shardings(params, params, mesh, rules))


def after(tree: Any, specs: Any, earlier: Any, earlier_specs: Any, mesh: Mesh) -> Any:
    """`tree` unchanged; on CPUs, XLA computes with it only once `earlier` is computed.

    XLA:CPU runs a loop that holds collectives beside other collectives, in any order and on a pool of few threads.
    Devices that begin with different ones then wait for each other forever, unless one needs what the other gives.
    A barrier does not help, because XLA drops it. So a look at `earlier` decides between `tree` and zeros, by a
    comparison that no number passes and that XLA does not see through. Each device looks at its own part.
    """
    if mesh.devices.flat[0].platform != "cpu" or not any(x.size for x in jax.tree.leaves(earlier)):
        return tree

    def choose(tree: Any, earlier: Any) -> Any:
        first = jnp.stack([jnp.ravel(x)[0].astype(jnp.float32) for x in jax.tree.leaves(earlier) if x.size])
        never = jnp.any(jax.lax.bitcast_convert_type(first, jnp.uint32) >> 1 > jnp.uint32(2**31))
        return jax.tree.map(lambda x: jnp.where(never, jnp.zeros_like(x), x), tree)

    chosen = jax.shard_map(choose, mesh=mesh, in_specs=(specs, earlier_specs), out_specs=specs, check_vma=False)
    chain = jax.custom_jvp(chosen)  # its derivative is that of the identity: shard_map's would sum over devices again
    chain.defjvp(lambda primals, tangents: (chain(*primals), tangents[0]))
    return chain(tree, jax.lax.stop_gradient(earlier))


def constrain_batch(x: jax.Array) -> jax.Array:
    """Activations [b, ...] divided as the batch is, in a function that runs `over` a mesh; elsewhere as they are."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or x.shape[0] % num_batch_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, _batch_spec(mesh))


def _without(entry: Any) -> Any:
    """An entry of a PartitionSpec without the axes that parameters are divided over to save memory alone."""
    axes = entry if isinstance(entry, tuple) else (entry,)
    kept = tuple(axis for axis in axes if axis not in (None, *BATCH_AXES))
    return kept if len(kept) > 1 else kept[0] if kept else None


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    regex, spec = next(rule for rule in (*rules, *_fitting(shape)) if re.search(rule[0], name))
    if isinstance(spec, str):
        spec = _largest(spec, shape, mesh)
    if len(spec) > len(shape):
        raise ConfigError(f"config.sharding: {tuple(spec)}, for {regex!r}, is longer than {name} {list(shape)}")
    entries: list[tuple[str, ...]] = []
    for dimension, entry in enumerate(spec):
        taken: list[str] = []
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            plain, over_ = axis.removesuffix("?"), [*taken, axis.removesuffix("?")]
            if shape[dimension] % math.prod(_size(mesh, a) for a in over_) == 0:
                taken = over_
            elif plain == axis:
                sizes = " x ".join(f"{a}={_size(mesh, a)}" for a in over_)
                raise ConfigError(
                    f"config.sharding: {name} {list(shape)} cannot be divided by {sizes} in dimension {dimension}:"
                    f" change config.mesh or the size, or write {axis + '?'!r} to leave such a parameter whole"
                )
        entries.append(tuple(axis for axis in taken if _size(mesh, axis) > 1))
    return PartitionSpec(*(entry if len(entry) > 1 else entry[0] if entry else None for entry in entries))


def _fitting(shape: tuple[int, ...]) -> Rules:
    """Those of RULES whose specs are not too long, as for a parameter of the user's with the name of one of ours."""
    return [(regex, spec) for regex, spec in RULES if isinstance(spec, str) or len(spec) <= len(shape)]


def _largest(axis: str, shape: tuple[int, ...], mesh: Mesh) -> list[str | None]:
    """The spec that divides the largest dimension that `axis` divides; the first of all where it divides none."""
    size = _size(mesh, axis.removesuffix("?"))
    possible = [d for d, length in enumerate(shape) if length % size == 0] or list(range(len(shape)))[:1]
    chosen = max(possible, key=lambda d: shape[d], default=None)
    return [axis if d == chosen else None for d in range(len(shape))]


def _size(mesh: Mesh, axis: str) -> int:
    return mesh.shape.get(axis, 1)


def check_form(rules: Any) -> None:
    """Raise ConfigError where config.sharding is malformed, whatever the parameters are."""
    for rule in rules:
        if not isinstance(rule, Sequence) or isinstance(rule, str) or len(rule) != 2 or not isinstance(rule[0], str):
            raise ConfigError(f"config.sharding must be a tuple of pairs (regex, spec); {rule!r} is none")
        regex, spec = rule
        entries = (spec,) if isinstance(spec, str) else spec
        if not isinstance(entries, Sequence):
            raise ConfigError(f"config.sharding: the spec for {regex!r} must be an axis or a tuple, not {spec!r}")
        axes = [a for entry in entries for a in _axes(entry)]
        if unknown := [axis for axis in axes if str(axis).removesuffix("?") not in AXES]:
            raise ConfigError(f"config.sharding: {unknown[0]!r}, for {regex!r}, is no axis; they are {', '.join(AXES)}")
        if len(set(plain := [axis.removesuffix("?") for axis in axes])) < len(plain):
            raise ConfigError(f"config.sharding: {spec!r}, for {regex!r}, has an axis twice")
        try:
            re.compile(regex)
        except re.error as error:
            raise ConfigError(f"config.sharding: {regex!r} is not a regular expression: {error}") from error


def _axes(entry: Any) -> Sequence[Any]:
    """The axes in an entry of a spec; what is no entry at all, as it is."""
    return () if entry is None else entry if isinstance(entry, tuple | list) else (entry,)


def _check(rules: Rules, names: Mapping[str, Any]) -> None:
    check_form(rules)
    for regex, _ in rules:
        if not any(re.search(regex, name) for name in names):
            some = ", ".join(list(names)[:8])
            raise ConfigError(f"config.sharding: {regex!r} matches no parameter; their paths are such as {some}")
