"""HDF5 shards of prepared BERT examples, as read by HetSeq and NVIDIA's BERT."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jtasks.data import files, store
from jtasks.data.images import split_rows
from jtasks.errors import DataError

# Names in the files, our names, and stored types; masked positions are padded with zeros.
FIELDS = {
    "input_ids": ("tokens", np.int32),
    "segment_ids": ("token_types", np.uint8),
    "input_mask": ("segment_ids", np.uint8),
    "masked_lm_positions": ("places", np.int32),
    "masked_lm_ids": ("labels", np.int32),
    "next_sentence_labels": ("next", np.int32),
}
SUFFIXES = (".hdf5", ".h5")
_ROWS = 8192  # number of examples copied at once
_CHUNK = 1 << 28  # maximum uncompressed bytes of one chunk of a file
_RATIO = 1032  # maximum compression of deflate


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a memory-mapped array, read on access."""

    array: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.array[self.rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array[self.rows], dtype)

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, ...]."""
        return (len(self), *self.array.shape[1:])


def read(
    paths: Sequence[pathlib.Path], split: str, *, seed: int, valid: float, vocab: int, folder: pathlib.Path
) -> dict[str, Any]:
    """Read the examples of all shards as memory-mapped arrays, copied once from the compressed files.

    The fraction `valid` of the examples, chosen by `seed`, becomes the valid split; both splits are `Rows`.

    Returns:
      tokens, token_types, segment_ids [n, t]; places, labels [n, m], with place 0 for none; next [n].

    Raises:
      DataError: a shard cannot be read, lacks an array, has its data in another file, unpacks to far more than its
        size, or differs in shape; or numbers are not integers or are out of range.
    """

    def write(writer: store.Writer) -> None:
        for path in paths:
            for arrays in _shard(path, vocab):
                for name, rows in arrays.items():
                    writer.append(name, rows)

    try:
        arrays, _ = store.load_or_make("shards", [files.identity(paths), vocab], folder, write)
    except ValueError as error:
        raise DataError(f"the shards {', '.join(map(str, paths))} do not fit together: {error}") from None
    if not valid:
        return dict(arrays)
    rows = split_rows(len(arrays["next"]), split, seed, valid)
    return {name: Rows(array, rows) for name, array in arrays.items()}


def _shard(path: pathlib.Path, vocab: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of a file, several rows at a time."""
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path} needs h5py to be read: pip install 'jtasks[hdf5]'") from None
    try:
        with h5py.File(path, "r") as file:
            if missing := [name for name in FIELDS if name not in file]:
                raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(file) or 'nothing'}")
            for name in FIELDS:
                _check_dataset(file, name, path)
            counts = {ours: len(file[name]) for name, (ours, _) in FIELDS.items()}
            if len(set(counts.values())) > 1:
                raise DataError(f"{path} has arrays of unequal lengths: {counts}")
            length = file["input_ids"].shape[1]
            for start in range(0, counts["tokens"], _ROWS):
                rows = {name: np.asarray(file[name][start : start + _ROWS]) for name in FIELDS}
                _check_ranges(rows, path, vocab, length)
                rows["next_sentence_labels"] = rows["next_sentence_labels"].reshape(-1)
                yield {ours: rows[name].astype(kind) for name, (ours, kind) in FIELDS.items()}
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises for damage
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not an HDF5 file, or is damaged ({error})") from None


def _check_dataset(file: Any, name: str, path: pathlib.Path) -> None:
    """Refuse anything but an array of integers in this file that unpacks to a plausible size."""
    import h5py

    dataset = file[name]
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: {name} is a link or a group; expected an array in this file")
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{path}: {name} has its data in another file; expected an array in this file")
    axes = dataset.ndim if name != "next_sentence_labels" or dataset.shape[1:] == (1,) else dataset.ndim + 1
    if dataset.dtype.kind not in "iu" or axes != 2:
        raise DataError(f"{path}: {name} is {dataset.dtype} {list(dataset.shape)}; expected integers [n, ...]")
    chunk = int(np.prod(dataset.chunks or (1,), dtype=object)) * dataset.dtype.itemsize
    if dataset.nbytes > _RATIO * dataset.id.get_storage_size() or chunk > _CHUNK:
        raise DataError(
            f"{path}: {name} unfolds {dataset.id.get_storage_size():,} bytes to {dataset.nbytes:,} in chunks of"
            f" {chunk:,}; expected real data in chunks of at most {_CHUNK:,}"
        )


def _check_ranges(rows: dict[str, np.ndarray], path: pathlib.Path, vocab: int, length: int) -> None:
    """Check ranges before anything is cast to a smaller type."""
    bounds = {"input_ids": vocab, "masked_lm_ids": vocab, "masked_lm_positions": length}
    for name, array in rows.items():
        bound = bounds.get(name, 2)
        if array.size and not 0 <= array.min() <= array.max() < bound:
            hint = f"; the vocabulary has {vocab}: was it made with another config.data.tokenizer?"
            raise DataError(
                f"{path}: {name} has {array.min()} to {array.max()}; expected 0 to {bound - 1}"
                f"{hint if bound == vocab else ''}"
            )
