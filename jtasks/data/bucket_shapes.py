"""Buckets for examples with several lengths, such as pairs of a source and a target, if the config gives none."""

from collections.abc import Sequence

import numpy as np

from jtasks.data.buckets import Lengths

MOST = 8  # maximum number of buckets: each costs a compilation
_CANDIDATES = 32  # lengths of one kind to choose from
_FINE = 64  # tokens; longer candidates are multiples of 8, the tile of accelerators


def least_padding(lengths: np.ndarray, most: int = MOST) -> tuple[Lengths, ...]:
    """Return the ascending buckets that need the least padding, at most `most`, by dynamic programming.

    The padding of a chain of buckets is a sum over its links: the examples that one bucket holds and the one before
    does not, times the tokens of the former.

    Args:
      lengths: [n, k] tokens of each example, of k kinds.

    >>> least_padding(np.array([[3, 9], [3, 9], [3, 8], [7, 9], [7, 20]]), most=2)
    ((3, 9), (7, 20))
    """
    axes = [_candidates(column) for column in lengths.T]
    places = tuple(np.searchsorted(axis, column) for axis, column in zip(axes, lengths.T, strict=True))
    held = np.zeros([len(axis) for axis in axes], np.int64)
    np.add.at(held, places, 1)
    for axis in range(held.ndim):
        held = np.cumsum(held, axis=axis)  # examples that a bucket of these lengths holds
    points = np.indices(held.shape).reshape(held.ndim, -1).T  # [p, k]
    shapes = np.stack([axis[point] for axis, point in zip(axes, points.T, strict=True)], axis=1)
    counts, tokens = held.reshape(-1), shapes.sum(axis=1)
    follows = (points[:, None] <= points[None]).all(axis=-1)  # [p, p]
    link = np.where(follows, (counts[None] - counts[:, None]) * tokens[None], np.iinfo(np.int64).max // 2)
    cost, before = counts * tokens, list[np.ndarray]()
    for _ in range(most - 1):
        costs = cost[:, None] + link
        before.append(costs.argmin(axis=0))
        cost = costs.min(axis=0)
    chain = [len(points) - 1]
    for previous in reversed(before):
        chain.append(int(previous[chain[-1]]))
    return tuple(dict.fromkeys(tuple(shapes[point].tolist()) for point in reversed(chain)))


def halved(limits: Sequence[int]) -> tuple[Lengths, ...]:
    """Return four buckets that depend on no data: the longest lengths, their halves, and so on.

    >>> halved((256, 32))
    ((32, 4), (64, 8), (128, 16), (256, 32))
    """
    return tuple(dict.fromkeys(tuple(-(-limit >> power) for limit in limits) for power in (3, 2, 1, 0)))


def given(buckets: Sequence[int], limits: Sequence[int]) -> tuple[Lengths, ...]:
    """Return a bucket for each length: every kind has this length, or its own limit if that is smaller.

    >>> given((64, 128), (128, 32))
    ((64, 32), (128, 32))
    """
    return tuple(dict.fromkeys(tuple(min(bucket, limit) for limit in limits) for bucket in buckets))


def _candidates(column: np.ndarray) -> np.ndarray:
    """Return lengths to choose from, ascending: quantiles, the longest among them."""
    parts = np.arange(1, _CANDIDATES + 1) * len(column) // _CANDIDATES - 1
    values = np.unique(np.sort(column)[np.maximum(parts, 0)])
    rounded = np.where(values > _FINE, -(-values // 8) * 8, values)
    return np.unique(np.clip(rounded, 1, max(1, column.max())))
