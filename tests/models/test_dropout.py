import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jtasks.models import dropout

KEY = jax.random.key(3)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_the_rate_is_met_and_the_mean_kept(rate):
    found = np.asarray(dropout.drop(jnp.ones((400, 501)), KEY, rate))  # an odd length
    deviation = 5 * (rate * (1 - rate) / found.size) ** 0.5
    assert abs(np.mean(found == 0) - rate) < deviation
    assert abs(found.mean() - 1) < deviation / (1 - rate)
    assert len(np.unique(found)) == 2


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 5]), st.sampled_from([1, 4, 7]))
def test_neighbors_and_halves_of_a_word_are_independent(a, b):
    found = np.asarray(dropout.drop(jnp.ones((512, 8)), jax.random.fold_in(KEY, 10 * a + b), 0.5)) > 0
    pairs = [np.corrcoef(found[:, i], found[:, i + 1])[0, 1] for i in range(7)]
    assert max(map(abs, pairs)) < 5 / 512**0.5


def test_a_shared_draw_drops_whole_channels():
    found = np.asarray(dropout.drop(jnp.ones((8, 5, 5, 16)), KEY, 0.5, (1, 2)))
    assert (found == found[:, :1, :1]).all()
    assert 0 < np.mean(found == 0) < 1


def test_rate_zero_changes_nothing():
    x = jnp.arange(6.0)[None]
    np.testing.assert_array_equal(dropout.drop(x, KEY, 0.0), x)


def test_the_draw_does_not_depend_on_the_mesh():
    x = jnp.ones((16, 6, 10))
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "tensor")))
    drop = jax.jit(lambda x: dropout.drop(x, KEY, 0.1))
    np.testing.assert_array_equal(drop(placed), drop(x))
