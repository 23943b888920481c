"""Sharding of arrays over a mesh from `config.mesh`; see `sharding_rules` for the rules that shard parameters.

The mesh has three axes. A batch is sharded over `data` and `fsdp`. Parameters, their gradients and the
optimizer's state are sharded over `fsdp`, which saves memory: the device that computes with a parameter gathers
it first (fully sharded data parallelism; ZeRO, Rajbhandari et al. 2020). `tensor` shards the computation itself:
heads, hidden units, vocabulary (Megatron-LM, Shoeybi et al. 2019).
"""

import contextlib
import contextvars
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jtasks.distributed.sharding_rules import STACKED, Rules, check, parameter_spec
from jtasks.errors import ConfigError
from jtasks.schema import AXES, BATCH_AXES
from jtasks.tree import leaf_name

_RULES: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=())


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh of `data`, `fsdp` and `tensor` over all devices, by default JAX's own.

    An axis of -1 takes all remaining devices.

    Raises:
      ConfigError: the product of the axes is not the number of devices.
    """
    sizes, count = dict.fromkeys(AXES, 1) | dict(axes), jax.device_count() if devices is None else len(devices)
    field = f"config.mesh={dict(axes)}"
    if unknown := [axis for axis in sizes if axis not in AXES]:
        raise ConfigError(f"{field} has the axis {unknown[0]}; expected one of {', '.join(AXES)}")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for axis, size in sizes.items() if axis not in free):
        raise ConfigError(f"{field}: each size must be at least 1, and only one may be -1, for all that remain")
    product = math.prod(size for size in sizes.values() if size != -1)
    if free and count % product == 0:
        sizes[free[0]] = count // product
    if math.prod(sizes.values()) != count:
        raise ConfigError(f"{field} asks for {'a multiple of ' * bool(free)}{product}, but there are {count} devices")
    # Explicit axes, the default of jax.make_mesh, keep embedding lookups from tracing.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def num_batch_shards(mesh: Any) -> int:
    """Return the number of shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding in which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of the leading dimension over `data` and `fsdp`; devices along `tensor` hold copies."""
    return NamedSharding(mesh, _batch_spec(mesh))


def _batch_spec(mesh: Any) -> PartitionSpec:
    return PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.shape))


def local_rows(sharding: NamedSharding, size: int) -> np.ndarray:
    """Return the rows in [0, size) of a global batch that this process's devices hold, ascending."""
    slices = {s[0].indices(size)[:2] for s in sharding.addressable_devices_indices_map((size,)).values() if s}
    return np.concatenate([np.arange(start, stop) for start, stop in sorted(slices)])


def put(batch: Mapping[str, np.ndarray], sharding: NamedSharding, rows: np.ndarray, size: int) -> dict[str, jax.Array]:
    """Make global arrays [size, ...] from this process's `rows`."""
    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)

    def place(array: np.ndarray) -> jax.Array:
        def block(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return array[slice(*np.searchsorted(rows, (start, stop)))]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, block)

    return {name: place(array) for name, array in batch.items()}


