"""Fingerprints of a split's examples without reading all of them: number, entries, and hashes of a sample."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jtasks.data import pipeline
from jtasks.errors import DataError

Prints = dict[str, Any]

SAMPLE = 64  # hashed examples of a split too large to hash whole, including the first and the last
WHOLE_BYTES, WHOLE_OBJECTS = 2**26, 2**14  # maximum size of arrays that are hashed whole: some 0.1 s


def of(examples: pipeline.Examples) -> Prints:
    """Return the fingerprint of a split as JSON data: number of examples, dtype and shape of each entry, and hashes.

    Hashes are keyed by the name of an array that is hashed whole, else by "entry[index]", and for a sequence of
    examples by "[index]". An unreadable example has no hash; reading it later reports the error.
    """
    if isinstance(examples, pipeline.Tolerant):
        examples = examples.examples
    n = pipeline.size(examples)
    if isinstance(examples, Mapping):
        entries = {name: _kind(array, 1) for name, array in examples.items()}
        hashes = dict(item for name, array in examples.items() for item in _array(name, array))
    else:
        entries = {}
        hashes = {f"[{i}]": digest for i in sample(n) if (digest := _example(examples, i))}
    return {"examples": n, "entries": entries, "hashes": hashes}


def changes(old: Any, new: Prints) -> list[str]:
    """Describe the differences between two fingerprints of a split; empty if the old one is absent.

    >>> changes({"examples": 5000, "entries": {}, "hashes": {}}, {"examples": 5001, "entries": {}, "hashes": {}})
    ['5000 -> 5001 examples']
    """
    if old is None:
        return []
    before, now = old["entries"], new["entries"]
    lines = [f"{old.get('examples')} -> {new['examples']} examples"] if old.get("examples") != new["examples"] else []
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    lines += [f"entry {name}: {before.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in names]
    hashes = old["hashes"]
    others = [name for name, digest in new["hashes"].items() if hashes.get(name, digest) != digest]
    if others and not lines:
        lines.append(f"examples differ ({', '.join(others[:5])}{', ...' if len(others) > 5 else ''})")
    return lines


def sample(n: int) -> list[int]:
    """Return indices of the first, the last and some examples between; the same for the same `n`."""
    if n <= SAMPLE:
        return list(range(n))
    drawn = (int.from_bytes(hashlib.sha256(str(i).encode()).digest()) % n for i in range(SAMPLE - 2))
    return sorted({0, n - 1, *drawn})


def _array(name: str, array: Any) -> Iterator[tuple[str, str]]:
    plain = isinstance(array, np.ndarray)
    if plain and (array.size <= WHOLE_OBJECTS if array.dtype.hasobject else array.nbytes <= WHOLE_BYTES):
        yield name, _hash(array)
    else:
        yield from ((f"{name}[{i}]", _hash(array[i])) for i in sample(len(array)))


def _example(examples: Any, index: int) -> str | None:
    try:
        return _hash(pipeline.read(examples, index))
    except (DataError, ValueError, TypeError):
        return None


def _hash(tree: Any) -> str:
    """Hash nested arrays, texts and numbers."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{jax.tree_util.keystr(path)} {_kind(leaf, 0)}\n".encode("utf-8", "surrogatepass"))
        for part in _bytes(leaf):
            digest.update(part)
    return digest.hexdigest()[:16]


def _bytes(leaf: Any) -> Iterator[bytes]:
    if isinstance(leaf, str):
        yield leaf.encode("utf-8", "surrogatepass")
    elif isinstance(leaf, bytes):
        yield leaf
    elif isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.hasobject:
        yield from (_hash(element).encode() for element in np.ravel(leaf))
    elif isinstance(leaf, bool | int | float | np.ndarray | np.generic | jax.Array):
        yield np.ascontiguousarray(leaf).tobytes()
    # Other objects, such as a library's, contribute their type only.


def _kind(value: Any, leading: int) -> str:
    """Return dtype and shape without the `leading` axes, or the type's name."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", ())
    return f"{dtype}{list(shape[leading:])}" if dtype is not None else type(value).__name__
