"""A dense layer whose weight gradient is as fast as its forward pass on the CPU."""

from typing import Any

import flax.linen as nn
import jax

from jtasks.models import kernels

ROWS = 1024  # of a product from which on copying the kernel costs little beside it


def flat_product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """Return the product [..., o] of `x` [..., i] and `kernel` [i, o]; the arguments are those of `lax.dot_general`.

    On the CPU the leading axes become one, since XLA computes a gradient that contracts two axes at half speed, from a
    transposed copy. There, gradients with more rows than columns take up to 1.5 times as long as transposed ones, so
    the forward pass of many rows reads such a kernel transposed, from a copy that XLA must not fold into the product.
    """
    if x.ndim == 1 or kernels.platform() != "cpu":
        return jax.lax.dot_general(x, kernel, dimensions, **options)
    rows, axis = x.reshape(-1, x.shape[-1]), 0
    if kernel.shape[0] > kernel.shape[1] and rows.shape[0] >= ROWS:
        kernel, axis = jax.lax.optimization_barrier(kernel.T), 1
    return jax.lax.dot_general(rows, kernel, (((1,), (axis,)), ((), ())), **options).reshape(*x.shape[:-1], -1)


class Dense(nn.Dense):
    """A dense layer with the fields and parameters of Flax's, multiplied by `flat_product`."""

    dot_general: Any = flat_product
