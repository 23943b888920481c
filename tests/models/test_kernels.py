import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from jtasks import models
from jtasks.models import attention, kernels

LENGTH = 200  # no whole number of tiles


def three(dtype=jnp.float32):
    return tuple(jax.random.normal(key, (2, 2, LENGTH, 16), dtype) for key in jax.random.split(jax.random.key(0), 3))


def segments():
    """Two texts and padding in each row."""
    row = jnp.repeat(jnp.array([1, 2, 0]), jnp.array([90, 70, 40]), total_repeat_length=LENGTH)
    return jnp.stack([row, jnp.roll(row, -30).at[-30:].set(0)])


@pytest.mark.parametrize(("causal", "segmented"), [(True, False), (False, True), (True, True)])
def test_the_tpu_kernel_equals_plain_attention_in_value_and_gradient(causal, segmented, monkeypatch):
    # Interpreted as plain XLA: the interpreter of TPU memory calls back to the host for each block, and has stood still
    # on a busy machine with few cores.
    monkeypatch.setattr(pallas, "pallas_call", functools.partial(pallas.pallas_call, interpret=True))
    groups = segments() if segmented else None
    real = (segments() > 0)[:, None, :, None] if segmented else 1.0

    def loss(mixed):
        return jnp.sum(jnp.sin(mixed * real))

    def kernel(*x):
        return loss(kernels.on_tpu(*x, groups, causal=causal))

    def plain(*x):
        return loss(attention.attention(*x, attention.attention_mask(LENGTH, causal, groups)))

    found = jax.value_and_grad(kernel, argnums=(0, 1, 2))(*three())
    expected = jax.value_and_grad(plain, argnums=(0, 1, 2))(*three())
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def mesh_of(platform, **axes):
    """A mesh of devices that this machine lacks."""
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    types = (AxisType.Auto,) * len(axes)
    return use_abstract_mesh(AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=types, abstract_device=device))


def test_on_a_tpu_each_device_runs_the_kernel_on_its_own_part():
    """The program is lowered for a TPU, which needs none: XLA refuses a kernel that it would have to divide."""
    with mesh_of("tpu", data=2, tensor=4):
        traced = jax.jit(lambda *x: attention.self_attention(*x, causal=True)).trace(*three())
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
    assert "manual" in text


@pytest.mark.parametrize(("remat", "calls"), [(False, 3), (True, 4)])
def test_the_backward_pass_runs_the_forward_kernel_again_only_with_remat(remat, calls):
    model = models.GPT(vocab=8, outputs=8, max_length=256, width=16, depth=3, heads=2, remat=remat)
    tokens = jnp.zeros((2, 256), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    with mesh_of("tpu"):
        traced = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, tokens)))).trace(params)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == calls  # forward, and two of the backward


def test_what_cudnn_has_no_form_for_is_left_to_the_blocks():
    with mesh_of("cuda"):
        mixed = attention.self_attention(*three(), causal=True)  # float32
    np.testing.assert_allclose(
        mixed, attention.attention(*three(), attention.attention_mask(LENGTH, True, None)), atol=1e-5
    )