def shardings(tree: Any, params: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """Return the sharding of each leaf of `tree`: the parameters, or a state that holds trees like them.

    A leaf whose path ends in a parameter's path, and which has the parameter's shape, gets the parameter's sharding:
    moments of an optimizer and moving averages, for example. Other leaves are replicated.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`.
      params: a nested dict of arrays or `jax.ShapeDtypeStruct`.
      mesh: a mesh from `make_mesh`.
      rules: tried before RULES.

    Raises:
      ConfigError: a rule is malformed or matches no parameter, or an axis does not divide its dimension.
    """
    shapes = {leaf_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    check(rules, shapes)
    specs = {name: parameter_spec(name, shape, mesh, rules) for name, shape in shapes.items()}

    def of(path: Any, leaf: Any) -> NamedSharding:
        keys = leaf_name(path).split("/")
        ends = ("/".join(keys[start:]) for start in range(len(keys)))
        matches = (specs[end] for end in ends if end in specs and shapes[end] == leaf.shape)
        return NamedSharding(mesh, next(matches, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(of, tree)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Return the shapes as `jax.ShapeDtypeStruct` with the shardings of their arrays."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def on_mesh(mesh: Mesh | None, rules: Rules, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of (params, ...) that runs over a mesh and gathers sharded parameters before their use.

    Layers stacked by scan stay sharded until they run; so models call `constrain_batch` on their activations.
    Without this constraint XLA may shard activations like the parameters and duplicate the computation.
    """
    if mesh is None:
        return function

    def run_on_one(*arguments: Any) -> Any:
        device = mesh.abstract_mesh.abstract_device  # the models' kernels depend on its platform
        with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
            return function(*arguments)

    def run(params: Any, *rest: Any) -> Any:
        def held(path: Any, sharding: NamedSharding) -> PartitionSpec:
            return (
                sharding.spec
                if re.search(STACKED, leaf_name(path))
                else PartitionSpec(*map(_drop_batch_axes, sharding.spec))
            )

        specs = jax.tree_util.tree_map_with_path(held, shardings(params, params, mesh, rules))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), _using(rules):
            where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
            gathered = jax.lax.with_sharding_constraint(params, where)
            return function(after(gathered, specs, gathered, specs, mesh), *rest)

    return run_on_one if mesh.size == 1 else run


def gathers_layers() -> bool:
    """Return whether the layers of a stack are gathered by `gather_layer` in the program that is being traced.

    XLA:CPU gathers each parameter where it is used: on few threads, loops with further collectives can stand still.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or mesh.shape.get("fsdp", 1) == 1:
        return False
    return mesh.abstract_device is not None and mesh.abstract_device.platform != "cpu"


def gather_layer(layer: Any, path: str, depth: int, dtype: Any) -> Any:
    """Return the parameters of one layer, gathered along `fsdp`; their gradients are sharded again.

    Without this, XLA for TPUs cuts products with sharded matrices into windows, whose parts it sends around. Whole
    matrices are gathered while the layer before computes.

    Args:
      layer: the parameters, sharded by the rules.
      path: of the stack, such as "blocks".
      depth: layers in the stack.
      dtype: of the computation, in which matrices are sent; None: their own.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    rules = _RULES.get()

    def gather(keys: Any, x: jax.Array) -> jax.Array:
        name = leaf_name(keys).removeprefix("params/")
        own = PartitionSpec(*parameter_spec(f"{path}/{name}", (depth, *x.shape), mesh, rules)[1:])
        whole = PartitionSpec(*map(_drop_batch_axes, own))
        constrain = jax.lax.with_sharding_constraint
        there = jax.custom_vjp(lambda x: constrain(x, whole))
        # First whole: XLA would cut a product whose result it has to divide into windows too.
        back = lambda _, cotangent: (constrain(constrain(cotangent, whole), own),)  # noqa: E731
        there.defvjp(lambda x: (constrain(x, whole), None), back)
        return there(x.astype(dtype) if dtype is not None and x.ndim > 1 else x)

    return jax.tree_util.tree_map_with_path(gather, layer)


@contextlib.contextmanager
def _using(rules: Rules) -> Iterator[None]:
    """Give `gather_layer` the rules of the config while a function is traced, as JAX does with the mesh."""
    token = _RULES.set(rules)
    try:
        yield
    finally:
        _RULES.reset(token)


def params_after(
    params: Any, earlier: Any, mesh: Mesh | None, rules: Rules, *, divided: bool = False, names: Any = None
) -> Any:
    """Return the parameters, sharded by the rules; CPUs gather them only after the arrays `earlier`.

    The arrays `earlier` are replicated, or `divided` like a batch. `names` are all parameters that the rules are about,
    if `params` are only some of them.
    """
    if mesh is None or mesh.size == 1:
        return params
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings(params, names or params, mesh, rules))
    return after(params, specs, earlier, _batch_spec(mesh) if divided else PartitionSpec(), mesh)


def constrain_params(params: Any, mesh: Mesh | None, rules: Rules = (), *, names: Any = None) -> Any:
    """Shard parameters, or their gradients, by the rules inside a jitted function; `names`: see `params_after`."""
    if mesh is None or mesh.size == 1:
        return params
    return jax.lax.with_sharding_constraint(params, shardings(params, names or params, mesh, rules))


def after(tree: Any, specs: Any, earlier: Any, earlier_specs: Any, mesh: Mesh) -> Any:
    """Return `tree` unchanged; on CPUs, XLA uses the result only after `earlier` is computed.

    XLA:CPU runs a loop with collectives beside other collectives, in any order and on a pool of few threads. Devices
    that start with different collectives then wait for each other forever, unless one depends on the other. XLA drops
    a barrier, so that does not help. So the values of `earlier` choose between `tree` and zeros, by a comparison that
    is always false but that XLA cannot simplify. Each device compares its own shard.
    """
    if mesh.devices.flat[0].platform != "cpu" or not any(x.size for x in jax.tree.leaves(earlier)):
        return tree

    def choose(tree: Any, earlier: Any) -> Any:
        first = jnp.stack([jnp.ravel(x)[0].astype(jnp.float32) for x in jax.tree.leaves(earlier) if x.size])
        never = jnp.any(jax.lax.bitcast_convert_type(first, jnp.uint32) >> 1 > jnp.uint32(2**31))
        return jax.tree.map(lambda x: jnp.where(never, jnp.zeros_like(x), x), tree)

    chosen = jax.shard_map(choose, mesh=mesh, in_specs=(specs, earlier_specs), out_specs=specs, check_vma=False)
    chain = jax.custom_jvp(chosen)  # the derivative of the identity: shard_map's would sum over devices again
    chain.defjvp(lambda primals, tangents: (chain(*primals), tangents[0]))
    return chain(tree, jax.lax.stop_gradient(earlier))


def constrain_batch(x: jax.Array, axis: int = 0) -> jax.Array:
    """Shard an axis of activations like the batch in a function that runs `on_mesh`; elsewhere return `x` unchanged."""
    if count_shards(x.shape[axis]) == 1:
        return x
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, *_batch_spec(mesh)))


def count_shards(size: int) -> int:
    """Return the number of shards of a batch of this size in a function that runs `on_mesh`; elsewhere 1."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or size % num_batch_shards(mesh):
        return 1
    return num_batch_shards(mesh)


def _drop_batch_axes(entry: Any) -> Any:
    """Return an entry of a PartitionSpec without the axes that only save memory."""
    axes = entry if isinstance(entry, tuple) else (entry,)
    kept = tuple(axis for axis in axes if axis not in (None, *BATCH_AXES))
    return kept if len(kept) > 1 else kept[0] if kept else None
