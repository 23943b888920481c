"""Claims about batches by token budget: each example once an epoch, never more tokens than the budget, pure."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jtasks.data import bucket_shapes, buckets, pipeline
from jtasks.data.batch_plan import BatchPlan
from jtasks.errors import ConfigError, DataError

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=120).map(np.array)
BUCKETS = st.sets(st.integers(1, 63), max_size=3).map(lambda found: (*sorted(found), 64))
CASES = {"lengths": LENGTHS, "edges": BUCKETS, "tokens": st.integers(64, 1500), "seed": st.integers(0, 2**31 - 1)}
QUICK = settings(max_examples=50, deadline=None)


def planned(lengths, edges=(16, 32, 64), tokens=256, seed=0, *, shuffle=True, parts=1, padded=("tokens",)):
    return buckets.plan(
        lengths, seed, shuffle=shuffle, tokens=tokens, buckets=edges, shares=(1,) * parts, padded=padded
    )


def arrays(lengths):
    tokens = np.arange(1, 65) * (np.arange(64) < lengths[:, None]) + 100 * np.arange(len(lengths))[:, None]
    return {"tokens": tokens.astype(np.int32), "label": np.arange(len(lengths)), "wide": np.zeros((len(lengths), 64))}


def real(plan, step):
    """The examples of a step, without padding."""
    indices, entries = plan.at(plan.positions(step))
    return indices[entries["mask"] == 1]


def varied(n=100, seed=0):
    return np.random.default_rng(seed).integers(1, 65, n)


@QUICK
@given(**CASES, shuffle=st.booleans(), parts=st.integers(1, 4))
def test_each_example_comes_once_an_epoch_in_a_bucket_that_holds_it(lengths, edges, tokens, seed, shuffle, parts):
    plan = planned(lengths, edges, tokens * parts, seed, shuffle=shuffle, parts=parts)
    for epoch in range(2):
        steps = range(epoch * plan.steps(1), (epoch + 1) * plan.steps(1))
        np.testing.assert_array_equal(np.sort(np.concatenate([real(plan, s) for s in steps])), np.arange(len(lengths)))
        for step in steps:
            cut = plan.cut({"tokens": np.zeros((plan.rows(step), 64))}, step)["tokens"].shape[1]
            assert cut in edges and lengths[real(plan, step)].max() <= cut
            assert len(real(plan, step)) * cut <= tokens * parts
            assert plan.rows(step) % parts == 0
    assert len(plan.shapes()) <= len(edges)


@QUICK
@given(**CASES)
def test_up_to_eight_devices_get_full_rows_within_the_budget(lengths, edges, tokens, seed):
    plan = planned(lengths, edges, 8 * tokens, seed, parts=8)
    for step in range(plan.steps(1)):
        cut = plan.cut({"tokens": np.zeros((plan.rows(step), 64))}, step)["tokens"].shape[1]
        assert plan.rows(step) * cut <= 8 * tokens and plan.rows(step) % 8 == 0


@QUICK
@given(**CASES)
def test_at_most_one_batch_an_epoch_is_not_full(lengths, edges, tokens, seed):
    plan = planned(lengths, edges, tokens, seed)
    assert sum(len(real(plan, step)) < plan.rows(step) for step in range(plan.steps(1))) <= 1


@QUICK
@given(**CASES, parts=st.sampled_from([2, 3, 8]))
def test_the_same_examples_make_the_batches_on_any_devices(lengths, edges, tokens, seed, parts):
    one, many = (planned(lengths, edges, 8 * tokens, seed, parts=p) for p in (1, parts))
    assert one.steps(2) == many.steps(2)
    for step in range(one.steps(2)):
        np.testing.assert_array_equal(real(one, step), real(many, step))


def test_a_batch_is_a_function_of_seed_and_step_alone():
    lengths = varied()
    first = {step: real(planned(lengths), step).tolist() for step in reversed(range(40))}
    again = planned(lengths)
    assert first == {step: real(again, step).tolist() for step in range(40)}
    assert first != {step: real(planned(lengths, seed=1), step).tolist() for step in range(40)}


def test_epochs_mix_examples_and_the_order_of_lengths_anew():
    plan = planned(varied(300))
    k = plan.steps(1)
    kinds = [[plan.cut({"tokens": np.zeros((1, 64))}, e * k + s)["tokens"].shape[1] for s in range(k)] for e in (0, 1)]
    assert kinds[0] != kinds[1] and sorted(kinds[0]) == sorted(kinds[1])
    assert kinds[0] != sorted(kinds[0])
    batches = [{tuple(sorted(real(plan, e * k + s))) for s in range(k)} for e in (0, 1)]
    assert not batches[0] & batches[1]


def test_seeds_are_those_of_batches_of_one_size():
    lengths, plain = varied(), BatchPlan(100, 3, 10, shuffle=True)
    expected = pipeline.example_seeds(3, np.ones(100, int), np.arange(100))
    plan = planned(lengths, seed=3)
    for step in range(plan.steps(1), plan.steps(2)):
        indices, entries = plan.at(plan.positions(step))
        np.testing.assert_array_equal(entries["seed"], expected[indices])
    indices, entries = plain.at(plain.positions(12))
    np.testing.assert_array_equal(entries["seed"], expected[indices])


def test_rows_are_multiples_of_eight_or_powers_of_two():
    plan = planned(varied(500), edges=(10, 30, 64), tokens=400)
    assert plan.full == (40, 8, 4)
    assert plan.describe() == "40 x 10 or 8 x 30 or 4 x 64 tokens"


def test_padded_entries_are_cut_and_others_are_not():
    lengths = varied()
    plan, data = planned(lengths, parts=2), arrays(lengths)
    seen = set()
    for step in range(plan.steps(1)):
        batch = pipeline.batch_at(data, plan, step)
        seen.add(batch["tokens"].shape)
        assert batch["wide"].shape == (plan.rows(step), 64)
        width = batch["tokens"].shape[1]
        np.testing.assert_array_equal(batch["tokens"], data["tokens"][batch["label"], :width])
        assert (data["tokens"][batch["label"], width:] == 100 * batch["label"][:, None]).all()  # nothing but padding
    assert seen == {(16, 16), (8, 32), (4, 64)}


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_read_ahead_equal_batch_at(devices):
    lengths = varied()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    plan, data = planned(lengths, tokens=512, parts=8), arrays(lengths)
    steps = range(3, plan.steps(1.5))
    found = pipeline.batches(data, plan, steps, NamedSharding(mesh, PartitionSpec("data")))
    for step, batch in zip(steps, found, strict=True):
        expected = pipeline.batch_at(data, plan, step)
        assert set(batch) == set(expected)
        for name, x in expected.items():
            np.testing.assert_array_equal(batch[name], x)


def test_examples_and_tokens_are_counted_without_padding():
    lengths = varied()
    plan = planned(lengths)
    k = plan.steps(1)
    assert plan.count(range(k)) == {"examples": 100, "tokens": lengths.sum()}
    parts = [plan.count(range(a, b)) for a, b in itertools.pairwise([0, 3, 4, k, 2 * k])]
    assert sum(part["tokens"] for part in parts) == 2 * lengths.sum()
    assert plan.steps(2.5) == -(-5 * k // 2)


def test_the_waste_is_what_the_batches_hold():
    lengths = varied(500)
    plan = planned(lengths, parts=3, tokens=600)
    batches = [pipeline.batch_at(arrays(lengths), plan, step)["tokens"].size for step in range(plan.steps(1))]
    batched, longest = buckets.waste(plan)
    np.testing.assert_allclose(batched, 1 - lengths.sum() / sum(batches))
    np.testing.assert_allclose(longest, 1 - lengths.sum() / (500 * 64))
    assert batched < longest
    shares = plan.shapes()
    found = [pipeline.batch_at(arrays(lengths), plan, step)["tokens"].size for step in shares]
    np.testing.assert_allclose(np.dot(found, list(shares.values())), sum(batches) / plan.steps(1))


@pytest.mark.parametrize("edges", [(), (32, 16), (16, 16), (0, 8)])
def test_buckets_must_ascend(edges):
    with pytest.raises(ConfigError, match="ascending order"):
        planned(varied(), edges=edges)


def test_an_example_longer_than_every_bucket_is_named():
    with pytest.raises(DataError, match=r"example 2 has 40 tokens, more than the longest of .*\(16, 32\)"):
        planned(np.array([3, 16, 40, 7]), edges=(16, 32))


def test_a_budget_too_small_for_the_devices_says_what_is_needed():
    with pytest.raises(ConfigError, match=r"holds 4 rows of 64 tokens, fewer than 8 .* give at least 512"):
        planned(varied(), tokens=256, parts=8)


PAIRS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 24)), min_size=1, max_size=120).map(np.array)


def padding(lengths, shapes):
    plan = buckets.plan(lengths, 0, shuffle=False, tokens=1000, buckets=shapes, padded=(("s",), ("t",)))
    return sum(sum(plan.buckets[kind]) for kind in plan.kinds) - lengths.sum()


@QUICK
@given(lengths=PAIRS, seed=st.integers(0, 100))
def test_buckets_of_two_lengths_hold_both(lengths, seed):
    shapes = bucket_shapes.least_padding(lengths)
    plan = buckets.plan(lengths, seed, shuffle=True, tokens=512, buckets=shapes, padded=(("s",), ("t",)))
    assert len(shapes) <= bucket_shapes.MOST and shapes[-1] == (*lengths.max(axis=0),)
    batch = {"s": np.zeros((1, 40)), "t": np.zeros((1, 24)), "u": np.zeros((1, 24))}
    seen = []
    for step in range(plan.steps(1)):
        cut = plan.cut(batch, step)
        assert (lengths[real(plan, step)] <= [cut["s"].shape[1], cut["t"].shape[1]]).all()
        assert plan.rows(step) * (cut["s"].shape[1] + cut["t"].shape[1]) <= 512 and cut["u"].shape[1] == 24
        seen += real(plan, step).tolist()
    assert sorted(seen) == list(range(len(lengths)))


@QUICK
@given(lengths=PAIRS)
def test_the_buckets_of_two_lengths_are_the_best_chain(lengths):
    lengths = lengths[:12]
    chosen = padding(lengths, bucket_shapes.least_padding(lengths, most=2))
    first = itertools.product(*({*column.tolist()} for column in lengths.T))
    last = (*lengths.max(axis=0).tolist(),)
    assert chosen == min(padding(lengths, (shape, last) if shape != last else (last,)) for shape in first)
