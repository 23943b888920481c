"""Claims about jtasks.ops.decode.beam_search, against transformers' `generate`, all sequences there are, and itself."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from jtasks import models
from jtasks.errors import ConfigError
from jtasks.interop import huggingface, model_config
from jtasks.ops import decode

VOCAB, EOS, PAD = 5, 1, 0


@functools.cache
def gpt2(folder):
    model = models.GPT(**model_config.model_fields(folder))
    return model, {"params": huggingface.from_hf(folder)[0]}


def searched(folder, prompt, valid, *, num_beams, max_len, **options):
    """A beam search of the golden GPT-2, jitted whole."""
    model, params = gpt2(folder)
    ids = json.loads((folder / "config.json").read_text())

    def run(params, prompt, valid):
        logits, cache = model.apply(params, prompt, length=max_len, branches=num_beams, valid=valid, method="prefill")
        return decode.beam_search(
            lambda cache, tokens: model.apply(params, tokens, cache, method="extend"),
            cache,
            logits,
            num_beams=num_beams,
            max_len=max_len,
            eos=ids["eos_token_id"],
            pad=ids["pad_token_id"],
            reorder=models.reorder_branches,
            **options,
        )

    return jax.jit(run)(params, prompt, valid)


@pytest.mark.parametrize(
    ("name", "devices"), [("greedy", 1), ("beam5", 1), ("beam3_lp0", 4), ("beam4_lp2", 1)], ids=lambda value: str(value)
)
@reference.of(reference.GPT2)
def test_sequences_and_scores_are_those_of_transformers_on_any_devices(folder, name, devices):
    golden = np.load(folder / "io.npz")
    if f"{name}_kwargs" not in golden:
        pytest.skip(f"{folder} has no {name}")
    options = json.loads(str(golden[f"{name}_kwargs"]))
    names = {"max_new_tokens": "max_len", "min_new_tokens": "min_len"}
    prompt, valid = golden["prompt"].astype(np.int32), golden["prompt_mask"].astype(bool)
    rows = NamedSharding(tiny.mesh(devices), PartitionSpec("data"))
    prompt, valid = jax.device_put((prompt, valid), rows)
    found = searched(folder, prompt, valid, **{names.get(name, name): value for name, value in options.items()})
    expected = golden[f"{name}_sequences"][:, prompt.shape[1] :]
    np.testing.assert_array_equal(found.tokens[:, 0, : expected.shape[1]], expected)
    padding = json.loads((folder / "config.json").read_text())["pad_token_id"]
    assert (np.asarray(found.tokens[:, 0, expected.shape[1] :]) == padding).all()
    if name != "greedy":
        np.testing.assert_allclose(found.scores[:, 0], golden[f"{name}_scores"], rtol=1e-5)


def markov(cache, tokens):
    """A model whose logits after an id are a row of a table, a cache that all beams share."""
    return cache[tokens], cache


@functools.cache
def search(num_beams, **options):
    """Jitted (table [VOCAB, VOCAB], first logits [b, VOCAB]) -> Beams."""
    options = {"max_len": 4, "eos": EOS, "pad": PAD} | options
    kept = lambda cache, parents: cache  # noqa: E731
    return jax.jit(
        lambda table, first: decode.beam_search(markov, table, first, num_beams=num_beams, reorder=kept, **options)
    )


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def every_sequence(table, first, length, penalty):
    """All sequences that end, or have the full length: {ids: score}, from float64."""
    after, begin, found = log_softmax(table.astype(np.float64)), log_softmax(first.astype(np.float64)), {}
    for n in range(1, length + 1):
        for ids in itertools.product(range(VOCAB), repeat=n):
            if EOS in ids[:-1] or (n < length and ids[-1] != EOS):
                continue
            nats = begin[ids[0]] + sum(after[a, b] for a, b in itertools.pairwise(ids))
            found[ids] = nats / n**penalty
    return found


def made(seed, b=3):
    random = np.random.default_rng(seed)
    return (2 * random.normal(size=(VOCAB, VOCAB))).astype(np.float32), (2 * random.normal(size=(b, VOCAB))).astype(
        np.float32
    )


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
def test_a_search_that_is_wide_enough_finds_the_best_of_all_sequences(penalty):
    run = search(VOCAB**3, length_penalty=penalty, early_stopping="never", n_best=3)
    for seed in range(8):
        table, first = made(seed)
        found = jax.device_get(run(table, first))
        for row in range(len(first)):
            ranked = sorted(every_sequence(table, first[row], 4, penalty).items(), key=lambda item: -item[1])[:3]
            for place, (ids, score) in enumerate(ranked):
                assert tuple(found.tokens[row, place, : len(ids)]) == ids
                assert found.lengths[row, place] == len(ids) and (found.tokens[row, place, len(ids) :] == PAD).all()
                np.testing.assert_allclose(found.scores[row, place], score, rtol=1e-5)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_scores_are_of_the_sequences_and_the_best_comes_first(early_stopping):
    run = search(3, length_penalty=0.7, early_stopping=early_stopping, n_best=3)
    for seed in range(20):
        table, first = made(seed)
        found = jax.device_get(run(table, first))
        assert (np.diff(found.scores, axis=1) <= 0).all()
        for row in range(len(first)):
            possible = every_sequence(table, first[row], 4, 0.7)
            for ids, count, score in zip(found.tokens[row], found.lengths[row], found.scores[row], strict=True):
                np.testing.assert_allclose(score, possible[tuple(ids[:count].tolist())], rtol=1e-5)


def test_one_beam_is_greedy_search():
    run = search(1, max_len=6, min_len=2)
    greedy = jax.jit(
        lambda table, first: decode.sample(markov, table, first, None, 6, temperature=0, eos=EOS, pad=PAD, min_len=2)
    )
    for seed in range(20):
        table, first = made(seed)
        np.testing.assert_array_equal(run(table, first).tokens[:, 0], greedy(table, first))


def test_a_prompt_is_searched_as_if_it_were_alone():
    run = search(3, early_stopping=True)
    for seed in range(5):
        table, first = made(seed, b=6)
        whole = run(table, first)
        for row in range(6):
            one = run(table, first[row : row + 1])
            np.testing.assert_array_equal(one.tokens[0], whole.tokens[row])
            np.testing.assert_allclose(one.scores[0], whole.scores[row], rtol=1e-6)


def test_the_rules_hold_in_every_beam():
    run = search(4, max_len=9, n_best=4, min_len=3, no_repeat_ngram_size=2, repetition_penalty=1.3)
    for seed in range(10):
        table, first = made(seed)
        found = jax.device_get(run(table, first))
        for ids, count in zip(found.tokens.reshape(-1, 9), found.lengths.reshape(-1), strict=True):
            pairs = list(itertools.pairwise(ids[:count].tolist()))
            assert len(pairs) == len(set(pairs))
            assert not (ids[:3] == EOS).any() and count > 3


def test_forced_ids_stand_first_and_last_and_bad_words_nowhere():
    words = ((4,), (0, 3), (3, 2, 3))
    run = search(3, max_len=5, n_best=3, forced_bos_token_id=3, forced_eos_token_id=EOS, bad_words_ids=words)
    for seed in range(10):
        found = jax.device_get(run(*made(seed)))
        for ids, count in zip(found.tokens.reshape(-1, 5).tolist(), found.lengths.reshape(-1), strict=True):
            assert ids[0] == 3 and ids[count - 1] == EOS
            assert not any(tuple(ids[i : i + len(word)]) == word for word in words for i in range(count))


def test_beams_with_a_cache_equal_reading_every_prefix_again():
    """Branches that share their prompt's keys and values, against beams that each carry their tokens along."""
    model = models.GPT(vocab=9, outputs=9, max_length=16, width=8, depth=2, heads=2)
    prompt = np.random.default_rng(0).integers(0, 9, (3, 4)).astype(np.int32)
    params = tiny.drawn(model.init, jax.random.key(0), prompt, std=0.7)
    n, length = 4, 6
    options = {"num_beams": n, "max_len": length, "eos": EOS, "pad": PAD, "n_best": n, "prompt": prompt}
    options |= {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2}

    def again(cache, tokens):
        prefix = jax.lax.dynamic_update_slice_in_dim(cache["prefix"], tokens[..., None], cache["count"][0, 0], axis=2)
        logits = model.apply(params, prefix.reshape(-1, prefix.shape[2]))
        logits = jnp.take(logits, cache["count"][0, 0], axis=1).reshape(*tokens.shape, 9)
        return logits, {"prefix": prefix, "count": cache["count"] + 1}

    @jax.jit
    def both():
        logits, cache = model.apply(params, prompt, length=length, branches=n, method="prefill")
        extend = lambda cache, tokens: model.apply(params, tokens, cache, method="extend")  # noqa: E731
        first = decode.beam_search(extend, cache, logits, reorder=models.reorder_branches, **options)
        rows = jnp.repeat(jnp.pad(prompt, ((0, 0), (0, length)))[:, None], n, axis=1)
        cache = {"prefix": rows, "count": jnp.full((3, n), prompt.shape[1])}
        return first, decode.beam_search(again, cache, model.apply(params, prompt)[:, -1], **options)

    first, second = both()
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_allclose(first.scores, second.scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2, "n_best": 3}, "n_best=3"),
        ({"num_beams": 0}, "num_beams must be at least 1, not 0"),
        ({"num_beams": 2, "n_best": 0}, "n_best must be at least 1"),
        ({"num_beams": 2, "max_len": 0}, "max_len must be at least 1, not 0"),
        ({"num_beams": 2, "max_len": 2.5}, "max_len must be int"),
        ({"num_beams": 2, "min_len": -1}, "min_len must be at least 0"),
        ({"num_beams": 2, "length_penalty": np.nan}, "length_penalty must be a finite number"),
        ({"num_beams": 2, "repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"num_beams": 2, "no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be at least 0"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping='always'"),
        ({"num_beams": 2, "forced_bos_token_id": -1}, "forced_bos_token_id must be at least 0"),
        ({"num_beams": 2, "bad_words_ids": (3, 4)}, "bad_words_ids=.* must hold tuples of ids"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        decode.beam_search(markov, jnp.zeros((5, 5)), jnp.zeros((1, 5)), **{"max_len": 3} | options)


def uniform(cache, tokens):
    """Every token alike, whatever came before."""
    return jnp.zeros((*tokens.shape, 4)), cache


@pytest.mark.parametrize("num_beams", [1, 2, 3])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_a_search_whose_tokens_are_all_barred_gives_the_best_unfinished_sequence(num_beams, early_stopping):
    run = functools.partial(
        decode.beam_search, uniform, (), jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]])), num_beams=num_beams, pad=9
    )
    found = run(max_len=6, no_repeat_ngram_size=1, early_stopping=early_stopping)
    assert found.lengths.tolist() == [[4]]  # all tokens are used up
    assert sorted(found.tokens[0, 0, :4].tolist()) == [0, 1, 2, 3] and found.tokens[0, 0, 4:].tolist() == [9, 9]
    assert np.isfinite(found.scores).all() and found.scores[0, 0] > -100
    nothing = run(max_len=3, eos=(0, 1, 2, 3), min_len=2, early_stopping=early_stopping)
    assert nothing.lengths.tolist() == [[0]] and nothing.tokens.tolist() == [[[9, 9, 9]]]
    assert nothing.scores.tolist() == [[0]]


