"""The messages of tf.train.Example in their wire format (protobuf.dev/programming-guides/encoding), without TensorFlow.

An Example holds one message Features, a map from the name of a feature to a list of bytes, float32 or int64.
"""

import struct
from collections.abc import Iterator

import numpy as np

from jtasks.errors import DataError

Feature = list[bytes] | list[float] | list[int]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def parse(record: bytes) -> dict[str, Feature]:
    """Return the features of a serialized tf.train.Example by name.

    Raises:
      DataError: the bytes are no Example.
    """
    try:
        features: dict[str, Feature] = {}
        for number, _, message in _fields(memoryview(record)):
            for _, _, entry in _fields(message) if number == 1 else ():
                parts = {part: value for part, _, value in _fields(entry)}
                features[bytes(parts[1]).decode()] = _feature(parts.get(2, memoryview(b"")))
        return features
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise DataError(f"not a tf.train.Example ({type(error).__name__}: {error})") from error


def _feature(message: memoryview) -> Feature:
    """Return the values of a Feature: one of BytesList, FloatList and Int64List."""
    for number, _, values in _fields(message):
        if number == 1:
            return [bytes(value) for _, _, value in _fields(values)]
        if number == 2:
            return [float(x) for _, _, part in _fields(values) for x in np.frombuffer(part, "<f4")]
        if number == 3:
            numbers = [n for _, kind, part in _fields(values) for n in _varints(part, packed=kind == BYTES)]
            return [n - (1 << 64) if n >> 63 else n for n in numbers]
    return []


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield number, wire type and content of each field of a message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            start = place
            _, place = _varint(message, place)
        elif kind in (FIXED32, FIXED64):
            start, place = place, place + (4 if kind == FIXED32 else 8)
        elif kind == BYTES:
            size, start = _varint(message, place)
            place = start + size
        else:
            raise ValueError(f"wire type {kind}")
        if place > len(message):
            raise ValueError("it ends in the middle")
        yield number, kind, message[start:place]


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return the number that begins at a place, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of more than 64 bits")


def _varints(message: memoryview, *, packed: bool) -> Iterator[int]:
    place = 0
    while place < len(message):
        value, place = _varint(message, place)
        yield value
        if not packed:
            return
