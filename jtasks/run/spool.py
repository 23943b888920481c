"""Outputs of predict_fn on disk instead of in memory."""

import contextlib
import os
import struct
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jtasks.errors import DataError

PLACE = struct.Struct("<qq")  # offset of an item's bytes, and number of its layout


class Spool:
    """A store of trees of arrays by index, in two temporary files that are deleted with the spool."""

    def __init__(self) -> None:
        self.layouts: list[Any] = []  # tree, shapes and dtypes: outputs may be as long as their batch
        self.end = 0
        with _data_errors(), contextlib.ExitStack() as files:
            content, places = (files.enter_context(tempfile.TemporaryFile(buffering=0)) for _ in range(2))
            self.content, self.places = content.fileno(), places.fileno()
            weakref.finalize(self, files.pop_all().close)

    def add(self, indices: np.ndarray, batch: Any, rows: np.ndarray) -> None:
        """Store some `rows` of a batch of trees under their `indices`; raise DataError if the disk is full."""
        leaves, tree = jax.tree.flatten(batch)
        leaves = [np.asarray(leaf) for leaf in leaves]
        layout = tree, [(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        if layout not in self.layouts:
            self.layouts.append(layout)
        kind = self.layouts.index(layout)
        with _data_errors():
            for index, row in zip(indices.tolist(), rows.tolist(), strict=True):
                _write(self.places, PLACE.pack(self.end, kind), index * PLACE.size)
                self.end = _write(self.content, b"".join(leaf[row].tobytes() for leaf in leaves), self.end)

    def read(self, index: int) -> Any:
        """Return the tree of an index: arrays, and numbers for leaves whose batch had one axis."""
        begin, kind = PLACE.unpack(os.pread(self.places, PLACE.size, index * PLACE.size))
        tree, layout = self.layouts[kind]
        sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout]
        data = memoryview(bytearray(os.pread(self.content, sum(sizes), begin)))
        ends = np.cumsum(sizes, dtype=np.int64).tolist()
        leaves = [
            np.frombuffer(data[end - size : end], dtype).reshape(shape)[()]
            for (shape, dtype), size, end in zip(layout, sizes, ends, strict=True)
        ]
        return jax.tree.unflatten(tree, leaves)


@contextlib.contextmanager
def _data_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"predictions do not fit into {tempfile.tempdir} ({error.strerror}): set TMPDIR to another folder"
        ) from error


def _write(file: int, data: bytes, at: int) -> int:
    """Write all of `data` from offset `at`, and return the end offset."""
    while data:
        count = os.pwrite(file, data, at)
        data, at = data[count:], at + count
    return at
