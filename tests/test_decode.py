"""Claims about jtasks.decode, against numpy and a model that re-reads its whole prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks import decode, models

VOCAB = 9

filtered = jax.jit(decode.filtered, static_argnames=("top_k", "top_p"))
sample = jax.jit(decode.sample, static_argnums=(0, 4), static_argnames=("temperature", "top_k", "top_p"))


def reference(logits, temperature, top_k, top_p):
    """Indices kept, one row of logits at a time, in float64."""
    logits = logits.astype(np.float64) / temperature
    order = np.argsort(-logits, kind="stable")
    kept = order[: top_k or len(order)]
    probabilities = np.exp(logits[kept] - logits[kept].max())
    probabilities /= probabilities.sum()
    if top_p < 1:
        before = np.cumsum(probabilities) - probabilities
        assert np.abs(before[1:] - top_p).min(initial=1) > 1e-5, "a boundary too close to call"
        kept = kept[: max(1, int((before < top_p).sum()))]
    return set(kept.tolist())


@settings(max_examples=60, deadline=None)
@given(
    logits=st.permutations(range(VOCAB)),
    spread=st.sampled_from([0.11, 0.53, 1.7]),
    temperature=st.sampled_from([0.5, 1.0, 1.9]),
    top_k=st.sampled_from([0, 1, 3, 2 * VOCAB]),
    top_p=st.sampled_from([0.0, 0.61, 0.987, 1.0]),
)
def test_what_is_kept_equals_numpy(logits, spread, temperature, top_k, top_p):
    logits = spread * np.array(logits, np.float32)
    found = np.asarray(filtered(logits[None], temperature=temperature, top_k=top_k, top_p=top_p))[0]
    kept = reference(logits, temperature, top_k, top_p)
    assert set(np.flatnonzero(np.isfinite(found)).tolist()) == kept
    kept = sorted(kept)
    np.testing.assert_allclose(found[kept], logits[kept] / temperature, rtol=1e-6)
    assert (np.delete(found, kept) == -np.inf).all()


def test_rows_are_filtered_apart_from_each_other():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, VOCAB)), jnp.float32)
    whole = filtered(logits, top_k=3, top_p=0.8)
    for i, j in np.ndindex(3, 2):
        np.testing.assert_array_equal(whole[i, j], filtered(logits[i, j], top_k=3, top_p=0.8))


def markov(logits_of):
    """A model without memory: the logits after token i are row i."""
    table = jnp.asarray(logits_of, jnp.float32)
    return lambda cache, tokens: (table[tokens], cache)


def keys(n, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(n))


def test_temperature_zero_takes_the_likeliest_each_time():
    table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB))
    first = np.random.default_rng(1).normal(size=(4, VOCAB)).astype(np.float32)
    found = sample(markov(table), None, jnp.asarray(first), keys(4), 6, temperature=0)
    expected = [first.argmax(-1)]
    for _ in range(5):
        expected.append(table[expected[-1]].argmax(-1))
    np.testing.assert_array_equal(found, np.stack(expected, 1))
    assert found.dtype == jnp.int32


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_the_narrowest_draws_are_the_likeliest(options):
    table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB))
    first = jnp.asarray(table[:4], jnp.float32)
    np.testing.assert_array_equal(
        sample(markov(table), None, first, keys(4), 6, **options),
        sample(markov(table), None, first, keys(4), 6, temperature=0),
    )


@pytest.mark.parametrize(
    ("options", "probabilities"),
    [
        ({}, [0.5, 0.2, 0.2, 0.07, 0.03]),
        ({"temperature": 0.5}, np.square([0.5, 0.2, 0.2, 0.07, 0.03]) / 0.3358),
        ({"top_k": 3}, np.array([0.5, 0.2, 0.2, 0, 0]) / 0.9),
        ({"top_p": 0.95}, np.array([0.5, 0.2, 0.2, 0.07, 0]) / 0.97),
    ],
)
def test_draws_follow_the_distribution(options, probabilities):
    logits = np.log([0.5, 0.2, 0.2, 0.07, 0.03])
    n, length = 500, 8
    first = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, 5))
    drawn = np.asarray(sample(markov([logits] * 5), None, first, keys(n), length, **options))
    counts, expected = np.bincount(drawn.ravel(), minlength=5), n * length * np.asarray(probabilities)
    assert (counts[expected == 0] == 0).all()
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert np.sum((counts - expected) ** 2 / expected) < 20  # chi-square with 4 degrees at most: p = 0.0005
    # Neither positions nor sequences repeat each other's draws.
    assert 0.2 < np.mean(drawn[:, 1:] == drawn[:, :-1]) < 0.65 and 0.2 < np.mean(drawn[1:] == drawn[:-1]) < 0.65


@pytest.mark.parametrize("length", [1, 2])
def test_short_lengths(length):
    assert sample(markov(np.eye(3)), None, jnp.zeros((2, 3)), keys(2), length).shape == (2, length)


def test_a_draw_does_not_depend_on_its_neighbours():
    table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB))
    first = jnp.asarray(table[:6], jnp.float32)
    model = markov(table)
    whole = sample(model, None, first, keys(6), 7)
    part = sample(model, None, first[4:1:-1], keys(6)[4:1:-1], 7)
    np.testing.assert_array_equal(part, whole[4:1:-1])


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_sampling_with_a_cache_equals_reading_the_whole_prefix_again(temperature):
    length, given_ = 8, 3
    model = models.GPT(vocab=VOCAB, outputs=VOCAB, positions=length, width=8, depth=2, heads=2)
    prompt = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (3, given_)), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), prompt)
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda x: (0.5 * random.normal(size=x.shape)).astype(np.float32), shapes)

    def step(state, token):
        cache, position = state
        logits, cache = model.apply(params, token[:, None], cache, position, method="decode")
        return logits, (cache, position + 1)

    @jax.jit
    def cached():
        logits, cache = model.apply(params, prompt, model.cache(3, length), 0, method="decode")
        state = (cache, jnp.asarray(given_))
        return decode.sample(step, state, logits, keys(3), length - given_, temperature=temperature, top_k=5)

    def from_scratch(prefix, token):  # the prefix [b, length], and how much of it is there
        tokens, position = prefix
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], position, axis=1)
        logits = model.apply(params, tokens)
        return jnp.take(logits, position, axis=1), (tokens, position + 1)

    @jax.jit
    def again():
        tokens = jnp.pad(prompt, ((0, 0), (0, length - given_)))
        logits = model.apply(params, prompt)[:, -1]
        state = (tokens, jnp.asarray(given_))
        return decode.sample(from_scratch, state, logits, keys(3), length - given_, temperature=temperature, top_k=5)

    found = cached()
    np.testing.assert_array_equal(found, again())
    assert temperature == 0 or len(np.unique(found)) > 2
