"""Claims about attention: it equals numpy's, whole, in blocks and with dropout, with its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtasks.models import attention

T, S = 19, 13
TEXTS = jnp.array([[1] * 5 + [2] * 9 + [0] * 5, [1] * T])
SOURCES = jnp.array([[1] * 3 + [2] * 8 + [0] * 2, [1] * S])
CASES = {
    "causal": {"causal": True, "segment_ids": TEXTS},
    "both ways": {"causal": False, "segment_ids": TEXTS},
    "no padding": {"causal": True, "segment_ids": None},
}
MEMORIES = {"packed memory": (TEXTS, SOURCES), "padded memory": SOURCES > 0}


def arrays(s, dtype):
    random = np.random.default_rng(s)
    sizes = (2, 3, T, 4), (2, 3, s, 4), (2, 3, s, 4), (3, T + s - 1)
    return [jnp.asarray(random.normal(size=size), dtype) for size in sizes]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, jnp.float32) for case in (*CASES, *MEMORIES)), ("causal", jnp.bfloat16), ("packed memory", jnp.bfloat16)],
)
def test_blocks_give_plain_attention_and_its_gradients(case, dtype, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 8)

    def mix(plain, query, key, value, relative):
        if case in CASES:
            options = CASES[case] | {"relative": relative.astype(jnp.float32), "scale": 0.8}
            return attention.self_attention(query, key, value, **options, plain=plain)
        return attention.cross_attention(query, key, value, MEMORIES[case], scale=0.8, plain=plain)

    def loss(x, plain):
        mixed = mix(plain, *x).astype(jnp.float32)
        counted = mixed if case == "no padding" else mixed * (TEXTS > 0)[:, None, :, None]
        return jnp.sum(jnp.sin(3 * counted)), mixed

    inputs = arrays(T if case in CASES else S, dtype)
    results = [
        jax.jit(jax.grad(lambda x, plain=plain: loss(x, plain), has_aux=True))(inputs) for plain in (False, True)
    ]
    for ours, plain in zip(*map(jax.tree.leaves, results), strict=True):
        scale = np.abs(np.asarray(plain, np.float32)).max() if dtype == jnp.bfloat16 else 1.0
        np.testing.assert_allclose(
            np.asarray(ours, np.float32),
            np.asarray(plain, np.float32),
            atol=(1e-5 if dtype == jnp.float32 else 2e-2) * max(scale, 1),
        )


def test_a_bias_by_distance_is_the_matrix_with_equal_diagonals():
    line = jnp.arange(2 * (T + S - 1), dtype=jnp.float32).reshape(2, -1)
    queries, keys = np.arange(T)[:, None], np.arange(S)[None]
    whole = np.asarray(line)[:, T - 1 + keys - queries]
    for start, stop, seen in ((0, T, S), (3, 9, S), (4, 5, 7), (0, 6, 1)):
        np.testing.assert_array_equal(attention.diagonals(line, start, stop, T, seen), whole[:, start:stop, :seen])


def plain_attention(query, key, value, causal, segment_ids=None):
    """In numpy, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    seen = np.tril(np.ones(scores.shape[-2:], bool)) if causal else np.ones(scores.shape[-2:], bool)
    seen = np.broadcast_to(seen, scores.shape)
    if segment_ids is not None:
        seen = seen & (segment_ids[:, None, :, None] == segment_ids[:, None, None])
    scores = np.where(seen, scores, -1e300)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def three(t):
    random = np.random.default_rng(t)
    return [jnp.asarray(random.normal(size=(2, 3, t, 4)), jnp.float32) for _ in range(3)]


def packed(t):
    """Segments of two rows: three texts and padding; one text and padding."""
    first = np.repeat([1, 2, 3, 0], [t // 4, t // 3, t // 4, t - t // 4 - t // 3 - t // 4])
    second = np.repeat([1, 0], [t - t // 5, t // 5])
    return np.stack([first, second]).astype(np.int32)


def test_attention_equals_numpy():
    np.testing.assert_allclose(attention.attention(*three(9)), plain_attention(*three(9), causal=False), atol=2e-5)


LENGTHS = pytest.mark.parametrize("t", [7, 16, 29])  # the last two in blocks of 8, one a whole number of them
CAUSAL = pytest.mark.parametrize("causal", [True, False])


@LENGTHS
@CAUSAL
def test_blockwise_attention_equals_the_plain_one(t, causal, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 8)
    found = jax.jit(functools.partial(attention.self_attention, causal=causal))(*three(t))
    np.testing.assert_allclose(found, plain_attention(*three(t), causal=causal), atol=1e-5)


@LENGTHS
@CAUSAL
def test_blockwise_attention_stays_inside_its_segment(t, causal, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 8)
    segment_ids = packed(t)
    found = jax.jit(functools.partial(attention.self_attention, causal=causal))(*three(t), segment_ids=segment_ids)
    expected = plain_attention(*three(t), causal=causal, segment_ids=segment_ids)
    text = (segment_ids > 0)[:, None, :, None]
    np.testing.assert_allclose(np.where(text, found, 0), np.where(text, expected, 0), atol=1e-5)
    assert np.isfinite(found).all()  # padding too


@CAUSAL
@pytest.mark.parametrize("segmented", [True, False])
def test_blockwise_attention_has_the_plain_gradient(causal, segmented, monkeypatch):
    t = 21  # short of three blocks of 8
    segment_ids = jnp.asarray(packed(t)) if segmented else None
    text = jnp.ones((2, t)) if segment_ids is None else segment_ids > 0

    def gradient():
        def loss(x):
            mixed = attention.self_attention(*x, causal=causal, segment_ids=segment_ids)
            return jnp.sum(jnp.sin(mixed) * text[:, None, :, None])

        return jax.jit(jax.grad(loss))(three(t))

    plain = gradient()
    monkeypatch.setattr(attention, "BLOCK", 8)
    for one, other in zip(gradient(), plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert np.abs(one).max() > 0.01


def test_padding_looks_at_all_of_the_text_and_nothing_looks_at_padding():
    segment_ids = jnp.asarray([[1, 1, 2, 0, 0]])
    seen = attention.attention_mask(5, False, segment_ids)[0, 0].astype(int)
    np.testing.assert_array_equal(
        seen, [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    )
    causal = attention.attention_mask(5, True, segment_ids)[0, 0].astype(int)
    np.testing.assert_array_equal(causal, np.tril(np.ones((5, 5), int)) * seen)
    assert attention.attention_mask(5, False, None) is None


def test_dropped_attention_is_the_plain_one_on_average():
    query, key, value = three(6)
    dropped = jax.jit(
        jax.vmap(lambda rng: attention.attention_with_dropout(query, key, value, None, rng, 0.3)),
    )(jax.random.split(jax.random.key(0), 300))
    assert not np.allclose(dropped[0], dropped[1])
    np.testing.assert_allclose(dropped.mean(0), plain_attention(query, key, value, causal=False), atol=0.2)


@CAUSAL
def test_the_shipped_block_is_used_for_long_sequences(causal):
    t = 2 * attention.BLOCK + 3
    query, key, value = three(t)
    run = jax.jit(functools.partial(attention.self_attention, causal=causal))
    np.testing.assert_allclose(run(query, key, value), plain_attention(query, key, value, causal=causal), atol=1e-5)
    assert f"{t}x{t}x" not in run.lower(query, key, value).as_text()  # the whole scores are never there
