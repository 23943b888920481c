"""Layouts of Hugging Face's tensors: how they become our parameters, and back.

The differences: a torch linear layer is [out, in] and ours [in, out], while GPT-2's (`Conv1D`) is [in, out] too. Their
query, key and value are separate or concatenated, ours alternate head by head. Their layers are separate tensors, ours
are one array with the layers as first axis. Their patch embedding is a convolution.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Functions from their tensors of one layer to our array, and back; each inverts the other bit for bit."""

    read: Callable[[Sequence[np.ndarray]], np.ndarray]
    write: Callable[[np.ndarray], Sequence[np.ndarray]]


class Entry(NamedTuple):
    """One of our parameters and its tensors.

    Attributes:
      path: "/"-joined path in our params.
      names: names of their tensors; "{}" stands for the number of the layer.
      layout: conversion of the values.
      head: optional, such as the classifier of another task.
      zeros: absent tensors mean zeros.
      depth: field of the model with the number of layers, for names with "{}".
    """

    path: str
    names: tuple[str, ...]
    layout: Layout
    head: bool = False
    zeros: bool = False
    depth: str = "depth"


IDENTITY = Layout(lambda theirs: theirs[0], lambda ours: [ours])
TRANSPOSED = Layout(lambda theirs: theirs[0].T, lambda ours: [ours.T])


def fused_qkv(heads: int, parts: int = 3) -> Layout:
    """Return the layout from GPT-2's query, key and value, [..., 3 * width] in this order, to ours, grouped by head.

    Two parts are key and value alone.
    """

    def swap(array: np.ndarray, first: int, second: int) -> np.ndarray:
        parts = array.reshape(*array.shape[:-1], first, second, array.shape[-1] // (first * second))
        return parts.swapaxes(-3, -2).reshape(array.shape)

    return Layout(lambda theirs: swap(theirs[0], parts, heads), lambda ours: [swap(ours, heads, parts)])


def split_qkv(heads: int, parts: int = 3) -> Layout:
    """Return the layout from three linear layers for query, key and value to ours, [in, 3 * width] and [3 * width].

    Two parts are key and value alone.
    """

    def read(theirs: Sequence[np.ndarray]) -> np.ndarray:
        return fused_qkv(heads, parts).read([np.concatenate([array.T for array in theirs], axis=-1)])

    def write(ours: np.ndarray) -> list[np.ndarray]:
        return [array.T for array in np.split(fused_qkv(heads, parts).write(ours)[0], parts, axis=-1)]

    return Layout(read, write)


def joined_qkv(heads: int) -> Layout:
    """Return the layout of one linear layer for query, key and value, [3 * width, in], as of torch's attention."""
    fused = fused_qkv(heads)
    return Layout(lambda theirs: fused.read([theirs[0].T]), lambda ours: [fused.write(ours)[0].T])


def patches(side: int) -> Layout:
    """Return the layout from a convolution's kernel [width, c, side, side] to [side * side * c, width] on patches."""

    def read(theirs: Sequence[np.ndarray]) -> np.ndarray:
        return theirs[0].transpose(2, 3, 1, 0).reshape(-1, theirs[0].shape[0])

    def write(ours: np.ndarray) -> list[np.ndarray]:
        return [ours.reshape(side, side, -1, ours.shape[-1]).transpose(3, 2, 0, 1)]

    return Layout(read, write)


def leading_ones(axes: int) -> Layout:
    """Return the layout of an array that has `axes` additional leading axes of length 1 in their tensor."""
    return Layout(
        lambda theirs: theirs[0].reshape(theirs[0].shape[axes:]),
        lambda ours: [ours.reshape((1,) * axes + ours.shape)],
    )


def linear(path: str, name: str, layer: Layout = TRANSPOSED, *, bias: bool = True, head: bool = False) -> list[Entry]:
    """Return the entries of a linear layer's kernel and bias."""
    entries = [Entry(f"{path}/kernel", (f"{name}.weight",), layer, head)]
    return [*entries, Entry(f"{path}/bias", (f"{name}.bias",), IDENTITY, head)] if bias else entries


def fused_linear(path: str, names: Sequence[str], heads: int) -> list[Entry]:
    """Return the entries of linear layers, such as of query, key and value, that are one layer of ours."""
    layout = split_qkv(heads, len(names))
    return [
        Entry(f"{path}/{ours}", tuple(f"{name}.{theirs}" for name in names), layout)
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    ]


def norm(path: str, name: str, *, bias: bool = True, head: bool = False) -> list[Entry]:
    """Return the entries of a normalization's scale and, for a layer norm, its bias."""
    entries = [Entry(f"{path}/scale", (f"{name}.weight",), IDENTITY, head)]
    return [*entries, Entry(f"{path}/bias", (f"{name}.bias",), IDENTITY, head)] if bias else entries
