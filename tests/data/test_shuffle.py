"""Claims about jtasks.data.shuffle: permutations that are equally likely, the same for ever, and take no memory."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.data import shuffle


def too_far(counts, expected):
    """How many standard deviations the chi-square statistic lies above its mean."""
    freedom = len(counts) - 1
    return (np.sum((counts - expected) ** 2 / expected) - freedom) / math.sqrt(2 * freedom)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1100) | st.integers(1, 10).flatmap(lambda k: st.integers(2**k - 1, 2**k + 1)), st.integers(0))
def test_every_size_has_a_permutation(n, key):
    key %= 2**63
    order = shuffle.permutation(n, key)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(order[::3], shuffle.permute(np.arange(0, n, 3), n, key))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2**16, 2**63 - 1) | st.integers(10**9, 2**40), key=st.integers(0, 2**63 - 1), data=st.data())
def test_positions_of_vast_permutations_differ_and_stay_inside(n, key, data):
    start = data.draw(st.integers(0, n - 2000))
    found = shuffle.permute(np.arange(start, start + 2000), n, key)
    assert len(np.unique(found)) == 2000 and found.min() >= 0 and found.max() < n


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_permutations_of_few_are_equally_likely(n):
    codes = [int(shuffle.permute(np.arange(n), n, key) @ 10 ** np.arange(n)) for key in range(4000)]
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == math.factorial(n)
    assert too_far(counts, len(codes) / len(counts)) < 5


@pytest.mark.parametrize("n", [999, 1000, 2**17 - 1, 10**9, 2**40 + 1])
def test_places_and_steps_between_neighbors_are_spread_evenly(n):
    found = shuffle.permute(np.arange(min(n, 2**17)), n, 7, 1).astype(float)
    for values in (found, np.diff(found) % n):
        counts, _ = np.histogram(values, 32, (0, n))
        assert too_far(counts, len(values) / 32) < 5


def test_orders_never_change():
    assert shuffle.permute(np.arange(6), 1000, 3, 1).tolist() == [764, 515, 631, 932, 104, 991]
    assert shuffle.permute(np.arange(3), 10**9, 0, 2).tolist() == [311996137, 547412627, 467891790]


def test_the_order_of_a_billion_examples_takes_no_memory():
    tracemalloc.start()
    epochs, indices = shuffle.order(0, 10**9, np.arange(10**9 - 128, 10**9 + 128))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    assert epochs.tolist() == [0] * 128 + [1] * 128 and len(np.unique(indices)) == 256


def test_epochs_and_seeds_differ_in_their_order():
    orders = [tuple(shuffle.permutation(50, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_seeds_are_uint32_distinct_and_spread():
    grid = [shuffle.example_seeds(s, np.full(5000, e), np.arange(5000)) for s in range(3) for e in range(3)]
    seeds = np.concatenate(grid)
    assert seeds.dtype == np.uint32
    assert len(np.unique(seeds)) > len(seeds) - 3  # 45,000 of 2**32: a collision or so
    counts = np.bincount(seeds % 4, minlength=4)  # the rotation example takes them modulo 4
    assert np.abs(counts / len(seeds) - 0.25).max() < 0.01
    bits = (seeds[:, None] >> np.arange(32)[None].astype(np.uint32)) & 1
    assert np.abs(bits.mean(0) - 0.5).max() < 0.015


def test_a_seed_is_the_splitmix64_hash_of_its_parts():
    def hashed(seed, epoch, index):  # in Python's integers
        state, mask = seed, 2**64 - 1
        for part in (0, epoch, index):
            state = ((state ^ part) + 0x9E3779B97F4A7C15) & mask
            state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
            state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
            state ^= state >> 31
        return state >> 32

    parts = [(0, 0, 0), (1, 2, 3), (2**31, 7, 10**9)]
    for seed, epoch, index in parts:
        assert shuffle.example_seeds(seed, np.array([epoch]), np.array([index]))[0] == hashed(seed, epoch, index)


def test_draws_never_change_and_are_spread_evenly():
    assert list(itertools.islice(shuffle.draws(3, 1, 2), 2)) == [1499397190221386047, 11332458453086922100]
    drawn = np.array(list(itertools.islice(shuffle.draws(0), 20_000)), np.uint64)
    for values in (drawn >> np.uint64(59), drawn % np.uint64(32)):
        assert too_far(np.bincount(values.astype(int), minlength=32), len(drawn) / 32) < 5
