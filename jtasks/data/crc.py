"""CRC-32C (Castagnoli) of the bytes of a record, as TFRecord stores it, in NumPy."""

import functools

import numpy as np

POLYNOMIAL = np.uint32(0x82F63B78)
SHORT = 512  # bytes below which a loop over bytes is faster


def masked(content: bytes) -> int:
    """Return the checksum of bytes in the form that TFRecord stores.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """Return the checksum of bytes.

    The checksum is linear in the bytes. So the bytes are cut into equal lanes, which advance together a word at a time;
    then neighbors are joined, the first of two advanced by the length of the second. Zeros in front change nothing.
    """
    if len(content) < SHORT:
        return _by_bytes(content)
    words = -(-len(content) // 4)
    level = max(0, (words.bit_length() - 5) // 2)  # a lane has 2**level words
    lanes = 1 << (-(-words >> level) - 1).bit_length()
    bytes_ = np.zeros((lanes << level) * 4, np.uint8)
    bytes_[-len(content) :] = np.frombuffer(content, np.uint8)
    bytes_[-len(content) :][:4] ^= 255  # the state at the start is all ones
    low, high = _word_tables()
    state = np.zeros(lanes, np.uint32)
    for column in np.ascontiguousarray(bytes_.view("<u4").reshape(lanes, -1).T):
        state ^= column
        state = low[state & 0xFFFF] ^ high[state >> 16]
    while len(state) > 1:
        state = _advance(state[0::2], level) ^ state[1::2]
        level += 1
    return int(state[0]) ^ 0xFFFFFFFF


def _by_bytes(content: bytes) -> int:
    table, crc = _byte_table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _zero_bits(state: np.ndarray, count: int) -> np.ndarray:
    """Advance states by `count` bits of zero."""
    for _ in range(count):
        state = state >> 1 ^ np.where(state & 1, POLYNOMIAL, np.uint32(0))
    return state


@functools.cache
def _byte_table() -> list[int]:
    table: list[int] = _zero_bits(np.arange(256, dtype=np.uint32), 8).tolist()
    return table


@functools.cache
def _word_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return what the lower and the upper half of a state become after a word of zeros, uint32 [2**16] each."""
    halves = np.arange(1 << 16, dtype=np.uint32)
    return _zero_bits(halves, 32), _zero_bits(halves << 16, 32)


@functools.cache
def _tables(level: int) -> np.ndarray:
    """Return what each byte of a state becomes after 2**level words of zeros, uint32 [4, 256]."""
    states = np.arange(256, dtype=np.uint32)[None] << (8 * np.arange(4, dtype=np.uint32))[:, None]
    if level == 0:
        low, high = _word_tables()
        return low[states & 0xFFFF] ^ high[states >> 16]
    return _advance(_advance(states, level - 1), level - 1)


def _advance(state: np.ndarray, level: int) -> np.ndarray:
    first, second, third, fourth = _tables(level)
    return first[state & 255] ^ second[state >> 8 & 255] ^ third[state >> 16 & 255] ^ fourth[state >> 24]
