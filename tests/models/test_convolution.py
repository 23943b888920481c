import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from jtasks.models import convolution


def arrays(b=6):
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (b, 7, 8, 3)), jax.random.normal(keys[1], (3, 2, 3, 5))


def plain(images, kernel):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def value_and_gradient(convolve, *x):
    return jax.jit(jax.value_and_grad(lambda *x: jnp.sum(jnp.sin(convolve(*x))), argnums=(0, 1)))(*x)


def plain_pooled(images, kernel):
    return nn.max_pool(plain(images, kernel), (2, 2), strides=(2, 2))


def pooled(images, kernel):
    return convolution.convolve(images, kernel, pool=True)


def assert_same(found, expected, atol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


CASES = [(convolution.convolve, plain), (pooled, plain_pooled)]


@pytest.mark.parametrize(("ours", "expected"), CASES)
@pytest.mark.parametrize("cache", [1, 3000, 2**22])
def test_groups_of_any_size_give_the_convolution_and_its_gradient(cache, ours, expected, monkeypatch):
    monkeypatch.setattr(convolution, "CACHE", cache)
    assert_same(value_and_gradient(ours, *arrays()), value_and_gradient(expected, *arrays()), 2e-5)


@pytest.mark.parametrize(("ours", "expected"), CASES)
def test_each_device_convolves_its_own_images(ours, expected):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    wanted = value_and_gradient(expected, *arrays(16))
    with jax.set_mesh(mesh):
        found = value_and_gradient(ours, *arrays(16))
    assert_same(found, wanted, 5e-5)


@pytest.mark.parametrize(("ours", "expected"), CASES)
def test_the_form_that_accelerators_get_gives_the_same_on_a_cpu(ours, expected):
    device = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    wanted = value_and_gradient(ours, *arrays())
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        text = str(jax.make_jaxpr(ours)(*arrays()))
        found = value_and_gradient(lambda *x: ours(*x), *arrays())
    assert "conv_general_dilated" in text
    assert_same(found, wanted, 2e-5)


def test_of_equal_ones_the_first_gets_the_gradient():
    images, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((1, 1, 1, 1))
    found = jax.grad(lambda x: jnp.sum(pooled(x, kernel)))(images)
    np.testing.assert_array_equal(found[0, ..., 0], [[1, 0, 0], [0, 0, 0], [0, 0, 0]])
