"""Claims about cross-attention: blocks that read a memory, and the cache that branches of a prompt share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtasks.models import attention
from jtasks.models.blip_text import BLIPText

VOCAB, T, S = 11, 6, 5
PADDED = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)


def arrays(t, s):
    random = np.random.default_rng(t)
    sizes = (2, 3, t, 4), (2, 3, s, 4), (2, 3, s, 4)
    return [jnp.asarray(random.normal(size=size), jnp.float32) for size in sizes]


def plain(query, key, value, valid):
    scores = np.asarray(query @ key.swapaxes(-1, -2)) / np.sqrt(query.shape[-1])
    weights = np.where(valid[:, None, None], np.exp(scores), 0)
    return weights / weights.sum(-1, keepdims=True) @ np.asarray(value)


@pytest.mark.parametrize("t", [4, 21])  # the second in blocks of 8 queries
def test_cross_attention_and_its_gradient_are_the_plain_ones(t, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 8)
    values = arrays(t, 5)

    def gradient(plain):
        def loss(x):
            return jnp.sum(jnp.sin(attention.cross_attention(*x, PADDED, plain=plain)))

        return jax.jit(jax.grad(loss))(values)

    found = jax.jit(lambda values: attention.cross_attention(*values, PADDED))(values)
    np.testing.assert_allclose(found, plain(*values, PADDED), atol=1e-5)
    for ours, theirs in zip(gradient(False), gradient(True), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def model(**options):
    return BLIPText(vocab=VOCAB, max_length=12, width=16, depth=2, heads=2, causal=True, **options)


def memory():
    return jnp.asarray(np.random.default_rng(3).normal(size=(2, S, 7)), jnp.float32)


def tokens(t=T):
    return jnp.asarray(np.random.default_rng(4).integers(0, VOCAB, (2, t)), jnp.int32)


@functools.cache
def params(tied=True):
    """Parameters drawn so that every one of them shows."""
    shapes = jax.eval_shape(
        lambda: model(tied=tied).init(jax.random.key(0), tokens(), tokens(), memory=memory(), method="token_loss")
    )
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.3 * random.normal(size=x.shape)).astype(x.dtype), shapes)


@functools.partial(jax.jit, static_argnames=("method", "tied", "padded", "length", "branches", "smoothing"))
def run(method, *inputs, tied=True, padded=True, **options):
    if padded:
        options |= {"memory_mask": PADDED}
    return model(tied=tied).apply(params(tied), *inputs, **options, method=method)


def logits(tokens, memory, tied=True):
    return run("logits", tokens, memory=memory, tied=tied)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_decoding_with_shared_keys_of_the_memory_equals_the_full_pass(tied):
    """Two branches of each prompt continue differently."""
    text, other = tokens(), tokens().at[:, 3:].set(7)
    first, cache = run("prefill", text[:, :3], length=4, branches=2, memory=memory(), tied=tied)
    assert [key.shape for key in cache["memory_key"]] == 2 * [(2, 2, S, 8)]  # no branches
    said = [jnp.stack([first, first], axis=1)]
    for i in range(3, T):
        each, cache = run("extend", jnp.stack([text[:, i], other[:, i]], axis=1), cache, tied=tied, padded=False)
        said.append(each)
    for branch, whole in enumerate((text, other)):
        expected = logits(whole, memory(), tied=tied)[:, 2:]
        np.testing.assert_allclose(np.stack(said, axis=2)[:, branch], expected, atol=1e-5)


def test_padding_of_the_memory_is_never_read():
    junk = jnp.where(PADDED[..., None], memory(), 9.0)
    np.testing.assert_array_equal(logits(tokens(), junk), logits(tokens(), memory()))
    seen = memory().at[1, 2].add(1.0)
    assert not np.allclose(logits(tokens(), seen)[1], logits(tokens(), memory())[1])


def test_a_block_with_cross_attention_reads_texts_alone_too():
    """As BLIP's text encoder does for its contrastive features."""
    alone = run("__call__", tokens(), padded=False)
    assert alone.shape == (2, T, 16)
    assert not np.allclose(alone, run("__call__", tokens(), memory=memory()))


def test_smoothed_labels_give_the_loss_over_a_smoothed_distribution():
    text, labels = tokens(), tokens(T + 1)[:, 1:]
    nats, _ = run("token_loss", text, labels, memory=memory(), smoothing=0.1)
    chances = 0.9 * jax.nn.one_hot(labels, VOCAB) + 0.1 / VOCAB
    np.testing.assert_allclose(nats, -(chances * jax.nn.log_softmax(logits(text, memory()))).sum(-1), rtol=1e-5)
