import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jtasks.models import convolution


def arrays(b=6):
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (b, 7, 8, 3)), jax.random.normal(keys[1], (3, 2, 3, 5))


def plain(images, kernel):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def value_and_gradient(convolve, *x):
    return jax.jit(jax.value_and_grad(lambda *x: jnp.sum(jnp.sin(convolve(*x))), argnums=(0, 1)))(*x)


@pytest.mark.parametrize("cache", [1, 3000, 2**22])
def test_groups_of_any_size_give_the_convolution_and_its_gradient(cache, monkeypatch):
    monkeypatch.setattr(convolution, "CACHE", cache)
    found = value_and_gradient(convolution.convolve, *arrays())
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(value_and_gradient(plain, *arrays())), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_each_device_convolves_its_own_images():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    expected = value_and_gradient(plain, *arrays(16))
    with jax.set_mesh(mesh):
        found = value_and_gradient(convolution.convolve, *arrays(16))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_pooling_takes_the_largest_of_each_square():
    images = jax.random.normal(jax.random.key(1), (2, 7, 8, 3))

    def gradient(pool):
        return jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))(images)

    def windows(x):
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    np.testing.assert_array_equal(convolution.max_pool(images), windows(images))
    np.testing.assert_allclose(gradient(convolution.max_pool), gradient(windows), atol=1e-6)
