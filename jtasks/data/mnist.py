"""MNIST (LeCun et al. 1998) from its IDX files, compressed or not."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from jtasks.data import files
from jtasks.errors import DataError

CLASSES = tuple("0123456789")
LIMIT = 1 << 28  # bytes; the largest official file has 47 million
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
HASHES = {
    "train-images-idx3-ubyte": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "md5:9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}


def read(root: pathlib.Path, split: str, mirrors: Sequence[str] = MIRRORS) -> dict[str, np.ndarray] | None:
    """Read the official train (60,000) or test (10,000) examples: image uint8 [n, 28, 28, 1], label int32 [n].

    Files in `root` are accepted with any hash, since many people have compressed them again.

    Raises:
      DataError: a file is absent and cannot be downloaded, or is not what its name says.
    """
    if split == "valid":
        return None
    stem = "train" if split == "train" else "t10k"
    image_path = locate(root, f"{stem}-images-idx3-ubyte", mirrors)
    label_path = locate(root, f"{stem}-labels-idx1-ubyte", mirrors)
    image, label = read_idx(image_path, axes=3), read_idx(label_path, axes=1)
    if image.shape[1:] != (28, 28):
        raise DataError(f"{image_path} holds images of {image.shape[1]} x {image.shape[2]}; expected 28 x 28")
    if len(image) != len(label):
        raise DataError(
            f"{image_path} holds {len(image)} images but {label_path} {len(label)} labels; expected equal numbers"
        )
    if label.max(initial=0) > 9:
        index = int(np.argmax(label > 9))
        raise DataError(f"{label_path}: label {index} is {label[index]}; expected 0 to 9")
    return {"image": image[..., None], "label": label.astype(np.int32)}


def locate(root: pathlib.Path, name: str, mirrors: Sequence[str]) -> pathlib.Path:
    """Return the path of an IDX file under any of its usual names, downloaded if absent."""
    dotted = name.replace("-idx", ".idx")
    names = (name, f"{name}.gz", dotted, f"{dotted}.gz")
    folders = (root, root / "mnist", root / "MNIST" / "raw")
    path = files.find(names, folders)
    return path or files.fetch(f"{name}.gz", HASHES[name], mirrors, root / "mnist", names, folders)


def read_idx(path: pathlib.Path, axes: int) -> np.ndarray:
    """Read a uint8 IDX file (http://yann.lecun.com/exdb/mnist) with this number of axes.

    Raises:
      DataError: the header or the number of bytes is wrong, or the compression is damaged.
    """
    data = files.read(path, LIMIT)
    if data[:2] == b"\x1f\x8b":  # by content: browsers decompress a .gz and keep its name
        data = files.gunzip(data, path, LIMIT)
    magic = bytes([0, 0, 8, axes])
    if data[:4] != magic:
        raise DataError(f"{path} starts with {data[:4].hex()}; expected {magic.hex()}, an IDX file of bytes, {axes}-d")
    start = 4 + 4 * axes
    if len(data) < start:
        raise DataError(f"{path} is truncated: {len(data)} bytes, expected a header of {start}")
    shape = [int(size) for size in np.frombuffer(data, ">u4", axes, offset=4)]
    if len(data) != start + math.prod(shape):
        raise DataError(
            f"{path} holds {len(data)} bytes; its header of shape {shape} makes {start + math.prod(shape)} expected; "
            "delete it and run again to download it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
