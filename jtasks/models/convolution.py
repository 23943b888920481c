"""Convolution and pooling; on the CPU, in groups of images that fit into its cache.

With XLA's convolution instead, a step of `mnist` takes 1.2 to 1.5 times the processor time on two cores.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jtasks.models import kernels
from jtasks.ops.precision import wide

CACHE = 8 * 2**20  # bytes of a group's patches and outputs; the best of 2 to 32 MiB on two cores with 32 MiB of cache


class Conv(nn.Module):
    """Convolution without padding: images [b, h, w, c] -> [b, h - kh + 1, w - kw + 1, features].

    With `pool`, followed by a 2x2 max-pool: [b, (h - kh + 1) // 2, (w - kw + 1) // 2, features].
    """

    features: int
    size: tuple[int, int]
    pool: bool = False
    plain: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (*self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        dtype = self.dtype or jnp.result_type(images, kernel)
        images, kernel, bias = (x.astype(dtype) for x in (images, kernel, bias))
        # Added after pooling: the bias does not change which is largest.
        return convolve(images, kernel, self.pool, self.plain) + bias[None, None, None]


def convolve(images: jax.Array, kernel: jax.Array, pool: bool = False, plain: bool = False) -> jax.Array:
    """Convolve [b, h, w, c] with [kh, kw, c, o] without padding; with `pool`, max-pool the output 2x2.

    Accelerators use XLA's convolution, as does `plain` everywhere. The CPU multiplies patches with the kernel, a few
    images at a time, and pools while the products are in its cache: with all patches at once each product would wait
    for memory. The CPU form has reverse-mode derivatives only.
    """
    if plain or kernels.platform() != "cpu":
        output = _plain(images, kernel, ((0, 0), (0, 0)))
        return _largest(output)[0] if pool else output
    grouped = functools.partial(_convolve_groups, pool=pool)
    if axes := kernels.batch_axes(images.shape[0]):
        specs = (PartitionSpec(axes), PartitionSpec())
        grouped = jax.shard_map(grouped, in_specs=specs, out_specs=PartitionSpec(axes), check_vma=False)
    return grouped(*_vary_alike(images, kernel))


def _vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Cast arrays to vary over the same axes of a surrounding `shard_map`, as `shard_map` requires."""
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    missing = [tuple(frozenset[str]().union(*varying) - axes) for axes in varying]
    return tuple(jax.lax.pcast(x, axes, to="varying") if axes else x for x, axes in zip(arrays, missing, strict=True))


def _plain(images: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]) -> jax.Array:
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_groups(images: jax.Array, kernel: jax.Array, pool: bool) -> jax.Array:
    return _forward(images, kernel, pool)[0]


def _forward(images: jax.Array, kernel: jax.Array, pool: bool) -> tuple[jax.Array, tuple[Any, ...]]:
    matrix, count = kernel.reshape(-1, kernel.shape[-1]), _groups(images, kernel)

    def group(images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        output = _patches(images, kernel.shape) @ matrix
        return _largest(output) if pool else (output, None)

    output, places = jax.lax.map(group, _split(images, count))
    return output.reshape(-1, *output.shape[2:]), (images, kernel, places)


def _backward(pool: bool, residuals: tuple[Any, ...], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    images, kernel, places = residuals
    (kh, kw, _, outputs), count = kernel.shape, _groups(images, kernel)
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)

    def add(total: jax.Array, group: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        images, cotangent, places = group
        patches = _patches(images, kernel.shape)
        if pool:
            cotangent = _spread(cotangent, places, patches.shape)
        flat = patches.reshape(-1, total.shape[0]), cotangent.reshape(-1, outputs)
        product = jnp.einsum("np,no->po", *flat, preferred_element_type=wide(images))
        return total + product, _plain(cotangent, turned, ((kh - 1, kh - 1), (kw - 1, kw - 1)))

    zeros, _ = _vary_alike(jnp.zeros((math.prod(kernel.shape[:-1]), outputs), wide(images)), images)
    d_kernel, d_images = jax.lax.scan(add, zeros, (_split(images, count), _split(cotangent, count), places))
    return d_images.reshape(images.shape), d_kernel.reshape(kernel.shape).astype(kernel.dtype)


_convolve_groups.defvjp(_forward, _backward)


def _largest(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the 2x2 max-pool of [b, h, w, c], [b, h // 2, w // 2, c], and the argmax in each window.

    Backprop through the argmax is 4x faster than XLA's reduce-window gradient.
    """
    b, h, w, c = images.shape
    squares = images[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    four = [squares[:, :, i, :, j] for i in range(2) for j in range(2)]
    largest = functools.reduce(jnp.maximum, four)
    place = jnp.full(largest.shape, 3, jnp.uint8)
    for number in (2, 1, 0):
        place = jnp.where(four[number] == largest, jnp.uint8(number), place)
    return largest, place


def _spread(cotangent: jax.Array, places: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Move each cotangent to its window's maximum: the derivative of `_largest`, with h and w as in `shape`."""
    numbers = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    squares = jnp.where(places[:, :, None, :, None] == numbers, cotangent[:, :, None, :, None], 0)
    b, h, _, w, _, c = squares.shape
    return jnp.pad(squares.reshape(b, 2 * h, 2 * w, c), [(0, 0), *((0, shape[d] % 2) for d in (1, 2)), (0, 0)])


def _split(x: jax.Array, count: int) -> jax.Array:
    return x.reshape(count, -1, *x.shape[1:])


def _groups(images: jax.Array, kernel: jax.Array) -> int:
    """Return the number of groups: the fewest of equal size that keep each group within CACHE."""
    b, h, w, _ = images.shape
    kh, kw, c, outputs = kernel.shape
    bytes_each = (h - kh + 1) * (w - kw + 1) * (kh * kw * c + outputs) * images.dtype.itemsize
    return next(
        count for count in range(1, b + 1) if b % count == 0 and (b // count * bytes_each <= CACHE or count == b)
    )


def _patches(images: jax.Array, kernel: tuple[int, ...]) -> jax.Array:
    """Return the patches of [b, h, w, c]: [b, h - kh + 1, w - kw + 1, kh * kw * c]."""
    kh, kw = kernel[:2]
    h, w = images.shape[1] - kh + 1, images.shape[2] - kw + 1
    return jnp.concatenate([images[:, i : i + h, j : j + w] for i in range(kh) for j in range(kw)], axis=-1)
