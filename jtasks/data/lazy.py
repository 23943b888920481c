"""Sequences whose items are read or made on demand instead of held in memory."""

from collections.abc import Callable, Sequence
from typing import Any


class Lazy(Sequence[Any]):
    """A sequence of the items that `read` returns for `indices`; a slice is lazy too."""

    def __init__(self, indices: range, read: Callable[[int], Any]):
        self.indices, self.read = indices, read

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        chosen = self.indices[index]
        return Lazy(chosen, self.read) if isinstance(chosen, range) else self.read(chosen)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def each(function: Callable[..., Any], *sequences: Sequence[Any]) -> Lazy:
    """Return the lazy sequence of `function` of each item, or of the items of several sequences.

    >>> each(lambda a, b: a + b, [1, 2], [10, 20]) == [11, 22]
    True
    """
    return Lazy(range(len(sequences[0])), lambda i: function(*(sequence[i] for sequence in sequences)))
