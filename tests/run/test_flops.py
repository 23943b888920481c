"""The count of floating point operations, and the table of peaks."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas
from jax.sharding import PartitionSpec as P

from jtasks.models import kernels
from jtasks.run import flops


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_a_product_counts_two_operations_a_multiply_add():
    assert flops.count(jnp.dot, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7


def test_batch_dimensions_multiply():
    assert flops.count(lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), shape(2, 5, 3, 4), shape(2, 7, 3, 4)) == (
        2 * 2 * 3 * 5 * 7 * 4
    )


def test_elementwise_work_counts_nothing():
    assert flops.count(lambda x: jnp.tanh(x).sum() + 1, shape(64, 64)) == 0


def chain(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def test_a_scan_counts_times_its_length():
    assert flops.count(chain, shape(4, 8), shape(6, 8, 8)) == 6 * 2 * 4 * 8 * 8


def test_scans_multiply_when_nested():
    def twice(x, w):
        return jax.lax.scan(lambda x, _: (chain(x, w), None), x, length=5)[0]

    assert flops.count(jax.jit(twice), shape(4, 8), shape(6, 8, 8)) == 5 * 6 * 2 * 4 * 8 * 8


def test_a_fori_loop_of_known_length_is_counted_and_of_unknown_length_counts_once():
    def loop(turns):
        return lambda x, w: jax.lax.fori_loop(0, turns, lambda _, x: x @ w, x)

    assert flops.count(loop(9), shape(4, 8), shape(8, 8)) == 9 * 512
    assert flops.count(lambda n, x, w: loop(n)(x, w), 9, shape(4, 8), shape(8, 8)) == 512


def test_a_cond_counts_its_largest_branch():
    branches = [lambda x, w: x, lambda x, w: x @ w @ w, lambda x, w: x @ w]
    assert flops.count(lambda i, x, w: jax.lax.switch(i, branches, x, w), 0, shape(4, 8), shape(8, 8)) == 2 * 512


def test_a_gradient_costs_three_forwards_less_the_gradient_of_the_input():
    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ params[0]) @ params[1] ** 2)

    params, x = [shape(8, 16), shape(16, 4)], shape(32, 8)
    forward, first = 2 * 32 * (8 * 16 + 16 * 4), 2 * 32 * 8 * 16
    assert flops.count(loss, params, x) == forward
    squared = lambda params, x: loss(params, x) ** 2  # noqa: E731  the square keeps the last forward product alive
    assert flops.count(jax.grad(squared), params, x) == 3 * forward - first


def test_rematerialisation_counts_the_recomputed_forward():
    def loss(w, x, block):
        return jnp.sum(block(x, w) ** 2)

    def block(x, w):
        return jnp.tanh(jnp.tanh(x @ w[0]) @ w[1])

    def cost(block):
        return flops.count(lambda w, x: jax.grad(loss)(w, x, block), [shape(8, 8), shape(8, 8)], shape(4, 8))

    assert cost(block) == 5 * 512
    assert cost(jax.checkpoint(block)) == 7 * 512


def test_custom_derivatives_are_looked_into():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    assert flops.count(product, shape(4, 8), shape(8, 8)) == 512

    def loss(x, w):
        return jnp.sum(product(x, w) ** 2)

    assert flops.count(jax.grad(loss, argnums=(0, 1)), shape(4, 8), shape(8, 8)) == 3 * 512

    @jax.custom_jvp
    def other(x, w):
        return x @ w

    other.defjvp(lambda primals, tangents: (other(*primals), tangents[0] @ primals[1]))
    assert flops.count(other, shape(4, 8), shape(8, 8)) == 512


def test_a_result_that_nobody_uses_costs_nothing():
    def counts(w, x):
        _, total = jax.jit(lambda w, x: ((x @ w).sum(), x.shape[0] * jnp.ones(())))(w, x)
        return total

    assert flops.count(counts, shape(8, 8), shape(4, 8)) == 0


def test_a_sharded_product_costs_what_the_whole_one_does():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharded = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(P("data"), P(None, "model")), out_specs=P("data", "model"))
    assert flops.count(sharded, shape(16, 8), shape(8, 4)) == 2 * 16 * 8 * 4


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution(groups):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    x, kernel = shape(5, 8, 8, 4), shape(3, 3, 4 // groups, 6)
    forward = 2 * 5 * 4 * 4 * 6 * 9 * (4 // groups)
    assert flops.count(convolve, x, kernel) == forward
    gradient = jax.grad(lambda x, kernel: jnp.sum(convolve(x, kernel) ** 2), argnums=(0, 1))
    assert flops.count(gradient, x, kernel) == 3 * forward


@pytest.mark.parametrize(
    ("kind", "precision", "expected"),
    [
        ("TPU v2", "bfloat16", 23e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5e", "bfloat16", 197e12),
        ("TPU v5", "bfloat16", 459e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("TPU v6 lite", "float32", 918e12),
        ("TPU v4 lite", "bfloat16", None),
        ("TPU v4", "float16", None),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A100 80GB PCIe", "float32", 156e12),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5e12),
        ("NVIDIA H100 NVL", "bfloat16", 835.5e12),
        ("NVIDIA H200", "bfloat16", 989.5e12),
        ("NVIDIA H200 NVL", "bfloat16", 835.5e12),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("Tesla V100-SXM2-16GB", "float16", 125e12),
        ("Tesla T4", "float32", 8.1e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40", "bfloat16", None),
        ("NVIDIA A10", "bfloat16", 125e12),
        ("NVIDIA A10G", "bfloat16", None),
        ("NVIDIA H100 PCIe", "int8", None),
        ("cpu", "float32", None),
    ],
)
def test_peaks_are_those_of_the_named_device_and_of_no_lookalike(kind, precision, expected):
    assert flops.peak(types.SimpleNamespace(device_kind=kind), precision) == expected


def test_without_recomputation_remat_counts_nothing():
    def loss(w, x):
        return jnp.sum(jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]))(x) ** 2)

    arguments = [shape(8, 8), shape(8, 8)], shape(4, 8)
    assert flops.count(jax.grad(loss), *arguments) - 2 * 512 == flops.count(
        jax.grad(loss), *arguments, recomputed=False
    )


@pytest.mark.parametrize(("scope", "blocks"), [("another", 9), (kernels.CAUSAL, 6)])
def test_a_kernel_counts_the_blocks_that_it_computes(scope, blocks):
    def kernel(query, key, scores):
        scores[...] = query[...] @ key[...].T

    def scores(query, key):
        rows, columns = (pallas.BlockSpec((8, 4), lambda i, j, axis=axis: ((i, j)[axis], 0)) for axis in (0, 1))
        whole, part = shape(24, 24), pallas.BlockSpec((8, 8), lambda i, j: (i, j))
        with jax.named_scope(scope):
            return pallas.pallas_call(kernel, whole, grid=(3, 3), in_specs=[rows, columns], out_specs=part)(query, key)

    arrays, block = [shape(24, 4)] * 2, 2 * 8 * 8 * 4
    assert flops.count(scores, *arrays) == blocks * block
    assert flops.count(lambda q, k: scores(q, k) @ k, *arrays, only_kernels=True) == blocks * block
