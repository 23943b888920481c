"""Rows of data about pictures, such as captions and questions; a picture is decoded only when it is asked for."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from jtasks.data.examples import Resize, fit
from jtasks.errors import DataError

Entries = Mapping[str, Any]

KEPT = 1 << 28  # bytes of decoded pictures that stay in memory, as data with many rows per picture decodes them often


class Row(Mapping[str, Any]):
    """The entries of a row, and its picture as `image`, which is decoded at the first access."""

    def __init__(self, entries: Entries, decode: Callable[[], np.ndarray]):
        self.entries, self.decode = entries, functools.cache(decode)

    def __getitem__(self, name: str) -> Any:
        return self.decode() if name == "image" else self.entries[name]

    def __iter__(self) -> Iterator[str]:
        yield from ("image", *self.entries)

    def __len__(self) -> int:
        return len(self.entries) + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Sequence[Row]):
    """A random-access sequence of rows {"image": uint8 [h, w, 3], ...entries}.

    It pickles if `decode` does, so that other processes can read ahead.

    Attributes:
      name: of the data, for messages.
      entries: of each row, without the picture; `file` is the picture's name, or a tuple of names, whose pictures
        `image` then holds as [k, h, w, 3].
      decode: function from a name to uint8 [h, w, 3].
      size: see `examples.fit`.
    """

    name: str
    entries: Sequence[Entries] = dataclasses.field(repr=False)
    decode: Callable[[Any], np.ndarray] = dataclasses.field(repr=False)
    size: int | Resize | None = None
    kept: dict[Any, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)  # by name and size

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"kept": {}}

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> "Rows": ...

    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return dataclasses.replace(self, entries=self.entries[index])
        entries = self.entries[index]
        return Row(entries, functools.partial(self._image, index, entries["file"]))

    def take(self, rows: np.ndarray) -> "Rows":
        """Return the rows with these numbers."""
        return dataclasses.replace(self, entries=[self.entries[row] for row in rows])

    def add(self, **columns: "Sequence[Any] | np.ndarray") -> "Rows":
        """Return the rows with more entries: row i gets item i of each column.

        A column is an array [n, ...], or a list of any values.
        """
        added = zip(*columns.values(), strict=True)
        pairs = zip(self.entries, added, strict=True)
        entries = [{**old, **dict(zip(columns, new, strict=True))} for old, new in pairs]
        return dataclasses.replace(self, entries=entries)

    def _image(self, index: int, file: Any) -> np.ndarray:
        try:
            return self._stack([self._load(name) for name in file]) if isinstance(file, tuple) else self._load(file)
        except DataError as error:
            raise DataError(f"example {index} of {self.name}: {error}") from error

    def _load(self, name: Any) -> np.ndarray:
        """Return one picture in its size, read-only."""
        image = self.kept.get((name, self.size))
        if image is None:
            image = fit(self.decode(name), self.size)
            image.flags.writeable = False
            if (len(self.kept) + 1) * image.nbytes <= KEPT:
                self.kept[name, self.size] = image
        return image

    def _stack(self, images: list[np.ndarray]) -> np.ndarray:
        if len({image.shape for image in images}) > 1:
            raise DataError("its pictures differ in size: set config.data.size")
        return np.stack(images)


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Stack the entries that are arrays or numbers of NumPy, [b, ...]; texts and plain numbers stay on the host.

    Raises:
      DataError: the pictures differ in size.
    """
    names = [name for name, value in rows[0].items() if isinstance(value, np.ndarray | np.generic)]
    if len(shapes := {row["image"].shape for row in rows}) > 1:
        raise DataError(f"pictures of the shapes {sorted(shapes)[:4]} do not fit into one batch: set config.data.size")
    return {name: np.stack([row[name] for row in rows]) for name in names}
