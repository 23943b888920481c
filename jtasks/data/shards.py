"""HDF5 shards of prepared BERT examples, as HetSeq and NVIDIA's BERT read them."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jtasks.data import store, text
from jtasks.data.images import split_rows
from jtasks.errors import DataError

# Names in the files, ours, and the type that we keep; masked positions are filled up with zeros.
FIELDS = {
    "input_ids": ("tokens", np.int32),
    "segment_ids": ("types", np.uint8),
    "input_mask": ("segments", np.uint8),
    "masked_lm_positions": ("places", np.int32),
    "masked_lm_ids": ("labels", np.int32),
    "next_sentence_labels": ("next", np.int32),
}
SUFFIXES = (".hdf5", ".h5")


def read(
    paths: Sequence[pathlib.Path], split: str, *, seed: int, valid: float, vocab: int, folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """The examples of all shards as arrays mapped into memory, copied once out of the compressed files.

    The share `valid` of the examples, chosen by `seed`, becomes the valid split.

    Returns:
      tokens, types, segments [n, t]; places, labels [n, m], where place 0 means none; next [n].

    Raises:
      DataError: a shard cannot be read, lacks an array, or differs in shape; or an id is not in the vocabulary.
    """

    def write(writer: store.Writer) -> None:
        for path in paths:
            for name, rows in _shard(path, vocab).items():
                writer.append(name, rows)

    try:
        arrays, _ = store.stored("shards", [text.identity(paths), vocab], folder, write)
    except ValueError as error:
        raise DataError(f"the shards {', '.join(map(str, paths))} do not fit together: {error}") from None
    if not valid:
        return dict(arrays)
    rows = split_rows(len(arrays["next"]), split, seed, valid)
    return {name: array[rows] for name, array in arrays.items()}


def _shard(path: pathlib.Path, vocab: int) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path} needs h5py to be read: pip install 'jtasks[hdf5]'") from None
    arrays: dict[str, Any] = {}
    try:
        with h5py.File(path, "r") as file:
            if missing := [name for name in FIELDS if name not in file]:
                raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(file) or 'nothing'}")
            for name, (ours, kind) in FIELDS.items():
                arrays[ours] = np.asarray(file[name]).astype(kind)
    except OSError as error:
        raise DataError(f"{path} is no HDF5 file, or damaged ({error})") from None
    arrays["next"] = arrays["next"].reshape(-1)
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path} has arrays of unequal lengths: {counts}")
    for name in ("tokens", "labels"):
        if arrays[name].size and not 0 <= arrays[name].min() <= arrays[name].max() < vocab:
            raise DataError(
                f"{path} has ids up to {arrays[name].max()}, but the vocabulary has {vocab}:"
                " it was made with another config.data.tokenizer"
            )
    if arrays["places"].size and not 0 <= arrays["places"].min() <= arrays["places"].max() < arrays["tokens"].shape[1]:
        raise DataError(f"{path} has masked_lm_positions beyond its {arrays['tokens'].shape[1]} tokens")
    return arrays
