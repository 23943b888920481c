"""Attention kernels for accelerators; `models/attention.py` has the CPU form."""

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

CAUSAL = "causal_kernel"  # scope of a kernel that skips blocks of keys after the queries, for counts of operations
TILE = 128  # lanes of a TPU; blocks of its kernels are multiples of this
BLOCK = 512  # most queries, and keys, of a block on a TPU


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
    fused: jax.Array, segment_ids: jax.Array | None, *, causal: bool, scale: float = 0.0, save_as: str = ""
) -> jax.Array:
    """Return attention [b, h, d, t] of queries, keys and values `fused` [b, h, 3, d, t].

    Runs `tpu_attention` if a core's memory holds a sequence, else JAX's splash attention. Pads lengths to whole blocks.
    XLA cannot partition a kernel, so under a mesh (`jax.set_mesh`) each device runs the kernel on its own examples and
    heads. `models/attention.py` defines the other arguments; `save_as` is the `checkpoint_name` of what the backward
    pass needs.
    """
    from jtasks.models import tpu_attention

    b, heads, _, width, t = fused.shape
    block, scale = block_size(t, BLOCK), scale or width**-0.5
    if fused.dtype == jnp.float32 and not tpu_attention.fits(fused.shape, fused.dtype, block):
        block = block_size(t, BLOCK // 2)
    if padding := -t % block:
        if segment_ids is None and not causal:  # causal attention hides later keys anyway
            segment_ids = jnp.ones((b, t), jnp.int32)
        segment_ids = None if segment_ids is None else jnp.pad(segment_ids, ((0, 0), (0, padding)))
        fused = jnp.pad(fused, ((0, 0), (0, 0), (0, 0), (0, 0), (0, padding)))

    def kernel(fused: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        if tpu_attention.fits(fused.shape, fused.dtype, block):
            return tpu_attention.attention(fused, segment_ids, causal, scale, block, save_as)
        return _splash(fused, segment_ids, causal, scale, block, save_as)

    examples, tensor = batch_axes(b), head_axis(heads)
    if examples or tensor:
        array, row = PartitionSpec(examples, tensor), PartitionSpec(examples)
        kernel = jax.shard_map(kernel, in_specs=(array, row), out_specs=array, check_vma=False)
    return kernel(fused, segment_ids)[..., :t]


def block_size(t: int, most: int) -> int:
    """Return the smallest multiple of TILE with which the fewest blocks of at most `most` cover t positions.

    >>> [block_size(t, 512) for t in (100, 512, 640, 1025)]
    [128, 512, 384, 384]
    """
    blocks = math.ceil(t / most)
    return math.ceil(t / blocks / TILE) * TILE


def _splash(
    fused: jax.Array, segment_ids: jax.Array | None, causal: bool, scale: float, block: int, save_as: str
) -> jax.Array:
    """Return JAX's splash attention [b, h, d, t] of `fused` [b, h, 3, d, t], whose t is a multiple of `block`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, heads, _, _, t = fused.shape
    query, key, value = jnp.moveaxis(jnp.swapaxes(fused, 3, 4), 2, 0)
    mask = masks.MultiHeadMask([(masks.CausalMask if causal else masks.FullMask)((t, t))] * heads)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    options: Any = {f"block_{name}": block for name in names}
    function = splash.make_splash_mha_single_device(
        mask, block_sizes=splash.BlockSizes(**options), residual_checkpoint_name=save_as or None
    )
    ids = None if segment_ids is None else splash.SegmentIds(segment_ids, segment_ids)
    with jax.named_scope(CAUSAL) if causal else contextlib.nullcontext():
        mixed = jax.vmap(function)(query * jnp.asarray(scale, query.dtype), key, value, ids)
    return jnp.swapaxes(mixed, 2, 3)


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


def count_parts(size: int) -> int:
    """Return the number of parts into which the mesh axis `tensor` divides an axis of an array; 1 if it does not."""
    return 1 if head_axis(size) is None else _automatic_axes()["tensor"]


def _automatic_axes() -> dict[str, int]:
    """Return the sizes of the axes that XLA partitions by itself; omits axes of a surrounding `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in axes if kind == AxisType.Auto}
