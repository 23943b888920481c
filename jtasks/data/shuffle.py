"""The order of training, the seeds of examples and random draws: hashes, the same on every machine and NumPy."""

import functools
import math
from collections.abc import Iterator

import numpy as np

Keys = int | np.ndarray


def order(seed: int, n: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(epoch, example) at `positions` of the endless stream that strings the epochs' permutations together."""
    epochs, offsets = np.divmod(positions, n)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = permuted(offsets[here], n, seed, int(epoch))
    return epochs, indices


def example_seeds(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """uint32 hashes of (run seed, epoch, example): the same however batches are cut and devices arranged."""
    return (_hashed(seed, 0, epochs, indices) >> np.uint64(32)).astype(np.uint32)


def permutation(n: int, *key: int) -> np.ndarray:
    """All of the permutation that `permuted` gives a part of, int64 [n]."""
    parts = [permuted(np.arange(i, min(i + 2**16, n)), n, *key) for i in range(0, n, 2**16)]
    return np.concatenate([np.empty(0, np.int64), *parts])


def permuted(positions: np.ndarray, n: int, *key: int) -> np.ndarray:
    """What stands at `positions` of the permutation of range(n) that belongs to `key`, int64.

    Only these positions are computed, by a Feistel network over pairs (left, right), whose left * width + right has a
    range a little larger than n; a result of n or more goes through the network again (Black and Rogaway 2002,
    "Ciphers with Arbitrary Finite Domains").

    Args:
      positions: int64, each at least 0 and less than n.
      n: up to 2**63 - 1.
      key: non-negative numbers.

    >>> permuted(np.arange(5), 5, 0).tolist()
    [2, 4, 0, 1, 3]
    """
    width = math.isqrt(n - 1) + 1
    sizes = np.array([-(-n // width), width], np.uint64)
    rounds = 24 if n < 1000 else 6  # a small network needs more for all permutations to be equally likely
    halves = list(np.divmod(positions.astype(np.uint64), sizes[1]))
    for turn, round_key in enumerate(_hashed(1, *key, np.arange(rounds))):
        side = turn % 2
        halves[side] = (halves[side] + (_mixed(halves[1 - side] ^ round_key) >> np.uint64(1))) % sizes[side]
    result = (halves[0] * sizes[1] + halves[1]).astype(np.int64)
    outside = result >= n
    if outside.any():
        result[outside] = permuted(result[outside], n, *key)
    return result


def draws(*key: int) -> Iterator[int]:
    """Yield the endless stream of random numbers below 2**64 that belongs to `key` (splitmix64)."""
    state = int(_hashed(2, *key)[0])
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        yield mixed ^ (mixed >> 31)


def _hashed(*parts: Keys) -> np.ndarray:
    """uint64 hashes of the parts together, numbers or arrays; the first two only meet by xor, so one is constant."""
    first, *others = (np.atleast_1d(part).astype(np.uint64) for part in parts)
    return functools.reduce(lambda state, part: _mixed(state ^ part), others, first)


def _mixed(state: np.ndarray) -> np.ndarray:
    """The next state and finalizer of splitmix64 (Steele, Lea and Flood 2014), a bijection of uint64."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
