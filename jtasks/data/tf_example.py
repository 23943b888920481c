"""The messages of tf.train.Example, without TensorFlow.

An Example holds one message Features, a map from the name of a feature to a list of bytes, float32 or int64.
"""

import struct
from collections.abc import Iterator

import numpy as np

from jtasks.data import protobuf
from jtasks.errors import DataError

Feature = list[bytes] | list[float] | list[int]


def parse(record: bytes) -> dict[str, Feature]:
    """Return the features of a serialized tf.train.Example by name.

    Raises:
      DataError: the bytes are no Example.
    """
    try:
        features: dict[str, Feature] = {}
        for number, _, message in protobuf.fields(memoryview(record)):
            for _, _, entry in protobuf.fields(message) if number == 1 else ():
                parts = {part: value for part, _, value in protobuf.fields(entry)}
                features[bytes(parts[1]).decode()] = _feature(parts.get(2, memoryview(b"")))
        return features
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise DataError(f"not a tf.train.Example ({type(error).__name__}: {error})") from error


def _feature(message: memoryview) -> Feature:
    """Return the values of a Feature: one of BytesList, FloatList and Int64List."""
    for number, _, values in protobuf.fields(message):
        if number == 1:
            return [bytes(value) for _, _, value in protobuf.fields(values)]
        if number == 2:
            return [float(x) for _, _, part in protobuf.fields(values) for x in np.frombuffer(part, "<f4")]
        if number == 3:
            numbers = [
                n for _, kind, part in protobuf.fields(values) for n in _varints(part, packed=kind == protobuf.BYTES)
            ]
            return [n - (1 << 64) if n >> 63 else n for n in numbers]
    return []


def _varints(message: memoryview, *, packed: bool) -> Iterator[int]:
    place = 0
    while place < len(message):
        value, place = protobuf.varint(message, place)
        yield value
        if not packed:
            return
