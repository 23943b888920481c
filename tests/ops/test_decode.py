"""Claims about jtasks.ops.decode: sampling, against numpy and a model that re-reads its whole prefix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks import models
from jtasks.errors import ConfigError
from jtasks.ops import decode

VOCAB = 9

filtered = jax.jit(decode.filter_logits, static_argnames=("top_k", "top_p", "min_p"))
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


@settings(max_examples=40, deadline=None)
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


@pytest.mark.parametrize("min_p", [0.05, 0.3])
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(min_p):
    logits = np.log(np.array([[0.5, 0.2, 0.2, 0.07, 0.03], [0.02, 0.9, 0.04, 0.03, 0.01]], np.float32))
    found = np.isfinite(filtered(logits, min_p=min_p))
    np.testing.assert_array_equal(found, np.exp(logits) >= min_p * np.exp(logits).max(-1, keepdims=True))


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


@pytest.mark.parametrize("temperature", [1e-30, 1e-39, 1e-45, 1e-300])
def test_a_temperature_so_low_that_logits_overflow_takes_the_likeliest(temperature):
    logits = decode.filter_logits(jnp.array([1.0, 5.0, 2.0]), temperature=temperature)
    assert {int(jax.random.categorical(jax.random.key(seed), logits)) for seed in range(8)} == {1}


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


def test_a_draw_does_not_depend_on_its_neighbors():
    table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB))
    first = jnp.asarray(table[:6], jnp.float32)
    model = markov(table)
    whole = sample(model, None, first, keys(6), 7)
    part = sample(model, None, first[4:1:-1], keys(6)[4:1:-1], 7)
    np.testing.assert_array_equal(part, whole[4:1:-1])


GPT = models.GPT(vocab=VOCAB, outputs=VOCAB, max_length=24, width=8, depth=2, heads=2)
PROMPT = np.random.default_rng(0).integers(0, VOCAB, (4, 5))


@functools.cache
def gpt_params(seed=1):
    shapes = jax.eval_shape(GPT.init, jax.random.key(0), PROMPT)
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.6 * random.normal(size=x.shape)).astype(np.float32), shapes)


def extend(params):
    return lambda cache, tokens: GPT.apply(params, tokens, cache, method="extend")


@jax.jit
def full(params, tokens):
    return GPT.apply(params, tokens)


def from_scratch(params, rows, position):
    """A model without a KV cache: the cache is the prefix [b, n, length], and `position` tokens of it are there."""

    def step(cache, tokens):
        prefix, position = cache["prefix"], cache["position"][0, 0]
        prefix = jax.lax.dynamic_update_slice_in_dim(prefix, tokens[..., None], position, axis=2)
        logits = GPT.apply(params, prefix.reshape(-1, prefix.shape[2]))
        logits = jnp.take(logits, position, axis=1).reshape(*tokens.shape, VOCAB)
        return logits, {"prefix": prefix, "position": cache["position"] + 1}

    return step, {"prefix": rows, "position": jnp.full(rows.shape[:2], position, jnp.int32)}


def test_sampling_with_a_cache_equals_reading_the_whole_prefix_again():
    n, length, params = 3, 6, gpt_params()
    drawn = {"keys": keys(4 * n).reshape(4, n), "length": length, "temperature": 1.3, "top_k": 5}

    @jax.jit
    def cached(params):
        logits, cache = GPT.apply(params, PROMPT, length=length, branches=n, method="prefill")
        return decode.sample(extend(params), cache, jnp.repeat(logits[:, None], n, 1), **drawn)

    @jax.jit
    def again(params):
        rows = jnp.repeat(jnp.pad(PROMPT, ((0, 0), (0, length)))[:, None], n, 1)
        step, cache = from_scratch(params, rows, PROMPT.shape[1])
        logits = GPT.apply(params, PROMPT)[:, -1]
        return decode.sample(step, cache, jnp.repeat(logits[:, None], n, 1), **drawn)

    found = cached(params)
    np.testing.assert_array_equal(found, again(params))
    assert len(np.unique(found.reshape(4 * n, -1), axis=0)) > 4  # branches differ


def test_it_does_not_matter_where_the_padding_stands():
    params, length = gpt_params(), 5
    counts = np.array([5, 2, 1, 4])
    left = np.arange(5) >= 5 - counts[:, None]
    valid = np.concatenate([left, left[:, ::-1], left[:, [1, 2, 3, 0, 4]]])
    prompt = np.full((12, 5), 3)
    for row, there in enumerate(valid):
        prompt[row, there] = PROMPT[row % 4, : counts[row % 4]]

    @jax.jit
    def greedy(params):
        logits, cache = GPT.apply(params, prompt, length=length, valid=valid, method="prefill")
        rules = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "prompt": prompt, "valid": valid}
        return decode.sample(extend(params), cache, logits[:, None], None, length, temperature=0, **rules)[:, 0]

    found = np.asarray(greedy(params)).reshape(3, 4, length)
    np.testing.assert_array_equal(found[1:], found[[0, 0]])
    assert len(np.unique(found[0], axis=0)) > 1


def test_what_a_prompt_says_after_its_padding_is_what_it_says():
    """A batch's prompts may have gaps: nothing sees them, and positions do not count them."""
    valid = np.array([[1, 0, 0, 1, 1]] * 4, bool)
    logits, _ = jax.jit(lambda p: GPT.apply(p, PROMPT, length=1, valid=valid, method="prefill"))(gpt_params())
    np.testing.assert_allclose(logits, full(gpt_params(), PROMPT[:, [0, 3, 4]])[:, -1], atol=1e-5)


