"""A dense layer whose gradient and, for few rows, whose product are as fast as products can be on the CPU."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jtasks.models import kernels

SUBLANES = 8  # rows of a TPU's registers, the fewest columns of a product
ROWS = 1024  # of a product from which on copying the kernel costs little beside it
WIDE = 256  # columns from which on Eigen is slower than YNNPACK with a copy
FEW = 64  # rows up to which YNNPACK spends its time on packing a kernel [i, o]
TURNED = "transposed"  # name of a kernel [o, i]


def flat_product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """Return the product [..., o] of `x` [..., i] and `kernel` [i, o]; the arguments are those of `lax.dot_general`.

    On the CPU the leading axes become one, since XLA computes a gradient that contracts two axes at half speed, from a
    transposed copy. There, Eigen multiplies the kernel's gradient, whose left factor is transposed, in up to twice the
    time of YNNPACK's products (23.3 and 12.3 ms for 512 x 512 x 2048). So the derivative by the kernel is written with
    copies that XLA must not fold into the product, of the narrower one of `x` and the product's cotangent. Narrow
    kernels stay with Eigen, where gradients with more rows than columns take up to 1.5 times as long as transposed
    ones, so the forward pass of many rows reads such a kernel transposed.
    """
    if x.ndim == 1 or kernels.platform() != "cpu":
        return jax.lax.dot_general(x, kernel, dimensions, **options)

    def multiply(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
        return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), **options)

    rows, axis = x.reshape(-1, x.shape[-1]), 0
    if min(kernel.shape) < WIDE:
        if kernel.shape[0] > kernel.shape[1] and len(rows) >= ROWS:
            kernel, axis = jax.lax.optimization_barrier(kernel.T), 1
        return multiply(rows, kernel, 1, axis).reshape(*x.shape[:-1], -1)

    @jax.custom_jvp
    def product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
        return multiply(rows, kernel, 1, 0)

    def derivative(primals: Any, tangents: Any) -> tuple[jax.Array, Any]:
        (rows, kernel), (d_rows, d_kernel) = primals, tangents
        terms = [] if _is_zero(d_rows) else [multiply(d_rows, kernel, 1, 0)]
        if not _is_zero(d_kernel) and kernel.shape[0] > kernel.shape[1]:
            turned = multiply(jax.lax.optimization_barrier(d_kernel.T), rows, 1, 1)
            terms.append(jax.lax.optimization_barrier(turned).T)
        elif not _is_zero(d_kernel):
            terms.append(multiply(jax.lax.optimization_barrier(rows.T), d_kernel, 0, 0))
        return multiply(rows, kernel, 1, 0), sum(terms[1:], terms[0])

    product.defjvp(derivative, symbolic_zeros=True)
    return product(rows, kernel).reshape(*x.shape[:-1], -1)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def transposed_product(x: jax.Array, table: jax.Array, **options: Any) -> jax.Array:
    """Return the product [..., o] of `x` [..., i] and `table` [o, i]; `options` are those of `lax.dot_general`.

    On the CPU a few rows of `x` are the right factor, which YNNPACK packs, and the table stays as it is. This takes 0.5
    to 0.8 of the time of other orders (0.91 to 1.63 ms for 32 x 2048 x 512).
    """
    rows = x.reshape(-1, x.shape[-1])
    if kernels.platform() != "cpu" or not 1 < len(rows) <= FEW:
        return jax.lax.dot_general(x, table, (((x.ndim - 1,), (1,)), ((), ())), **options)
    # Without the barrier XLA exchanges the factors to avoid the transposition.
    product = jax.lax.optimization_barrier(jax.lax.dot_general(table, rows, (((1,), (1,)), ((), ())), **options))
    return product.T.reshape(*x.shape[:-1], -1)


def transpose_kernels(params: Any) -> Any:
    """Return the parameters of `Dense` layers with transposed kernels, which are faster for few rows on the CPU."""
    if kernels.platform() != "cpu" or not isinstance(params, dict):
        return params
    turned = {TURNED: params["kernel"].T} if "kernel" in params else {}
    return turned | {name: transpose_kernels(leaf) for name, leaf in params.items() if name != "kernel"}


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Return the sum of `x` [b, ..., t] and `bias` [b or 1, ..., t or 1], whose gradient on TPUs is a product."""
    return x + bias


def _add_bias(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
    return x + bias, bias.shape


def _bias_gradient(shape: tuple[int, ...], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum a cotangent over the axes along which a bias is one number: in the matrix units, where sums are fast."""
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    if cotangent.dtype != jnp.bfloat16:
        return cotangent, jnp.sum(cotangent, axes, keepdims=True)
    ones = jnp.ones((*[cotangent.shape[axis] for axis in axes], SUBLANES), cotangent.dtype)
    numbers = ((axes, tuple(range(len(axes)))), ((), ()))
    sums = jax.lax.dot_general(cotangent, ones, numbers, preferred_element_type=jnp.float32)
    return cotangent, sums[..., 0].reshape(shape).astype(cotangent.dtype)


add_bias.defvjp(_add_bias, _bias_gradient)


class Dense(nn.Dense):
    """A dense layer with the fields and parameters of Flax's, or with those of `transpose_kernels`."""

    dot_general: Any = flat_product

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.has_variable("params", TURNED):
            given: Any = [self.get_variable("params", name) for name in (TURNED, "bias")]
            x, table, bias = nn.dtypes.promote_dtype(x, *given, dtype=self.dtype)
            product = transposed_product(x, table)
            return product if bias is None else product + bias.reshape(*[1] * (x.ndim - 1), -1)
        if kernels.platform() != "tpu" or not self.use_bias:
            return super().__call__(x)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return add_bias(x @ kernel, bias.reshape(*[1] * (x.ndim - 1), -1))


class PositionsLast(nn.Dense):
    """A dense layer with the parameters of `Dense`, from [b, t, i] to [b, o, t]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.einsum("bti,io->bot", x, kernel)
        return y if bias is None else add_bias(y, bias[None, :, None])
