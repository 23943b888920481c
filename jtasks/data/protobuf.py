"""Protocol buffers in their wire format (protobuf.dev/programming-guides/encoding), read without their library."""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield number, wire type and content of each field of a message.

    Raises:
      ValueError, IndexError: the message is damaged.
    """
    place = 0
    while place < len(message):
        key, place = varint(message, place)
        number, kind = key >> 3, key & 7
        if not number:
            raise ValueError("a field has the number 0")
        if kind == VARINT:
            start = place
            _, place = varint(message, place)
        elif kind in (FIXED32, FIXED64):
            start, place = place, place + (4 if kind == FIXED32 else 8)
        elif kind == BYTES:
            size, start = varint(message, place)
            place = start + size
        else:
            raise ValueError(f"field {number} has the unknown type {kind}")
        if place > len(message):
            raise ValueError("it ends in the middle")
        yield number, kind, message[start:place]


def varint(message: memoryview, place: int) -> tuple[int, int]:
    """Decode the number at `place`; return it and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of more than 64 bits")
