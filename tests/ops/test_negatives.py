"""Claims about ops.negatives: hard negatives by the softmax of similarities, whatever the order of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtasks.ops import negatives

SIMILAR = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
draw = jax.jit(negatives.draw)


def seeds(run):
    return (1000 * run + np.arange(6)).astype(np.uint32)


@pytest.mark.slow
def test_the_draw_follows_the_softmax_without_the_row_itself():
    runs = 4000
    many = jax.jit(jax.vmap(lambda s: negatives.draw(jnp.asarray(SIMILAR), s, jnp.ones(6))[0]))
    drawn = np.asarray(many(np.stack([seeds(run) for run in range(runs)])))
    weights = np.asarray(jax.nn.softmax(SIMILAR)) + negatives.FLOOR
    np.fill_diagonal(weights, 0)
    expected = weights / weights.sum(1, keepdims=True)
    counts = np.stack([(drawn == column).mean(0) for column in range(6)], axis=1)
    assert (np.diagonal(counts) == 0).all()
    np.testing.assert_allclose(counts, expected, atol=4 * np.sqrt(0.25 / runs))


def test_neither_order_nor_padding_changes_a_draw_and_padding_is_never_drawn():
    chosen, valid = draw(SIMILAR, seeds(1), np.ones(6))
    assert valid.all()
    order = np.array([3, 0, 5, 1, 4, 2])
    moved, _ = draw(SIMILAR[order][:, order], seeds(1)[order], np.ones(6))
    np.testing.assert_array_equal(order[moved], np.asarray(chosen)[order])
    padded = np.full((8, 8), np.nan, np.float32)
    padded[:6, :6] = SIMILAR
    more, valid = draw(padded, np.append(seeds(1), [7, 8]).astype(np.uint32), np.array([1.0] * 6 + [0.0] * 2))
    np.testing.assert_array_equal(more[:6], chosen)


def test_a_lone_example_has_no_negative():
    _, valid = draw(SIMILAR[:2, :2], seeds(0)[:2], np.array([1.0, 0.0]))
    assert valid.tolist() == [False, True]
