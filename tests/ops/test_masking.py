"""Claims about which tokens are hidden, and how."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.ops import augment, masking

VOCAB, MASK, T, PLACES = 1000, 4, 64, 12


@functools.partial(jax.jit, static_argnames=("rate", "places"))
def mask(tokens, maskable, seeds, begins=None, rate=0.15, places=PLACES):
    return masking.mask(
        tokens,
        maskable,
        augment.keys(seeds),
        rate=rate,
        places=places,
        vocab=VOCAB,
        mask_token=MASK,
        begins=begins,
    )


def batch(n, seed=0, longest=1):
    """Tokens [n, T] that begin with one that may not be chosen and end in padding, and where words begin."""
    random = np.random.default_rng(seed)
    tokens = random.integers(5, VOCAB, (n, T)).astype(np.int32)
    lengths = random.integers(T // 2, T + 1, n)
    maskable = (np.arange(T)[None] < lengths[:, None]) & (np.arange(T)[None] > 0)
    begins = random.random((n, T)) < 1 / longest
    return tokens, maskable, np.arange(n, dtype=np.uint32), begins


def test_shares_are_those_of_the_paper():
    tokens, maskable, seeds, _ = batch(3000)
    found = jax.device_get(mask(tokens, maskable, seeds))
    used = found.weights > 0
    assert used.sum() / maskable.sum() == pytest.approx(0.15, abs=0.003)
    np.testing.assert_array_equal(used.sum(1), np.clip(np.round(np.float32(0.15) * maskable.sum(1)), 1, PLACES))
    shown = np.take_along_axis(found.inputs, found.places, 1)[used]
    labels = found.labels[used]
    hidden, kept = shown == MASK, shown == labels
    n = used.sum()
    for share, expected in ((hidden, 0.8), (kept, 0.1 + 0.1 / VOCAB), (~hidden & ~kept, 0.1)):
        assert abs(share.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
    replaced = shown[~hidden & ~kept]
    assert replaced.min() < 0.02 * VOCAB and replaced.max() > 0.98 * VOCAB  # from the whole vocabulary
    # Every place that may be chosen is chosen equally often.
    chosen = np.zeros((len(tokens), T))
    np.put_along_axis(chosen, found.places, used.astype(float), 1)
    rates = chosen[:, 1 : T // 2].mean(0)
    assert np.abs(rates - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / len(tokens))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), longest=st.sampled_from([0, 1, 3]))
def test_only_what_may_be_chosen_changes_and_labels_are_what_stood_there(seed, longest):
    tokens, maskable, seeds, begins = batch(8, seed, max(longest, 1))
    found = jax.device_get(mask(tokens, maskable, seeds + np.uint32(seed), begins if longest else None))
    used = found.weights > 0
    assert all(len(set(row)) == len(row) for row in found.places.tolist())
    assert np.take_along_axis(maskable, found.places, 1)[used].all()
    np.testing.assert_array_equal(found.labels, np.take_along_axis(tokens, found.places, 1))
    changed = found.inputs != tokens
    chosen = np.zeros(tokens.shape, bool)
    np.put_along_axis(chosen, found.places, used, 1)
    assert not changed[~chosen].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), longest=st.sampled_from([1, 2, 4]))
def test_whole_words_are_hidden_with_all_their_pieces(seed, longest):
    tokens, maskable, seeds, begins = batch(8, seed, longest)
    found = jax.device_get(mask(tokens, maskable, seeds, begins))
    chosen = np.zeros(tokens.shape, bool)
    np.put_along_axis(chosen, found.places, found.weights > 0, 1)
    starts = begins | ~np.pad(maskable, ((0, 0), (1, 0)))[:, :-1]
    for row in range(8):
        words = np.split(np.arange(T), np.flatnonzero(starts[row]))
        for word in words:
            word = word[maskable[row][word]]
            assert chosen[row][word].all() or not chosen[row][word].any()
    assert (chosen.sum(1) <= np.clip(np.round(0.15 * maskable.sum(1)), 1, PLACES)).all()


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_whole_words_have_the_same_share(longest):
    tokens, maskable, seeds, begins = batch(2000, longest=longest)
    found = jax.device_get(mask(tokens, maskable, seeds, begins))
    assert (found.weights.sum() / maskable.sum()) == pytest.approx(0.15, abs=0.006)
    if longest == 1:  # then each token is a word
        np.testing.assert_array_equal(found.weights.sum(1), mask(tokens, maskable, seeds).weights.sum(1))


def test_a_draw_depends_on_its_own_seed_alone():
    tokens, maskable, seeds, begins = batch(16)
    for words in (None, begins):
        whole = mask(tokens, maskable, seeds, words)
        part = mask(tokens[3:5], maskable[3:5], seeds[3:5], None if words is None else words[3:5])
        for one, two in zip(whole, part, strict=True):
            np.testing.assert_array_equal(one[3:5], two)
    other = mask(tokens, maskable, seeds + np.uint32(100))
    assert (np.asarray(other.places) != np.asarray(mask(tokens, maskable, seeds).places)).any(1).all()


def test_nothing_to_choose_gives_no_weight_and_few_places_are_all_used():
    tokens, maskable, seeds, begins = batch(4)
    for words in (None, begins):
        none = mask(tokens, np.zeros_like(maskable), seeds, words)
        assert float(none.weights.sum()) == 0
        np.testing.assert_array_equal(none.inputs, tokens)
    full = mask(tokens, maskable, seeds, rate=0.9, places=5)
    assert full.places.shape == (4, 5) and float(full.weights.min()) == 1
    assert mask(tokens, maskable, seeds, places=T + 9).places.shape == (4, T)
    assert jnp.issubdtype(full.inputs.dtype, jnp.int32)
