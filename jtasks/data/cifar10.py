"""CIFAR-10 (Krizhevsky 2009) in its binary form, extracted or as the official archive.

The pickled form is not read, because a pickle is a program.
"""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from jtasks.data import files
from jtasks.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
ARCHIVE = "cifar-10-binary.tar.gz"
HASH = "md5:c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
NAMES = (FOLDER, ARCHIVE)
PICKLED = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
BATCHES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
RECORDS = 10_000  # in every file
PIXELS = 3 * 32 * 32
LIMIT = 1 << 28  # bytes; the archive unpacks to 184 million


def read(root: pathlib.Path, split: str, mirrors: Sequence[str] = MIRRORS) -> dict[str, np.ndarray] | None:
    """Read the official train (50,000) or test (10,000) examples in the official order.

    Returns:
      image uint8 [n, 32, 32, 3] and label int32 [n], or None for valid, which the data lacks.

    Raises:
      DataError: a file is absent and cannot be downloaded, or is not what its name says.
    """
    if split == "valid":
        return None
    folders = (root, root / "cifar10")
    path = files.find(NAMES, folders)
    if path is None and (pickled := files.find(PICKLED, folders)):
        raise DataError(
            f"{pickled} is CIFAR-10's pickled form, which is not read; get {ARCHIVE} from {MIRRORS[0]} beside it"
        )
    path = path or files.fetch(ARCHIVE, HASH, mirrors, root / "cifar10", NAMES, folders)
    names = BATCHES[split]
    image, label = np.empty((RECORDS * len(names), 32 * 32, 3), np.uint8), np.empty(RECORDS * len(names), np.int32)
    for number, (where, data) in enumerate(read_batches(path, names)):
        rows = slice(number * RECORDS, (number + 1) * RECORDS)
        pixels, label[rows] = parse(data, where)
        planes = pixels.reshape(RECORDS, 3, 32 * 32)
        for channel in range(3):  # a third of the time of one transposition
            image[rows, :, channel] = planes[:, channel]
    return {"image": image.reshape(-1, 32, 32, 3), "label": label}


def read_batches(path: pathlib.Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the bytes of the named batches, from a folder one by one, or from the archive."""
    if path.is_dir():
        yield from ((str(path / name), files.read(path / name, LIMIT)) for name in names)
    else:
        members = files.read_members(path, [f"{FOLDER}/{name}" for name in names], LIMIT)
        yield from ((f"{path}: {name}", data) for name, data in members.items())


def parse(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Parse records of a label and three planes; return pixels uint8 [10000, 3072] and labels int32 [10000]."""
    expected = RECORDS * (1 + PIXELS)
    if len(data) != expected:
        raise DataError(
            f"{where} holds {len(data)} bytes; expected {expected}, {RECORDS} records of {1 + PIXELS}: "
            "truncated or not CIFAR-10; get the official one"
        )
    records = np.frombuffer(data, np.uint8).reshape(RECORDS, 1 + PIXELS)
    labels = records[:, 0]
    if labels.max() > 9:
        index = int(np.argmax(labels > 9))
        raise DataError(f"{where}: the label of record {index} is {labels[index]}; expected 0 to 9")
    return records[:, 1:], labels.astype(np.int32)
