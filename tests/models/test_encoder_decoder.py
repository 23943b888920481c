"""Claims about the encoder-decoder: its attention in blocks, its kinds of positions, and the cache of its decoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtasks import models
from jtasks.errors import ConfigError

T5 = {"positions": "relative", "norm": "rms", "bias": False, "attention_scale": 1.0, "buckets": 8, "max_distance": 16}
T5 |= {"gated": True, "head_dim": 6, "tied": False, "decoder_heads": 4}
MARIAN = {"positions": "sinusoidal", "post_norm": True, "final_norm": False, "embed_scale": 0.0, "output_bias": True}
MARIAN |= {"target_vocab": 29, "embed_norm": True, "activation": "silu"}
KINDS = {"learned": {"position_offset": 2}, "t5": T5, "marian": MARIAN}
VOCAB, B, S, T = 23, 2, 7, 6
PADDED = jnp.array([[1] * S, [1] * 4 + [0] * 3])


def random_ids(t, seed, low=2):
    return jnp.asarray(np.random.default_rng(seed).integers(low, VOCAB, (B, t)), jnp.int32)


SOURCE, TARGET = random_ids(S, 0), random_ids(T, 1)


def model(kind, **options):
    sizes = {"vocab": VOCAB, "width": 16, "encoder_depth": 2, "decoder_depth": 1, "heads": 2, "max_length": 12}
    return models.EncoderDecoder(**sizes | KINDS[kind] | options)


@functools.cache
def params(kind):
    """Parameters drawn so that every one of them shows."""
    init = functools.partial(model(kind).init, method="token_loss")
    shapes = jax.eval_shape(init, jax.random.key(0), SOURCE, TARGET, TARGET)["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.3 * random.normal(size=x.shape)).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnames=("kind", "method", "length", "branches"))
def run(kind, method, *inputs, **options):
    return model(kind).apply({"params": params(kind)}, *inputs, **options, method=method)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_gives_the_logits_of_the_whole_target(kind):
    whole = run(kind, "logits", SOURCE, TARGET, PADDED)
    given = jnp.pad(TARGET[:, :2], ((0, 0), (1, 0))), jnp.array([[0, 1, 1], [0, 1, 1]])  # padded on the left
    logits, cache = run(kind, "read", SOURCE, PADDED, given[0], length=T, branches=2, valid=given[1])
    np.testing.assert_allclose(logits, whole[:, 1], atol=2e-5)
    for i in range(2, T):
        logits, cache = run(kind, "extend", jnp.repeat(TARGET[:, i : i + 1], 2, axis=1), cache)
        np.testing.assert_allclose(logits, jnp.repeat(whole[:, i : i + 1], 2, axis=1), atol=2e-5)
    assert cache["memory_key"][0].shape[0] == cache["memory_value"][0].shape[0] == B  # one for both branches


@pytest.mark.parametrize("kind", ["t5", "marian"])
def test_packed_texts_and_padding_give_the_loss_of_each_text_alone(kind):
    def losses(*inputs):
        return run(kind, "token_loss", *inputs)[0]

    alone = [
        losses(x[:, :s], y[:, :t], y[:, :t])
        for x, y, s, t in ((SOURCE, TARGET, 4, 2), (SOURCE[:, 4:], TARGET[:, 2:], 3, 4))
    ]
    source_ids = jnp.broadcast_to(jnp.array([1, 1, 1, 1, 2, 2, 2, 0]), (B, S + 1))
    target_ids = jnp.broadcast_to(jnp.array([1, 1, 2, 2, 2, 2, 0]), (B, T + 1))
    source, target = (jnp.pad(x, ((0, 0), (0, 1))) for x in (SOURCE, TARGET))
    packed = losses(source, target, target, source_ids, target_ids)
    np.testing.assert_allclose(packed[:, :T], jnp.concatenate(alone, axis=1), atol=2e-5)


def test_relative_positions_need_distances_beyond_those_with_a_bucket_of_their_own():
    with pytest.raises(ConfigError, match="max_distance=4 must be above 4, half of buckets=8"):
        model("t5", max_distance=4).init(jax.random.key(0), SOURCE, TARGET, TARGET, method="token_loss")
