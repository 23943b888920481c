import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from jtasks import models
from jtasks.models import attention, kernels, tpu_attention

LENGTH = 200  # no whole number of tiles


def three(dtype=jnp.float32):
    return tuple(jax.random.normal(key, (2, 2, LENGTH, 16), dtype) for key in jax.random.split(jax.random.key(0), 3))


def segments():
    """Two texts and padding in each row."""
    row = jnp.repeat(jnp.array([1, 2, 0]), jnp.array([90, 70, 40]), total_repeat_length=LENGTH)
    return jnp.stack([row, jnp.roll(row, -30).at[-30:].set(0)])


@pytest.fixture
def interpreted(monkeypatch):
    """Run kernels as plain XLA: the interpreter of TPU memory calls back to the host, and stands still on few cores."""
    run = pallas.pallas_call
    monkeypatch.setattr(pallas, "pallas_call", lambda *a, **options: run(*a, **options | {"interpret": True}))


def test_a_kernel_of_float32_with_wide_heads_takes_smaller_blocks():
    """The compiler of v6e refuses blocks of 512: it needs 21.52 MB of a core's memory where there are 16."""
    assert not tpu_attention.fits((32, 8, 3, 128, 1024), jnp.float32, 512)
    assert tpu_attention.fits((32, 8, 3, 128, 1024), jnp.float32, 256)
    assert tpu_attention.fits((32, 8, 3, 64, 1024), jnp.float32, 512)
    assert tpu_attention.fits((32, 8, 3, 128, 1024), jnp.bfloat16, 512)


@pytest.mark.parametrize(
    ("causal", "segmented", "dtype", "tolerance"),
    [
        (True, False, jnp.float32, 1e-5),
        (False, False, jnp.float32, 1e-5),
        (False, True, jnp.float32, 1e-5),
        (True, True, jnp.float32, 1e-5),
        (True, True, jnp.bfloat16, 2e-2),
    ],
)
@pytest.mark.parametrize("long", [False, True])
def test_a_tpu_kernel_equals_plain_attention_in_value_and_gradient(
    interpreted, causal, segmented, dtype, tolerance, long, monkeypatch
):
    monkeypatch.setattr(kernels, "BLOCK", 128)
    if long:  # as if a core's memory did not hold a sequence: splash attention
        monkeypatch.setattr(tpu_attention, "BYTES", 0)
    groups = segments() if segmented else None
    real = (segments() > 0)[:, None, :, None] if segmented else 1.0

    def kernel(*x):
        fused = jnp.swapaxes(jnp.stack(x, axis=2), 3, 4)
        mixed = attention.fused_self_attention(fused, groups, causal=causal, scale=0.3)
        return jnp.sum(jnp.sin((mixed := jnp.swapaxes(mixed, 2, 3).astype(jnp.float32)) * real)), mixed

    def plain(*x):
        x = (part.astype(jnp.float32) for part in x)
        mixed = attention.attention(*x, attention.attention_mask(LENGTH, causal, groups), scale=0.3)
        return jnp.sum(jnp.sin(mixed * real)), mixed

    found, expected = (jax.grad(f, argnums=(0, 1, 2), has_aux=True)(*three(dtype)) for f in (kernel, plain))
    np.testing.assert_allclose(found[1] * real, expected[1] * real, atol=tolerance)
    for a, b in zip(found[0], expected[0], strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, float(jnp.max(jnp.abs(b)))))


def test_a_model_on_a_tpu_equals_that_on_a_cpu_in_loss_and_gradient(interpreted):
    model = models.GPT(vocab=8, outputs=8, max_length=LENGTH, width=16, depth=1, heads=2)
    tokens = jax.random.randint(jax.random.key(0), (2, LENGTH), 0, 8)
    params = model.init(jax.random.key(1), tokens)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), params)

    def loss(params):
        logits = model.apply(params, tokens, segment_ids=segments())
        return jnp.sum(jnp.sin(logits) * (segments() > 0)[:, :, None])

    expected = jax.jit(jax.value_and_grad(loss))(params)
    with mesh_of("tpu"):
        traced = jax.jit(jax.value_and_grad(loss)).trace(params)
    found = jax.jit(jax.extend.core.jaxpr_as_fun(traced.jaxpr))(*jax.tree.leaves(params))
    for a, b in zip(found, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_pre_training_as_on_a_tpu_equals_the_plain_one_with_its_gradient(interpreted):
    model = models.BERT(vocab=40, max_length=LENGTH, width=16, depth=1, heads=2)
    tokens, types = (jax.random.randint(jax.random.key(i), (2, LENGTH), 0, n) for i, n in enumerate((40, 2)))
    places, labels = (
        jax.random.randint(jax.random.key(i), (2, 5), 0, n) for i, n in enumerate((130, 40))
    )  # no padding
    inputs = tokens, types, segments(), places, labels
    params = model.init(jax.random.key(2), *inputs, method="pretrain")
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape), params)

    def loss(params):
        nats, correct, next_sentence = model.apply(params, *inputs, method="pretrain")
        return jnp.sum(nats) + jnp.sum(jnp.sin(next_sentence)), jnp.sum(correct)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    expected = gradient(params)
    with mesh_of("tpu"):
        traced = gradient.trace(params)
    assert "optimization_barrier" in str(traced.jaxpr)
    found = jax.jit(jax.extend.core.jaxpr_as_fun(traced.jaxpr))(*jax.tree.leaves(params))
    for a, b in zip(found, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


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


def test_what_cudnn_has_no_form_for_is_left_to_the_blocks():
    with mesh_of("cuda"):
        mixed = attention.self_attention(*three(), causal=True)  # float32
    np.testing.assert_allclose(
        mixed, attention.attention(*three(), attention.attention_mask(LENGTH, True, None)), atol=1e-5
    )
