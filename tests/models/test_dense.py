"""A dense layer multiplies as Flax's, whatever form the CPU takes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtasks.models.dense import ROWS, WIDE, Dense, transpose_kernels


@pytest.mark.parametrize(
    ("shape", "features"), [((6,), 9), ((2, ROWS // 2, 6), 3), ((2, 3, WIDE), WIDE), ((3, WIDE + 1), WIDE)]
)
def test_values_and_derivatives_are_those_of_flax(shape, features):
    x = jax.random.normal(jax.random.key(0), shape)
    ours, theirs = Dense(features), nn.Dense(features)
    params = theirs.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == jax.tree.map(jnp.shape, params)

    def all_of(layer):
        def loss(params, x):
            return jnp.sum(jnp.sin(layer.apply(params, x)))

        along = jax.jvp(loss, (params, x), (params, x))
        return layer.apply(params, x), jax.grad(loss, (0, 1))(params, x), along

    for mine, flax in zip(
        *(jax.tree.leaves(jax.jit(all_of, static_argnums=0)(m)) for m in (ours, theirs)), strict=True
    ):
        np.testing.assert_allclose(mine, flax, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("shape", [(1, 6), (2, 3, 6), (9, 9, 6)])  # one row, few and many
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_transposed_kernel_gives_the_same_values(shape, use_bias):
    x, layer = jax.random.normal(jax.random.key(0), shape), Dense(5, use_bias=use_bias)
    params = layer.init(jax.random.key(1), x)
    values = jax.jit(layer.apply)(transpose_kernels(params), x)
    np.testing.assert_allclose(values, layer.apply(params, x), rtol=1e-5, atol=1e-6)
