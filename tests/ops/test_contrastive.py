"""Claims about jtasks.ops.contrastive: plain formulas, blocks of them, and rings of devices say the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jtasks.distributed import sharding
from jtasks.ops import contrastive

B, D = 64, 16
MASK = (np.arange(B) % 7 != 2).astype(np.float32)


def pairs():
    random = np.random.default_rng(0)
    images = random.normal(size=(B, D))
    both = images, images + 1.2 * random.normal(size=(B, D))
    return [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in both]


def softmax_loss(images, texts, scale, mask):
    return contrastive.softmax_loss(images, texts, scale, mask)


def sigmoid_loss(images, texts, scale, mask):
    return contrastive.sigmoid_loss(images, texts, scale, -3.0, mask)


LOSSES = (softmax_loss, sigmoid_loss)


def measured(loss, mesh=None):
    """A jitted function of scale, images, texts and mask: the mean loss, what was found, and the gradient."""

    def mean(scale, images, texts, mask):
        found = loss(images, texts, scale, mask)
        return jnp.sum(found.nats) / jnp.sum(mask), found

    gradient = jax.value_and_grad(mean, argnums=(0, 1, 2), has_aux=True)
    return jax.jit(sharding.on_mesh(mesh, (), gradient))


def plain(loss):
    """The losses [b] of the unmasked rows by the formulas of the papers, with numpy in float64."""
    images, texts = (x[MASK > 0].astype(np.float64) for x in pairs())
    logits = 5.0 * images @ texts.T
    if loss is sigmoid_loss:
        return np.log1p(np.exp(-(2 * np.eye(len(logits)) - 1) * (logits - 3.0))).sum(1)
    logs = [x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (logits, logits.T)]
    return -(np.diagonal(logs[0]) + np.diagonal(logs[1])) / 2


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_the_papers_and_padding_is_nothing(loss):
    images, texts = pairs()
    images[MASK == 0] = np.nan
    (mean, found), gradient = jax.device_get(measured(loss)(jnp.float32(5), images, texts, MASK))
    np.testing.assert_allclose(found.nats[MASK > 0], plain(loss), rtol=2e-5)
    np.testing.assert_allclose(mean, plain(loss).mean(), rtol=1e-5)
    logits = images[MASK > 0] @ texts[MASK > 0].T
    for own, expected in ((found.text_found, logits.argmax(1)), (found.image_found, logits.argmax(0))):
        np.testing.assert_array_equal(own[MASK > 0], expected == np.arange(len(logits)))
        assert 0.2 < own[MASK > 0].mean() < 0.9
    assert not any(x[MASK == 0].any() for x in (*found, *gradient[1:]))
    assert all(np.isfinite(x).all() for x in gradient)


def test_equal_embeddings_find_nothing():
    found = jax.jit(contrastive.softmax_loss)(jnp.ones((4, 2)), jnp.ones((4, 2)), 1.0, jnp.ones(4))
    assert not found.text_found.any() and not found.image_found.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_blocks_say_the_same(loss, monkeypatch):
    arguments = jnp.float32(5), *pairs(), MASK
    whole = jax.device_get(measured(loss)(*arguments))
    monkeypatch.setattr(contrastive, "BLOCK", 10 * B)  # blocks of 10 texts, of which the last is padded
    jitted = measured(loss)
    assert not re.search(rf"f32\[{B},{B}\]", jitted.lower(*arguments).as_text().replace("x", ","))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, jitted(*arguments))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_ring_says_the_same_and_holds_no_whole_matrix(loss):
    arguments, mesh = (jnp.float32(5), *pairs(), MASK), tiny.mesh(8)
    whole = jax.device_get(measured(loss)(*arguments))
    batched, everywhere = sharding.batch_sharding(mesh), sharding.replicated_sharding(mesh)
    placed = jax.device_put(arguments, (everywhere, batched, batched, batched))
    program = measured(loss, mesh).lower(*placed).compile()
    shapes = [tuple(map(int, sizes.split(","))) for sizes in re.findall(r"f32\[(\d+,\d+)\]", program.as_text())]
    assert (B // 8, B // 8) in shapes
    assert max(rows * columns for rows, columns in shapes) == B // 8 * D  # the embeddings of a device
    assert "collective-permute" in program.as_text() and "all-gather" not in program.as_text()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, program(*placed))
