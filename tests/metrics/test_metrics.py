"""Claims about jtasks.metrics, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks import metrics
from jtasks.metrics import Loss, Mean

NUMBERS = st.lists(st.tuples(st.floats(-100, 100, width=32), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=12)


def numbers(mean):
    return float(mean.total), float(mean.count)


def test_without_a_mask_every_value_counts_once():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert numbers(Mean.of(jnp.asarray(values))) == (66.0, 12.0)


def test_a_mask_of_examples_applies_to_all_their_tokens():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert numbers(Mean.of(jnp.asarray(values), jnp.array([1.0, 0.0, 0.5]))) == (6 + 0.5 * 38, 6.0)


def test_a_mask_of_tokens_applies_to_each():
    values, mask = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), np.eye(3, 4, dtype=np.float32)
    mean = Mean.of(jnp.asarray(values), jnp.asarray(mask))
    np.testing.assert_allclose(numbers(mean), (np.trace(values[:, :3]), 3), rtol=1e-6)


@pytest.mark.parametrize(("values", "mask"), [((3, 4), (4,)), ((3,), (3, 1)), ((3, 4), (3, 3)), ((3, 4), (1, 4))])
def test_a_mask_of_another_shape_is_an_error_that_names_both(values, mask):
    with pytest.raises(ValueError, match=r"mask \(.*\) must have the leading dimensions of values \(.*\)") as error:
        Mean.of(jnp.zeros(values), jnp.ones(mask))
    assert str(values) in str(error.value) and str(mask) in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_under_a_zero_weight_is_dropped_whatever_it_is(bad):
    assert numbers(Mean.of(jnp.array([1.0, bad, 3.0]), jnp.array([1.0, 0.0, 1.0]))) == (4.0, 2.0)


def test_a_nan_under_a_weight_is_not_hidden():
    assert np.isnan(Mean.of(jnp.array([1.0, np.nan]), jnp.array([1.0, 0.5])).total)


def test_a_dropped_nan_has_a_zero_gradient():
    gradient = jax.grad(lambda v: Mean.of(v, jnp.array([1.0, 0.0])).value)(jnp.array([2.0, np.nan]))
    np.testing.assert_array_equal(gradient, [1.0, 0.0])


def test_an_empty_mean_is_zero_and_differentiable():
    def mean(v):
        return Mean.of(v, jnp.zeros(2)).value

    assert float(mean(jnp.ones(2))) == 0
    np.testing.assert_array_equal(jax.grad(mean)(jnp.ones(2)), [0, 0])


def test_booleans_and_integers_become_a_rate():
    assert float(Mean.of(jnp.array([True, False, True, True])).value) == 0.75
    assert Mean.of(jnp.array([1, 2])).total.dtype == jnp.float32
    assert Mean.of(jnp.ones(3, jnp.bfloat16)).total.dtype == jnp.float32


@settings(max_examples=50, deadline=None)
@given(rows=NUMBERS, data=st.data())
def test_any_split_merged_in_any_order_gives_the_whole(rows, data):
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=4).map(sorted))
    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    means = [
        {"x": Mean(np.sum([v * w for v, w in part], dtype=np.float64), np.sum([w for _, w in part]))} for part in parts
    ]
    values, weights = np.array(rows).T
    whole = float(values @ weights), float(weights.sum())
    for order in (means, means[::-1]):
        np.testing.assert_allclose(numbers(metrics.merge(order)["x"]), whole, rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-1000, 1000), st.integers(0, 1000)), min_size=3, max_size=3))
def test_merge_is_associative_and_commutative(three):
    a, b, c = (Mean(float(total), float(count)) for total, count in three)
    assert numbers(a.merge(b).merge(c)) == numbers(a.merge(b.merge(c))) == numbers(c.merge(a).merge(b))


def test_a_mean_is_a_pytree_of_its_two_sums():
    mean = Mean(jnp.float32(3), jnp.float32(2))
    assert len(jax.tree.leaves(mean)) == 2
    doubled = jax.tree.map(lambda x: 2 * x, {"x": mean})["x"]
    assert isinstance(doubled, Mean) and numbers(doubled) == (6.0, 4.0)


def test_a_mean_passes_through_jit_vmap_and_scan():
    values, mask = jnp.arange(6.0).reshape(3, 2), jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    rows = jax.jit(jax.vmap(Mean.of))(values, mask)
    np.testing.assert_array_equal(rows.total, [0, 5, 0])
    np.testing.assert_array_equal(rows.count, [1, 2, 0])
    whole, _ = jax.lax.scan(lambda m, row: (m.merge(Mean.of(*row)), None), Mean(0.0, 0.0), (values, mask))
    assert numbers(whole) == (5.0, 3.0)


def test_a_coefficient_scales_the_value_and_not_the_count():
    assert numbers(metrics.scale(Mean(6.0, 3.0), 0.5)) == (3.0, 3.0)


def test_values_has_the_sum_of_the_terms_first_and_every_mean_after():
    means = {"accuracy": Mean(1.0, 4.0), "a": Loss(6.0, 3.0), "b": Loss(1.0, 2.0, weight=4.0)}
    found = metrics.values(means)
    assert list(found) == ["loss", "accuracy", "a", "b"]
    assert found == {"loss": 4.0, "accuracy": 0.25, "a": 2.0, "b": 0.5}
    assert all(type(value) is float for value in found.values())


def test_a_term_keeps_its_weight_when_batches_are_merged_and_added_up():
    one, two = Loss.of(jnp.array([1.0, 2.0]), weight=0.5), Loss.of(jnp.array([6.0]), weight=0.5)
    for whole in (one.merge(two), metrics.merge([{"a": one}, {"a": two}])["a"], jax.tree.map(jnp.add, one, two)):
        assert numbers(whole) == (9.0, 3.0) and whole.weight == 0.5
        assert float(metrics.total({"a": whole, "b": Mean(5.0, 1.0)})) == 1.5
    with pytest.raises(ValueError, match="metadata"):
        jax.tree.map(jnp.add, one, Loss.of(jnp.array([1.0]), weight=0.25))  # another term


def test_values_of_one_term_called_loss_names_it_once():
    assert metrics.values({"bits": Mean(4.0, 2.0), "loss": Mean(2.0, 2.0)}) == {"loss": 1.0, "bits": 2.0}


def test_counts_above_what_float32_holds_stay_exact():
    one, many = Mean(np.float32(1), np.float32(1)), Mean(np.float32(0), np.float32(2**24))
    found = metrics.merge([{"x": many}, *[{"x": one}] * 3])["x"]
    assert numbers(found) == (3.0, 2**24 + 3)
    assert numbers(many.merge(one)) != (1.0, 2**24 + 1)  # what float32 would have made of it


def test_summed_adds_names_that_only_some_batches_have():
    found = metrics.merge([{"a": Mean(1, 1)}, {"a": Mean(2, 1), "b": Mean(5, 1)}])
    assert {name: numbers(mean) for name, mean in found.items()} == {"a": (3.0, 2.0), "b": (5.0, 1.0)}


def test_perplexity_merges_as_nats_do_and_is_printed_as_their_exponential():
    nats = np.random.default_rng(0).uniform(1, 5, 7).astype(np.float32)
    parts = [metrics.Perplexity.of(jnp.asarray(nats[:3])), metrics.Perplexity.of(jnp.asarray(nats[3:]))]
    expected = np.exp(nats.mean())
    np.testing.assert_allclose(parts[0].merge(parts[1]).value, expected, rtol=1e-5)
    sums = metrics.merge([{"perplexity": part, "loss": Mean(part.total, part.count)} for part in parts])
    assert isinstance(sums["perplexity"], metrics.Perplexity)
    numbers = metrics.values(sums)
    np.testing.assert_allclose([numbers["perplexity"], numbers["loss"]], [expected, nats.mean()], rtol=1e-6)
    hopeless = {"perplexity": metrics.Perplexity(np.float64(1e4), np.float64(1)), "loss": Mean(1.0, 1.0)}
    assert metrics.values(hopeless)["perplexity"] == np.inf


def test_a_metric_of_nothing_is_nan_and_the_loss_is_that_of_the_terms_that_count():
    nothing, something = Loss(np.float32(0), np.float32(0)), Loss(np.float32(3), np.float32(2))
    found = metrics.values({"a": nothing, "b": something})
    assert np.isnan(found["a"]) and found["loss"] == found["b"] == 1.5
    assert np.isnan(metrics.values({"a": nothing})["loss"])
    assert float(nothing.value) == 0  # in a training step nothing has no part in the loss
