"""Attention kernels that JAX ships for accelerators; `models/attention.py` has the CPU form."""

import contextlib
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

CAUSAL = "causal_kernel"  # scope of a kernel that skips blocks of keys after the queries, for counts of operations
TILE = 128  # the TPU kernel's blocks of queries and keys


def on_gpu(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *, causal: bool, scale: float = 0.0
) -> jax.Array | None:
    """Return cuDNN's flash attention of arrays [b, h, t, d], or None if cuDNN does not support these arguments.

    Requires 16-bit inputs and head widths that are multiples of 8, at most 128. `mask` [b, 1, t, t] excludes causality,
    which is passed separately. `scale` is that of `models/attention.py`.
    """
    width = query.shape[-1]
    if query.dtype not in (jnp.bfloat16, jnp.float16) or width % 8 or width > 128:
        return None
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    mixed = jax.nn.dot_product_attention(
        query, key, value, mask=mask, scale=scale or None, is_causal=causal, implementation="cudnn"
    )
    return jnp.swapaxes(mixed, 1, 2)


def on_tpu(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array | None,
    *,
    causal: bool,
    scale: float = 0.0,
) -> jax.Array:
    """Return JAX's Pallas flash attention of arrays [b, h, t, d]; `models/attention.py` defines the arguments.

    Pads lengths to whole tiles. XLA cannot partition a kernel, so under a mesh (`jax.set_mesh`) each device runs the
    kernel on its own examples and heads.
    """
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention

    b, heads, t, width = query.shape
    if t % TILE:
        segment_ids = jnp.ones((b, t), jnp.int32) if segment_ids is None else segment_ids
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, -t % TILE)))
        query, key, value = (jnp.pad(x, ((0, 0), (0, 0), (0, -t % TILE), (0, 0))) for x in (query, key, value))

    def kernel(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        ids = None if segment_ids is None else SegmentIds(segment_ids, segment_ids)
        return flash_attention(query, key, value, segment_ids=ids, causal=causal, sm_scale=scale or width**-0.5)

    examples, tensor = batch_axes(b), head_axis(heads)
    if examples or tensor:
        array, row = PartitionSpec(examples, tensor), PartitionSpec(examples)
        kernel = jax.shard_map(kernel, in_specs=(array, array, array, row), out_specs=array, check_vma=False)
    with jax.named_scope(CAUSAL) if causal else contextlib.nullcontext():
        return kernel(query, key, value, segment_ids)[:, :, :t]


def platform() -> str:
    """Return "cpu", "gpu" or "tpu": what the program that is being traced will run on.

    That is the platform of the mesh's devices, as in a function that runs `on_mesh`; without a mesh, JAX's default.
    Programs can be compiled ahead of time for devices that this machine lacks.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.default_backend() if device is None else device.platform
    return "gpu" if kind in ("cuda", "rocm") else str(kind)


def batch_axes(b: int) -> tuple[str, ...]:
    """Return the mesh axes that divide `b` examples; none without `jax.set_mesh` or if `b` is not divisible."""
    axes = _automatic_axes()
    names = tuple(name for name in ("data", "fsdp") if name in axes)
    return () if b % math.prod(axes[name] for name in names) else names


def head_axis(heads: int) -> str | None:
    """Return the mesh axis that divides the heads, or None."""
    size = _automatic_axes().get("tensor")
    return None if size is None or heads % size else "tensor"


def _automatic_axes() -> dict[str, int]:
    """Return the sizes of the axes that XLA partitions by itself; omits axes of a surrounding `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in axes if kind == AxisType.Auto}
