"""Adapters: a run that trains small additions to the parameters of config.init_from, which stay as they are.

The trained arrays are the parameters of the run's state: the optimizer, the moving average and the checkpoints hold
them alone. They are the low-rank matrices of `models.lora`, and whole parameters: those that config.init_from lacks,
such as a new head, and those that config.adapter.train matches. The frozen parameters are the base. DIR/adapter.json
says which base that is, by a checksum of each parameter, so that no run goes on beside other parameters.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtasks.config import Config
from jtasks.distributed import processes, sharding
from jtasks.errors import CheckpointError, ConfigError, DataError
from jtasks.faults import some
from jtasks.models import lora
from jtasks.run import transfer
from jtasks.run.job import Job
from jtasks.run.workdir import ADAPTER, read_json, record_file
from jtasks.tree import by_name, leaf_name


class Adapter(NamedTuple):
    """The arrays that a run trains on its frozen base."""

    layers: list[lora.Layer]  # with low-rank matrices
    whole: frozenset[str]  # names of parameters trained whole
    rank: int

    def trained(self, params: Any, rng: jax.Array) -> dict[str, jax.Array]:
        """Return the trained arrays by name, before the first step."""
        kept = {name: leaf for name, leaf in by_name(params).items() if name in self.whole}
        return lora.init(rng, self.layers, self.rank) | kept

    def base(self, params: Any) -> Any:
        """Return the frozen parameters, with None in place of those that are trained whole."""
        return jax.tree.map_with_path(lambda path, leaf: None if leaf_name(path) in self.whole else leaf, params)

    def describe(self, config: Config) -> str:
        """Describe the adapter in a few words."""
        whole = f", {some(sorted(self.whole), 4)} trained whole" if self.whole else ""
        return f"{config.adapter.kind} of rank {self.rank} on {len(self.layers)} layers{whole}, from {config.init_from}"


def shapes_of(init: Callable[[Any], Any], batch: Any) -> tuple[Any, dict[str, int]]:
    """Return the shapes of the parameters that `init` makes of a batch, and the heads of the modules by path."""
    with lora.recorded_heads() as heads:
        return jax.eval_shape(init, batch), heads


def make(job: Job, shapes: Any, heads: Mapping[str, int], whole: Collection[str] | None = None) -> Adapter | None:
    """Return what the run trains, None if its config has no adapter.

    Args:
      job: the run's job.
      shapes, heads: see `shapes_of`.
      whole: the parameters trained whole, as the run recorded them; None: find them by config.init_from.

    Raises:
      ConfigError: config.adapter fits no layer or parameter.
      CheckpointError, DataError: config.init_from cannot be read.
    """
    fields = job.config.adapter
    if not fields.kind:
        return None
    if whole is None:
        names = list(by_name(shapes))
        more = {name for name in names if fields.train and re.search(fields.train, name)}
        if fields.train and not more:
            raise ConfigError(
                f"config.adapter.train={fields.train!r} matches no parameter; some paths are {some(names, 8)}"
            )
        whole = more | transfer.absent_params(job, shapes)
    known = [layer for layer in lora.layers(shapes, heads) if layer.kernel not in whole]
    return Adapter(lora.match(fields.match, known, fields.rank), frozenset(whole), fields.rank)


def scale(config: Config) -> float:
    """Return the factor of the product of the two matrices, alpha / rank."""
    fields = config.adapter
    return 1.0 if fields.alpha is None else fields.alpha / fields.rank


def full(config: Config, params: Any, base: Any) -> Any:
    """Return the whole parameters on the devices, for evaluation: `params` itself if there is no base.

    Kernels without an adapter are shared with the base, not copied.
    """
    if base is None:
        return params
    return lora.merge(base, params, scale(config), lambda kernel, *rest: _adder(kernel.sharding)(kernel, *rest))


@functools.cache
def _adder(sharding: Any) -> Any:
    return jax.jit(lora.add_pairs, static_argnums=2, out_shardings=sharding)


def on_base(function: Callable[..., Any], *, base: Any, config: Config, mesh: Any = None) -> Callable[..., Any]:
    """Return a function of (whole parameters, ...) as one of (trained arrays, ...), for use inside a jitted function.

    The whole parameters are sharded over `mesh` by the rules. CPUs gather the base only after the trained arrays: see
    `sharding.after`. Without a base it is the function itself.
    """
    if base is None:
        return function

    def run(params: Any, *rest: Any) -> Any:
        frozen, names = base, named(params, base)
        if mesh is not None and mesh.size > 1:
            places = [sharding.shardings(tree, names, mesh, config.sharding) for tree in (base, params)]
            specs = [jax.tree.map(lambda place: place.spec, tree) for tree in places]
            frozen = sharding.after(base, specs[0], jax.lax.stop_gradient(params), specs[1], mesh)
        whole = lora.merge(frozen, params, scale(config))
        return function(sharding.constrain_params(whole, mesh, config.sharding), *rest)

    return run


def record(workdir: pathlib.Path, config: Config, adapter: Adapter, base: Any) -> None:
    """Write adapter.json: what is trained whole, and the checksum of each parameter of the base."""
    content = {"init_from": config.init_from, "whole": sorted(adapter.whole), "base": checksums(base)}
    processes.on_first_process(lambda: record_file(workdir, ADAPTER, json.dumps(content, indent=1) + "\n"))


def recorded(workdir: pathlib.Path) -> dict[str, Any]:
    """Return the content of adapter.json; raise ConfigError if it is missing."""
    content = processes.broadcast_from_first(lambda: read_json(workdir / ADAPTER))
    if not content:
        raise ConfigError(
            f"{workdir / ADAPTER} is missing, which a run with config.adapter writes: restore it from a copy"
        )
    return content


def whole(config: Config, workdir: pathlib.Path, start: int) -> list[str] | None:
    """Return what a run resumed from step `start` trains whole; None for a fresh run, or one without an adapter."""
    return list(recorded(workdir)["whole"]) if start and config.adapter.kind else None


def load_base(job: Job, shapes: Any, adapter: Adapter, workdir: pathlib.Path) -> Any:
    """Read the base of the run in `workdir` again from config.init_from, onto the devices.

    Args:
      job: the run's job.
      shapes: those of all parameters.
      adapter: what the run trains.
      workdir: the run's folder.

    Raises:
      ConfigError: config.init_from is gone, or is not the base that the adapter was trained with.
    """
    source = job.config.init_from
    hint = (
        f"\nThe run in {workdir} holds an adapter alone; its other parameters are those of its base, which was"
        f" {recorded(workdir)['init_from']}. If the base has moved, say where it is now: --config.init_from=PATH"
    )
    zeros = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=job.shardings(shapes, shapes)
    )
    try:
        transfer.require_source(source)
        params, _ = transfer.transfer_params(job, zeros(), stored=workdir)
    except (ConfigError, CheckpointError, DataError) as error:
        raise ConfigError(f"{error}{hint}") from error
    base = adapter.base(params)
    before, now = recorded(workdir)["base"], checksums(base)
    if different := [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]:
        raise ConfigError(
            f"config.init_from={source} is not the base of the run in {workdir}: {len(different)} of {len(now)}"
            f" parameters differ, such as {some(different, 3)}{hint}"
        )
    return base


def checksums(tree: Any) -> dict[str, str]:
    """Return a checksum of each array by name, the same for any sharding: a hash of each number and its place, summed.

    Guards against another model or another checkpoint, not against an attacker.
    """
    sums: Any = jax.device_get(_checksums(by_name(tree)))
    return {name: f"{int(value):08x}" for name, value in sums.items()}


@jax.jit
def _checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def mix(x: jax.Array) -> jax.Array:  # MurmurHash3's finalizer
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    def one(array: jax.Array) -> jax.Array:
        if array.dtype == jnp.bool_:
            array = array.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
        place = jnp.zeros(array.shape, jnp.uint32)
        for axis, length in enumerate(array.shape):
            place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        return jnp.sum(mix(bits ^ mix(place + jnp.uint32(1))), dtype=jnp.uint32)

    return {name: one(array) for name, array in arrays.items()}


def named(trained: Mapping[str, Any], base: Any) -> dict[str, Any]:
    """Return the trained and the frozen arrays by name: what the rules of config.sharding are about."""
    return by_name(base) | dict(trained)


def restored(job: Job, shapes: Any, heads: Mapping[str, int], workdir: pathlib.Path) -> tuple[Any, Any]:
    """Return the shapes of the arrays that the run in `workdir` trains, with shardings, and its base."""
    adapter = make(job, shapes, heads, recorded(workdir)["whole"])
    assert adapter is not None
    trained = jax.eval_shape(lambda params: adapter.trained(params, jax.random.key(0)), shapes)
    places = job.shardings(trained, named(trained, adapter.base(shapes)))
    return sharding.with_shardings(trained, places), load_base(job, shapes, adapter, workdir)
