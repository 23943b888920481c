"""Where arrays live: a mesh from `config.mesh`, and arrays put on it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jtasks.errors import ConfigError


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """A mesh over all devices; one axis may be -1 and takes what the others leave.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    sizes, devices = dict(axes), jax.device_count()
    if set(sizes) != {"data"}:
        raise ConfigError(f"config.mesh has the axes {', '.join(sizes)}; the axis there is: data")
    if sizes["data"] == -1:
        sizes["data"] = devices
    if sizes["data"] != devices:
        raise ConfigError(f"config.mesh.data={sizes['data']}, but there are {devices} devices; -1 takes all")
    # Explicit axes, the default of jax.make_mesh, keep embedding lookups from tracing.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The leading dimension is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


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
