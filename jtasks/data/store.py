"""Arrays made once from data and stored beside it as memory-mapped files: whole, or absent."""

import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jtasks.data import files
from jtasks.errors import DataError

Arrays = dict[str, np.ndarray]


class Writer:
    """Writer that appends to named arrays in a folder along their first axis."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.arrays: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}
        self.facts: dict[str, Any] = {}  # plain JSON data stored with the arrays

    def append(self, name: str, rows: np.ndarray) -> None:
        """Append `rows` [n, ...] to an array; the first call sets its type and further axes.

        Raises:
          ValueError: `rows` have another type or shape.
        """
        dtype, shape, n = self.arrays.get(name, (rows.dtype, rows.shape[1:], 0))
        if rows.dtype != dtype or rows.shape[1:] != shape:
            was, now = (", ".join(map(str, axes)) for axes in (("n", *shape), rows.shape))
            raise ValueError(f"{name} is {dtype} [{was}], so {rows.dtype} [{now}] cannot be appended")
        with (self.folder / name).open("ab") as file:
            file.write(rows.tobytes())
        self.arrays[name] = (dtype, shape, n + len(rows))

    def close(self) -> None:
        """Write the index of the arrays, which `load` reads."""
        arrays = {name: {"dtype": dtype.str, "shape": [n, *shape]} for name, (dtype, shape, n) in self.arrays.items()}
        (self.folder / "arrays.json").write_text(json.dumps({"arrays": arrays, "facts": self.facts}), encoding="utf-8")


def load_or_make(
    kind: str, parts: Iterable[object], folder: pathlib.Path, write: Callable[[Writer], None]
) -> tuple[Arrays, dict[str, Any]]:
    """Return memory-mapped arrays and their facts; `write` makes them if absent.

    They are stored in `folder`/prepared, or in the user's cache folder if that is not writable. Processes that make the
    same arrays at once each rename a whole folder into place, and a failure leaves nothing behind.

    Args:
      kind: name of the arrays for people, such as "tokens".
      parts: everything that the arrays depend on.
      folder: data folder.

    Raises:
      DataError: no folder is writable.
    """
    name = f"{kind}-{hashlib.blake2b(repr(list(parts)).encode(), digest_size=8).hexdigest()}"
    places = files.places(folder, "prepared", name)
    for path in places:
        if (path / "arrays.json").exists():
            return load(path)
    for path in places:
        partial = path.with_name(f".{os.getpid()}-{name}")
        try:
            partial.mkdir(parents=True)
        except OSError as error:  # a read-only folder of shared data
            reason = error
            continue
        try:
            writer = Writer(partial)
            write(writer)
            writer.close()
            _rename(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return load(path)
    raise DataError(f"{kind} can be stored neither beside the data nor in the user's cache folder: {reason}")


def load(path: pathlib.Path) -> tuple[Arrays, dict[str, Any]]:
    """Map the arrays of a folder into memory; return them and their facts.

    Raises:
      DataError: the folder is not what `load_or_make` wrote.
    """
    try:
        described: Mapping[str, Any] = json.loads(files.read(path / "arrays.json"))
        arrays = {name: _map(path, name, **array) for name, array in described["arrays"].items()}
        facts = described["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}): delete that folder, and it is made again") from None
    return arrays, facts


def _map(folder: pathlib.Path, name: str, dtype: str, shape: list[int]) -> np.ndarray:
    path = folder / name
    if not files.is_plain(name) or np.dtype(dtype).kind not in files.NUMERIC:  # objects would be pointers
        raise ValueError(f"{name!r} is {dtype!r}; expected numbers under a plain name")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{path.name} has the shape {shape}")
    if 0 in shape:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if path.stat().st_size != expected:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes; expected {expected}")
    return np.memmap(path, dtype, "r", shape=tuple(shape))


def _rename(partial: pathlib.Path, path: pathlib.Path) -> None:
    try:
        partial.rename(path)
    except OSError:
        if not (path / "arrays.json").exists():  # unless another process was first
            raise
