"""A dense layer whose weight gradient is as fast as its forward pass on the CPU."""

from typing import Any

import flax.linen as nn
import jax


def flat_product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """Return the product [..., o] of `x` [..., i] and `kernel` [i, o]; the arguments are those of `lax.dot_general`.

    The kernel's gradient contracts all leading axes. If there are two, XLA's CPU backend first transposes the whole
    cotangent and then multiplies at half speed, so there they are one axis. On accelerators the reshape could copy.
    """
    if x.ndim == 2 or jax.default_backend() != "cpu":
        return jax.lax.dot_general(x, kernel, dimensions, **options)
    flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-1], -1)


class Dense(nn.Dense):
    """A dense layer with the fields and parameters of Flax's, multiplied by `flat_product`."""

    dot_general: Any = flat_product
