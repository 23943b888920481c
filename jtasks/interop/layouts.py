"""How one of our parameters lies in the tensors of Hugging Face, there and back.

Where they part: a torch linear layer is [out, in] and ours [in, out], while GPT-2's (`Conv1D`) is [in, out] too;
they have query, key and value apart or one after the other, ours alternate head by head; their layers are
tensors of their own, ours one array with the layers as first axis; a patch embedding is a convolution there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """From their tensors of one layer to our array, and back; each undoes the other bit for bit."""

    read: Callable[[Sequence[np.ndarray]], np.ndarray]
    write: Callable[[np.ndarray], Sequence[np.ndarray]]


class Entry(NamedTuple):
    """One of our parameters and where they have it.

    Attributes:
      path: "/"-joined, as in our params.
      names: of their tensors; "{}" stands for the number of the layer.
      layout: how their values become ours.
      head: the model is whole without it, such as the classifier of another task.
      zeros: where the tensors are absent, zeros say the same.
    """

    path: str
    names: tuple[str, ...]
    layout: Layout
    head: bool = False
    zeros: bool = False


SAME = Layout(lambda theirs: theirs[0], lambda ours: [ours])
TRANSPOSED = Layout(lambda theirs: theirs[0].T, lambda ours: [ours.T])


def joined(heads: int) -> Layout:
    """GPT-2's query, key and value, [..., 3 * width] in this order, to ours, the three of each head together."""

    def swapped(array: np.ndarray, first: int, second: int) -> np.ndarray:
        parts = array.reshape(*array.shape[:-1], first, second, array.shape[-1] // (first * second))
        return parts.swapaxes(-3, -2).reshape(array.shape)

    return Layout(lambda theirs: swapped(theirs[0], 3, heads), lambda ours: [swapped(ours, heads, 3)])


def apart(heads: int) -> Layout:
    """Query, key and value as three linear layers, [width, in] or their biases [width], to ours, [(in,) 3 * width]."""

    def read(theirs: Sequence[np.ndarray]) -> np.ndarray:
        return joined(heads).read([np.concatenate([array.T for array in theirs], axis=-1)])

    def write(ours: np.ndarray) -> list[np.ndarray]:
        return [array.T for array in np.split(joined(heads).write(ours)[0], 3, axis=-1)]

    return Layout(read, write)


def patches(side: int) -> Layout:
    """A convolution's kernel [width, c, side, side] to a linear layer on flat patches, [side * side * c, width]."""

    def read(theirs: Sequence[np.ndarray]) -> np.ndarray:
        return theirs[0].transpose(2, 3, 1, 0).reshape(-1, theirs[0].shape[0])

    def write(ours: np.ndarray) -> list[np.ndarray]:
        return [ours.reshape(side, side, -1, ours.shape[-1]).transpose(3, 2, 0, 1)]

    return Layout(read, write)


def under_ones(axes: int) -> Layout:
    """An array that has `axes` more axes of length 1 in front there."""
    return Layout(
        lambda theirs: theirs[0].reshape(theirs[0].shape[axes:]),
        lambda ours: [ours.reshape((1,) * axes + ours.shape)],
    )


def linear(path: str, name: str, layer: Layout = TRANSPOSED, *, bias: bool = True, head: bool = False) -> list[Entry]:
    """The kernel of a linear layer and its bias."""
    entries = [Entry(f"{path}/kernel", (f"{name}.weight",), layer, head)]
    return [*entries, Entry(f"{path}/bias", (f"{name}.bias",), SAME, head)] if bias else entries


def norm(path: str, name: str, *, bias: bool = True, head: bool = False) -> list[Entry]:
    """The scale of a normalization and, of a layer norm, its bias."""
    entries = [Entry(f"{path}/scale", (f"{name}.weight",), SAME, head)]
    return [*entries, Entry(f"{path}/bias", (f"{name}.bias",), SAME, head)] if bias else entries
