"""Order of training, seeds of examples and random draws by hashing, the same on every machine and NumPy version."""

import functools
import math
from collections.abc import Iterator

import numpy as np

Keys = int | np.ndarray


def order(seed: int, n: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (epoch, example) at `positions` of the endless stream of the epochs' permutations."""
    epochs, offsets = np.divmod(positions, n)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = permute(offsets[here], n, seed, int(epoch))
    return epochs, indices


def example_seeds(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return uint32 hashes of (run seed, epoch, example), independent of batches and devices."""
    return (_hash(seed, 0, epochs, indices) >> np.uint64(32)).astype(np.uint32)


def partners(seeds: np.ndarray, n: int) -> np.ndarray:
    """Return for each example, by its seed, the index of another one of n, int64; all are equally likely."""
    return (_hash(3, seeds) % np.uint64(n)).astype(np.int64)


def permutation(n: int, *key: int) -> np.ndarray:
    """Return the whole permutation of `permute`, int64 [n]."""
    parts = [permute(np.arange(i, min(i + 2**16, n)), n, *key) for i in range(0, n, 2**16)]
    return np.concatenate([np.empty(0, np.int64), *parts])


def permute(positions: np.ndarray, n: int, *key: int) -> np.ndarray:
    """Return the values at `positions` of the permutation of range(n) for `key`, int64.

    Only these positions are computed, by a Feistel network over pairs (left, right), where left * width + right has a
    range slightly larger than n. A result of n or more passes through the network again (Black and Rogaway 2002,
    "Ciphers with Arbitrary Finite Domains").

    Args:
      positions: int64, each at least 0 and less than n.
      n: up to 2**63 - 1.
      key: non-negative numbers.

    >>> permute(np.arange(5), 5, 0).tolist()
    [2, 4, 0, 1, 3]
    """
    width = math.isqrt(n - 1) + 1
    sizes = np.array([-(-n // width), width], np.uint64)
    rounds = 24 if n < 1000 else 6  # a small network needs more rounds for all permutations to be equally likely
    halves = list(np.divmod(positions.astype(np.uint64), sizes[1]))
    for number, round_key in enumerate(_hash(1, *key, np.arange(rounds))):
        side = number % 2
        halves[side] = (halves[side] + (_mix(halves[1 - side] ^ round_key) >> np.uint64(1))) % sizes[side]
    result = (halves[0] * sizes[1] + halves[1]).astype(np.int64)
    outside = result >= n
    if outside.any():
        result[outside] = permute(result[outside], n, *key)
    return result


def draws(*key: int) -> Iterator[int]:
    """Yield an endless stream of random numbers below 2**64 for `key` (splitmix64)."""
    state = int(_hash(2, *key)[0])
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        yield mixed ^ (mixed >> 31)


def _hash(*parts: Keys) -> np.ndarray:
    """Hash numbers or arrays to uint64; the first two parts are only combined by xor, so one of them is constant."""
    first, *others = (np.atleast_1d(part).astype(np.uint64) for part in parts)
    return functools.reduce(lambda state, part: _mix(state ^ part), others, first)


def _mix(state: np.ndarray) -> np.ndarray:
    """Apply the next state and finalizer of splitmix64 (Steele, Lea and Flood 2014), a bijection of uint64."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
