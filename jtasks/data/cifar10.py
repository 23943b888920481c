"""CIFAR-10 (Krizhevsky 2009) in its binary or Python form, extracted or as the official archive."""

import pathlib
from collections.abc import Sequence

import numpy as np

from jtasks.data import files
from jtasks.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
ARCHIVE = "cifar-10-binary.tar.gz"
HASH = "md5:c32a1d4ab5d03f1284b67883e8d87530"
NAMES = ("cifar-10-batches-bin", "cifar-10-batches-py", ARCHIVE, "cifar-10-python.tar.gz")
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
RECORDS = 10_000  # in every file
PIXELS = 3 * 32 * 32


def read(root: pathlib.Path, split: str, mirrors: Sequence[str] = MIRRORS) -> dict[str, np.ndarray] | None:
    """The official train (50,000) or test (10,000) examples, in the official order.

    Returns image uint8 [n, 32, 32, 3] and label int32 [n], or None for valid, which the data lacks.

    Raises:
      DataError: if a file is absent and cannot be fetched, or is not what its name says.
    """
    if split == "valid":
        return None
    folders = (root, root / "cifar10")
    path = files.find(NAMES, folders) or files.fetch(ARCHIVE, HASH, mirrors, root / "cifar10", NAMES, folders)
    binary = path.name in ("cifar-10-batches-bin", ARCHIVE)
    parse = parse_binary if binary else parse_pickle
    names = [batch + (".bin" if binary else "") for batch in BATCHES[split]]
    batches = read_batches(path, names, "cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    parts = [parse(data, where) for where, data in batches.items()]
    planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    label = np.concatenate([labels for _, labels in parts])
    return {"image": np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), "label": label}


def read_batches(path: pathlib.Path, names: Sequence[str], inside: str) -> dict[str, bytes]:
    """The bytes of the named batches from a folder, or from an archive of the folder `inside`, by place."""
    if path.is_dir():
        return {str(path / name): files.read(path / name) for name in names}
    members = files.read_members(path, [f"{inside}/{name}" for name in names])
    return {f"{path}: {inside}/{name}": members[f"{inside}/{name}"] for name in names}


def parse_binary(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The pixels uint8 [10000, 3072] and labels int32 [10000] of a .bin file: records of a label and three planes."""
    expected = RECORDS * (1 + PIXELS)
    if len(data) != expected:
        raise DataError(
            f"{where} holds {len(data)} bytes; expected {expected}, {RECORDS} records of {1 + PIXELS}: "
            "truncated or not CIFAR-10; get the official one"
        )
    records = np.frombuffer(data, np.uint8).reshape(RECORDS, 1 + PIXELS)
    return records[:, 1:], _checked(records[:, 0], where)


def parse_pickle(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The same of a pickled batch, a dict with the entries data and labels."""
    batch = files.load_pickle(data, where)
    if not isinstance(batch, dict):
        raise DataError(f"{where} holds a {type(batch).__name__}; expected a dict with data and labels")
    pixels, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    if not isinstance(pixels, np.ndarray) or pixels.shape != (RECORDS, PIXELS) or pixels.dtype != np.uint8:
        shape = getattr(pixels, "shape", None)
        raise DataError(f"{where}: data has shape {shape}; expected uint8 [{RECORDS}, {PIXELS}]")
    if not isinstance(labels, list) or len(labels) != RECORDS or not all(isinstance(label, int) for label in labels):
        raise DataError(f"{where}: labels are not what was expected, a list of {RECORDS} integers")
    return pixels, _checked(np.array(labels), where)


def _checked(labels: np.ndarray, where: str) -> np.ndarray:
    wrong = (labels < 0) | (labels > 9)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise DataError(f"{where}: the label of record {index} is {labels[index]}; expected 0 to 9")
    return labels.astype(np.int32)