# How sampling ends, and what it may not repeat


@functools.cache
def drawn(n=200, length=12, **options):
    table = 1.5 * np.random.default_rng(0).normal(size=(VOCAB, VOCAB))
    first = jnp.asarray(table[np.arange(n) % VOCAB], jnp.float32)
    run = jax.jit(lambda first: decode.sample(markov(table), None, first, keys(n), length, **options))
    return np.asarray(run(first))


def test_after_its_end_a_sequence_is_padding():
    eos = (4, 7)
    ended, free = drawn(eos=eos, pad=VOCAB), drawn()
    ends = np.isin(free, eos)
    before = np.cumsum(ends, axis=1) - ends == 0
    np.testing.assert_array_equal(ended, np.where(before, free, VOCAB))  # until then the draws are those without an end
    assert (ended == VOCAB).any(1).mean() > 0.5


def test_no_sequence_ends_before_its_least_length():
    found = drawn(eos=4, pad=VOCAB, min_len=5)
    assert (found[:, :5] < VOCAB).all() and not (found[:, :5] == 4).any()
    assert (found[:, 5] == 4).any()


def test_the_loop_stops_when_all_have_ended():
    def step(calls, tokens):
        return jnp.zeros((3, VOCAB)).at[:, 4].set(9.0), calls + 1

    calls = []
    jax.jit(
        lambda first: decode.sample(
            lambda cache, tokens: (jax.debug.callback(lambda: calls.append(1)), step(cache, tokens))[1],
            jnp.int32(0),
            first,
            None,
            50,
            temperature=0,
            eos=4,
        )
    )(jnp.zeros((3, VOCAB)).at[:, 2].set(9.0)).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == 1


@pytest.mark.parametrize("size", [1, 3])
def test_no_n_gram_comes_twice(size):
    def repeats(rows):
        grams = [[tuple(row[i : i + size]) for i in range(len(row) - size + 1)] for row in rows.tolist()]
        return sum(len(row) - len(set(row)) for row in grams)

    length = 12 if size > 1 else VOCAB
    assert repeats(drawn(length=length)) > 0
    assert repeats(drawn(length=length, no_repeat_ngram_size=size)) == 0


def test_repeated_tokens_lose_by_the_penalty_and_n_grams_of_the_prompt_count():
    logits = np.array([[2.0, 1.0, -1.0, 0.5, 0.1]], np.float32)
    prompt, valid = np.array([[3, 0, 2, 0]]), np.array([[False, True, True, True]])

    def first(**options):
        draw = jax.jit(lambda x: decode.sample(markov(logits), None, x, None, 1, temperature=0, **options))
        return int(draw(logits)[0, 0])

    assert first() == 0
    assert first(repetition_penalty=1.9, prompt=prompt, valid=valid) == 0  # 2 / 1.9 is still above 1
    assert first(repetition_penalty=2.1, prompt=prompt, valid=valid) == 1
    assert first(no_repeat_ngram_size=1, prompt=prompt, valid=valid) == 1
    assert first(no_repeat_ngram_size=2, prompt=np.array([[0, 0, 4, 0]])) == 1  # after 0 came 0, and 4
    assert first(no_repeat_ngram_size=3, prompt=np.array([[4, 0, 4, 0]])) == 0  # after 4 0 came 4 alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0, not -1.0"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"temperature": float("inf")}, "temperature must be finite"),
        ({"temperature": None}, "temperature must be a number"),
        ({"temperature": "hot"}, "temperature must be float"),
        ({"top_p": -1.0}, r"top_p must be in \[0, 1\]"),
        ({"top_p": 1.5}, r"top_p must be in \[0, 1\]"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_k": 2.5}, "top_k must be int"),
        ({"min_p": 2.0}, r"min_p must be in \[0, 1\]"),
        ({"length": -5}, "length must be at least 0"),
        ({"min_len": -1}, "min_len must be at least 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be above 0"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size must be at least 0"),
        ({"keys": None}, "random key for each sequence"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(options, message):
    arguments = {"keys": jax.random.split(jax.random.key(0), 1), "length": 2} | options
    step = lambda cache, tokens: (jnp.zeros((1, 4)), cache)  # noqa: E731
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(lambda: decode.sample(step, (), jnp.zeros((1, 4)), **arguments))


def test_numpys_numbers_are_numbers_and_a_top_p_of_0_is_greedy():
    step = lambda cache, tokens: (jnp.array([[0.0, 3, 1, 2]]), cache)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 1)
    options = {"temperature": np.float32(5), "top_k": np.int64(3), "top_p": np.float32(0)}
    found = decode.sample(step, (), jnp.array([[0.0, 3, 1, 2]]), keys, 3, **options)
    assert found.tolist() == [[1, 1, 1]]
    with pytest.raises(ConfigError, match="takes the likeliest token"):
        decode.filter_logits(jnp.zeros(4), temperature=0.0)
    jax.jit(lambda t: decode.filter_logits(jnp.zeros(4), temperature=t))(0.5)
