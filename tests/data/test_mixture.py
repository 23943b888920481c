"""Mixtures have exact shares, use up a source before they repeat it, and read only the rows that a process needs."""

import types

import hypothesis
import hypothesis.strategies as st
import ml_collections
import numpy as np
import pytest

from jtasks import variants
from jtasks.data import mixture, pipeline
from jtasks.errors import ConfigError, DataError

WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@hypothesis.settings(max_examples=200)
@hypothesis.given(WEIGHTS, st.integers(0, 200))
def test_every_window_has_exact_shares_and_every_prefix_has_them_within_one(weights, start):
    total = sum(weights)
    stream = np.tile(mixture.window(weights), 2 + start // total)
    counts = np.bincount(stream[start : start + total], minlength=len(weights))
    assert counts.tolist() == weights  # wherever the window begins
    shares = np.array(weights) / total
    taken = np.cumsum(stream[:, None] == np.arange(len(weights)), axis=0)
    assert np.all(np.abs(taken - np.arange(1, len(stream) + 1)[:, None] * shares) < 1)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 12)), min_size=1, max_size=4), st.integers(1, 7))
def test_no_example_of_a_source_comes_again_before_all_others_have_come(sources, batch_size):
    plan = make(sources, batch_size)
    steps = plan.n
    indices, entries = plan.at(np.concatenate([plan.positions(step) for step in range(steps)]))
    start = 0
    for number, (_, size) in enumerate(sources):
        own = indices[entries["source_id"] == number] - start
        for begin in range(0, len(own) - size + 1, size):
            assert sorted(own[begin : begin + size]) == list(range(size))
        start += size


def make(sources, batch_size, shares=(1,), seed=3):
    sizes, weights = ({f"s{i}": each[k] for i, each in enumerate(sources)} for k in (1, 0))
    weights = variants.weights(weights)
    total = sum(sizes.values())
    return mixture.MixturePlan(total, seed, batch_size, True, sizes=sizes, weights=weights, shares=shares)


def test_the_rows_of_a_step_are_the_same_for_any_layout_on_devices():
    one, four = make([(2, 50), (1, 9)], 12), make([(2, 50), (1, 9)], 12, shares=(1,) * 8)
    for step in (0, 5, 1000):
        indices, entries = one.at(one.positions(step))
        others, more = four.at(four.positions(step))
        real = more["mask"] > 0
        np.testing.assert_array_equal(indices, others[real])
        np.testing.assert_array_equal(entries["seed"], more["seed"][real])


def test_a_source_keeps_its_order_when_another_one_joins():
    two, three = make([(1, 20), (1, 30)], 8), make([(1, 20), (1, 30), (2, 40)], 8)
    own = [indices[entries["source_id"] == 1] for indices, entries in (p.at(np.arange(200)) for p in (two, three))]
    np.testing.assert_array_equal(own[0][:40], own[1][:40])


@pytest.mark.parametrize("kind", ["arrays", "rows", "both"])
def test_rows_of_all_sources_are_read_where_they_are(kind):
    arrays = [{"x": np.arange(5.0) + 10 * i, "name": np.array([f"{i}{j}" for j in range(5)], object)} for i in range(3)]
    rows = [[{name: array[i] for name, array in part.items()} for i in range(5)] for part in arrays]
    chosen = {"arrays": arrays, "rows": rows, "both": [arrays[0], *rows[1:]]}[kind]
    joined = mixture.join(dict(zip("abc", chosen, strict=True)))
    assert pipeline.size(joined) == 15 and isinstance(joined, dict) == (kind == "arrays")
    batch = pipeline.fetch(joined, np.array([14, 0, 7, 7]), None)
    assert batch["x"].tolist() == [24.0, 0.0, 12.0, 12.0]
    assert pipeline.read(joined, 6)["name"] == "11"


def test_other_data_of_an_evaluation_is_read_by_the_task_itself():
    task = types.ModuleType("own")
    task.dataset = lambda split, config: {"x": np.full(config.data.n, config.data.k)}
    mix = {"mix": {"a": 1, "b": 1}, "sources": {"a": {"k": 1}, "b": {"k": 2}}}
    config = ml_collections.FrozenConfigDict({"data": {"n": 3, "k": 0, "skip_bad": 0, **mix}})
    mixed = mixture.over_sources(task)
    assert mixed.dataset("train", config)["x"][:].tolist() == [1, 1, 1, 2, 2, 2]
    assert mixed.dataset("valid", variants.with_data(config, {"k": 5}))["x"].tolist() == [5, 5, 5]


def test_sources_of_other_entries_or_shapes_are_named():
    with pytest.raises(DataError, match=r"a and b cannot be mixed: 'x' is float64\[3\] in one and float64\[\] in"):
        mixture.join({"a": {"x": np.zeros((2, 3))}, "b": {"x": np.zeros(2)}})


@pytest.mark.parametrize("weight", [0, -1, float("inf"), "2", True, None])
def test_a_weight_that_is_not_above_0_is_refused(weight):
    with pytest.raises(ConfigError, match=r"config.data.mix.b must be a weight above 0"):
        variants.weights({"a": 1, "b": weight})


def test_weights_that_need_a_long_window_are_refused():
    assert variants.weights({"a": 0.7, "b": 0.3}) == {"a": 7, "b": 3}
    with pytest.raises(ConfigError, match="give rounder weights"):
        variants.weights({"a": 1, "b": 0.333333333})