def test_a_row_whose_tokens_are_all_barred_leaves_the_other_rows_alone():
    logits = jnp.stack([jnp.full(4, -jnp.inf), jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))])
    options = {"num_beams": 2, "max_len": 3, "eos": 3}
    both = decode.beam_search(uniform, (), logits, **options)
    alone = decode.beam_search(uniform, (), logits[1:], **options)
    np.testing.assert_array_equal(both.tokens[1], alone.tokens[0])
    np.testing.assert_array_equal(both.scores[1], alone.scores[0])
    assert both.lengths[0, 0] == 0


@pytest.mark.parametrize("branches", [1, 3, 5])
@pytest.mark.parametrize("prompt", [1, 2])
@reference.of(reference.GPT2)
def test_one_token_may_have_more_branches_than_the_prompt_has_tokens(branches, prompt, folder):
    tokens = jnp.arange(2, 2 + prompt)[None]
    found = searched(folder, tokens, None, num_beams=branches, max_len=1)
    model, params = gpt2(folder)
    best = jax.nn.log_softmax(model.apply(params, tokens)[:, -1])
    assert found.tokens.tolist() == [[[int(best.argmax())]]]
    np.testing.assert_allclose(found.scores[0, 0], best.max(), rtol=1e-5)


@pytest.mark.parametrize("n", [5, 700, 1000])
def test_the_largest_of_groups_are_the_largest_of_all_and_of_equal_ones_the_first(n):
    random = np.random.default_rng(0)
    x = random.integers(0, 40, (6, n)).astype(np.float32) + np.where(random.random((6, n)) < 0.9, -np.inf, 0)
    x[0, :], x[1, :-1] = -np.inf, -np.inf
    for ours, theirs in zip(decode.top_k(jnp.asarray(x), 4), jax.lax.top_k(x, 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)
