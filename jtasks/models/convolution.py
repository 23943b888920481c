"""Convolution and pooling; on the CPU, in groups of images that stay in its cache."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jtasks.models import kernels

CACHE = 4 * 2**20  # bytes of a group's patches and outputs; on two cores of 1 MiB each, 2 to 4 MiB were the best


class Conv(nn.Module):
    """Images [b, h, w, c] -> [b, h - kh + 1, w - kw + 1, features]: a convolution without padding."""

    features: int
    size: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (*self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return (
            convolve(images.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)[None, None, None]
        )


def max_pool(images: jax.Array) -> jax.Array:
    """The largest of each 2x2: [b, h, w, c] -> [b, h // 2, w // 2, c].

    As a reduction, since the gradient of XLA's windows took four times as long on a CPU.
    """
    b, h, w, c = images.shape
    return images[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of [b, h, w, c] with [kh, kw, c, o], without padding.

    XLA's own on accelerators. On the CPU it is a product of patches and kernel, a few images at a time: of
    all patches at once each product would wait for memory.
    """
    if jax.default_backend() != "cpu":
        return _plain(images, kernel, ((0, 0), (0, 0)))
    grouped = _grouped
    if axes := kernels.batch_axes(images.shape[0]):
        specs = (PartitionSpec(axes), PartitionSpec())
        grouped = jax.shard_map(_grouped, in_specs=specs, out_specs=PartitionSpec(axes), check_vma=False)
    return grouped(images, kernel)


def _plain(images: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]) -> jax.Array:
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def _grouped(images: jax.Array, kernel: jax.Array) -> jax.Array:
    return _forward(images, kernel)[0]


def _forward(images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    split = functools.partial(_split, count=_groups(images.shape, kernel.shape, images.dtype.itemsize))
    output = jax.lax.map(lambda group: _patches(group, kernel.shape) @ matrix, split(images))
    return output.reshape(-1, *output.shape[2:]), (images, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    images, kernel = residuals
    kh, kw, _, outputs = kernel.shape
    split = functools.partial(_split, count=_groups(images.shape, kernel.shape, images.dtype.itemsize))

    def add(total: jax.Array, group: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        patches = _patches(group[0], kernel.shape).reshape(-1, total.shape[0])
        product = jnp.einsum("np,no->po", patches, group[1].reshape(-1, outputs), preferred_element_type=jnp.float32)
        return total + product, None

    zeros = jnp.zeros((math.prod(kernel.shape[:-1]), outputs), jnp.float32)
    d_kernel, _ = jax.lax.scan(add, zeros, (split(images), split(cotangent)))
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    d_images = _plain(cotangent, turned, ((kh - 1, kh - 1), (kw - 1, kw - 1)))  # XLA's own is at full speed here
    return d_images, d_kernel.reshape(kernel.shape).astype(kernel.dtype)


_grouped.defvjp(_forward, _backward)


def _split(x: jax.Array, count: int) -> jax.Array:
    return x.reshape(count, -1, *x.shape[1:])


def _groups(images: tuple[int, ...], kernel: tuple[int, ...], itemsize: int) -> int:
    """How many groups to cut the images into: the fewest of equal size that keep each within CACHE."""
    b, h, w, _ = images
    kh, kw, c, outputs = kernel
    bytes_each = (h - kh + 1) * (w - kw + 1) * (kh * kw * c + outputs) * itemsize
    return next(
        count for count in range(1, b + 1) if b % count == 0 and (b // count * bytes_each <= CACHE or count == b)
    )


def _patches(images: jax.Array, kernel: tuple[int, ...]) -> jax.Array:
    """[b, h, w, c] -> [b, h - kh + 1, w - kw + 1, kh * kw * c]."""
    kh, kw = kernel[:2]
    h, w = images.shape[1] - kh + 1, images.shape[2] - kw + 1
    return jnp.concatenate([images[:, i : i + h, j : j + w] for i in range(kh) for j in range(kw)], axis=-1)
