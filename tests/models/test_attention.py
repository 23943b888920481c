"""Claims about attention in blocks: it is the plain attention, with its gradients."""

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
