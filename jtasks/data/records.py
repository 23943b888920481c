"""Shards of records with random access: WebDataset's .tar files, TFRecord and ArrayRecord files.

One pass over the shards makes an index, which is stored beside the data and memory-mapped. Then a record is read alone,
by its number, so that each process reads only its rows. Neither webdataset nor TensorFlow is needed.

A record becomes a row of columns. In a .tar, consecutive members of one name up to the first dot are a record:
`0001.jpg` and `0001.cls` give the columns `image` and `label`. In the other files a record is a tf.train.Example, whose
features are the columns. COLUMNS has the usual names of both.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jtasks.data import crc, files, pictures, store, tars, tf_example, values
from jtasks.errors import DataError

Row = dict[str, Any]

KINDS = r"\.(?P<kind>tfrecords?|array_record|tar|tar\.(?:gz|xz|bz2)|tgz|txz|tbz2)"
SHARD = re.compile(KINDS + r"(-\d+-of-\d+)?$", re.IGNORECASE)
PATTERN = re.compile(KINDS + r"([-*?\[\]{}.,\d]|of)*$", re.IGNORECASE)
COLUMNS = {
    "cls": "label",
    "txt": "text",
    "image/encoded": "image",
    "image/class/label": "label",
    **{suffix.removeprefix("."): "image" for suffix in pictures.SUFFIXES},
}
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")  # of files of pictures
_BATCH = 1 << 16  # records whose index is written at once


def is_shard(name: str) -> bool:
    """Return whether a file is a shard of records by its name, such as `train.tfrecord-00000-of-00010`."""
    return SHARD.search(name) is not None


def is_pattern(name: str) -> bool:
    """Return whether a name is of a shard, or a pattern of such names, such as `train-{000..127}.tar`."""
    return PATTERN.search(name) is not None


def split_word(path: pathlib.Path, words: Collection[str]) -> str:
    """Return the word in a shard's name that stands for a split, else the name of its folder.

    >>> split_word(pathlib.Path("a/digits-train-00000-of-00002.tfrecord"), ("train", "test"))
    'train'
    """
    tokens = re.split(r"[-_.]", SHARD.sub("", path.name))
    return next((token for token in reversed(tokens) if token in words), path.parent.name)


@dataclasses.dataclass(frozen=True)
class Records(Sequence[Row]):
    """The rows of some shards, read on access; it pickles as the files' names.

    Attributes:
      paths: the shards, all of one kind.
      folder: data folder, where the index is stored.
      columns: those to return; None: all.
    """

    paths: tuple[pathlib.Path, ...]
    folder: pathlib.Path
    columns: tuple[str, ...] | None = None

    @functools.cached_property
    def places(self) -> tuple[store.Arrays, dict[str, Any]]:
        """The places of the records, and facts about them."""
        kinds = {_kind(path) for path in self.paths}
        if len(kinds) > 1:
            raise DataError(
                f"{self.paths[0].parent}: shards of the kinds {', '.join(sorted(kinds))}; expected one kind"
            )
        parts = [1, files.identity(self.paths)]
        return store.load_or_make(
            "records", parts, self.folder, functools.partial(_write_index, self.paths, self.folder)
        )

    def __len__(self) -> int:
        return int(self.places[0]["shards"][-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        shards = self.places[0]["shards"]  # number of records before each shard
        shard = int(np.searchsorted(shards, index, side="right")) - 1
        path, number = self.paths[shard], index - int(shards[shard])
        try:
            row = self._read(shard, number, index)
        except DataError as error:
            raise DataError(f"{path}, record {number}: {error}") from error
        if self.columns is None:
            return row
        if absent := [name for name in self.columns if name not in row]:
            raise DataError(
                f"{path}, record {number}{self._key(shard, index)}: it has no {absent[0]!r}, but {', '.join(row)}"
            )
        return {name: row[name] for name in self.columns}

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "folder": self.folder, "columns": self.columns}

    def _read(self, shard: int, number: int, index: int) -> Row:
        arrays, facts = self.places
        path, kind = self.paths[shard], _kind(self.paths[0])
        if kind == "array_record":
            return _from_example(_array_record(path).read([number])[0])
        if kind == "tfrecord":
            return _from_example(_verified(path, int(arrays["offset"][index]), int(arrays["size"][index])))
        plain = tars.uncompressed(path, self.folder)
        row: Row = {}
        for member in range(*arrays["first"][index : index + 2].tolist()):
            ending = facts["endings"][arrays["ending"][member]]
            if self.columns is None or ending == "json" or COLUMNS.get(ending, ending) in self.columns:
                content = _read_bytes(plain, int(arrays["offset"][member]), int(arrays["size"][member]))
                row |= _from_member(ending, content)
            else:
                row[COLUMNS.get(ending, ending)] = None
        return row

    def _key(self, shard: int, index: int) -> str:
        """Return the name of a record in a .tar, for messages."""
        if _kind(self.paths[0]) != "tar":
            return ""
        offset = int(self.places[0]["offset"][self.places[0]["first"][index]])
        header = _read_bytes(tars.uncompressed(self.paths[shard], self.folder), offset - 512, 100)
        return f" ({header.rstrip(bytes(1)).decode(errors='replace')})"


def is_picture(value: Any) -> bool:
    """Return whether the value of a column is a file of a picture, by its first bytes."""
    return isinstance(value, bytes) and value.startswith(MAGIC)


def _kind(path: pathlib.Path) -> str:
    match = SHARD.search(path.name)
    assert match is not None
    kind = match["kind"].lower()
    return "tfrecord" if kind.startswith("tfrecord") else kind if kind == "array_record" else "tar"


def _write_index(paths: Sequence[pathlib.Path], folder: pathlib.Path, writer: store.Writer) -> None:
    counts, endings = [0], dict[str, int]()
    members = 0
    for path in paths:
        kind, count = _kind(path), 0
        if kind == "array_record":
            count = _array_record(path).num_records()
        elif kind == "tfrecord":
            for places in _batched(_tfrecords(path)):
                count += len(places)
                for name, column in zip(("offset", "size"), np.array(places, np.int64).T, strict=True):
                    writer.append(name, column)
        else:
            for samples in _batched(_samples(path, folder)):
                count += len(samples)
                lengths = np.array([len(sample) for sample in samples])
                writer.append("first", members + np.cumsum(lengths) - lengths)
                members += int(lengths.sum())
                flat = [member for sample in samples for member in sample]
                writer.append("ending", np.array([endings.setdefault(m[0], len(endings)) for m in flat], np.int32))
                writer.append("offset", np.array([m[1] for m in flat], np.int64))
                writer.append("size", np.array([m[2] for m in flat], np.int64))
        if not count:
            raise DataError(f"{path} holds no records ({path.stat().st_size:,} bytes): get it again, or leave it out")
        counts.append(counts[-1] + count)
    if members:
        writer.append("first", np.array([members]))
    writer.append("shards", np.array(counts, np.int64))
    writer.facts["endings"] = list(endings)


def _batched(items: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _samples(path: pathlib.Path, folder: pathlib.Path) -> Iterator[list[tuple[str, int, int]]]:
    """Yield the members of each record of a .tar: ending, offset and size."""
    key, sample = "", list[tuple[str, int, int]]()
    for name, (offset, size) in tars.index(tars.uncompressed(path, folder)).items():
        parent, base = os.path.split(name)
        stem, dot, ending = base.partition(".")
        if not stem or not dot:  # hidden files, and files without an ending
            continue
        if sample and f"{parent}/{stem}" != key:
            yield sample
            sample = []
        key = f"{parent}/{stem}"
        sample.append((ending.lower(), offset, size))
    if sample:
        yield sample


def _tfrecords(path: pathlib.Path) -> Iterator[tuple[int, int]]:
    """Yield offset and size of each record of a TFRecord file; lengths have checksums of their own, verified here."""
    end = path.stat().st_size
    with path.open("rb") as file:
        offset = number = 0
        while offset < end:
            header = file.read(12)
            length = int.from_bytes(header[:8], "little")
            if len(header) < 12 or offset + 16 + length > end:
                if len(header) == 12 and crc.masked(header[:8]) != int.from_bytes(header[8:], "little"):
                    raise DataError(f"{path}, record {number}: its length is corrupt; get the file again")
                raise DataError(
                    f"{path} is truncated: record {number} begins at byte {offset:,} of {end:,} and ends beyond them;"
                    " get it again"
                )
            if crc.masked(header[:8]) != int.from_bytes(header[8:], "little"):
                raise DataError(
                    f"{path}, record {number}: its length is corrupt, or this is no TFRecord file; get it again"
                )
            yield offset + 12, length
            offset += 16 + length
            file.seek(offset)
            number += 1


@functools.lru_cache(maxsize=64)
def _array_record(path: pathlib.Path) -> Any:
    try:
        from array_record.python import array_record_module  # type: ignore[import-untyped]
    except ImportError:
        raise DataError(f"{path} needs the package array_record, which Windows does not have") from None
    if path.stat().st_size == 0:
        raise DataError(f"{path} holds no records (0 bytes): get it again, or leave it out")
    reader = array_record_module.ArrayRecordReader(str(path))
    if not reader.ok():
        raise DataError(f"{path} is truncated or corrupt, or is no ArrayRecord file; get it again")
    return reader


def _read_bytes(path: pathlib.Path, offset: int, size: int) -> bytes:
    content = tars.read(str(path), offset, size)
    if len(content) != size:
        raise DataError(f"{path} has become shorter while it is read; get it again")
    return content


def _verified(path: pathlib.Path, offset: int, size: int) -> bytes:
    """Read a record of a TFRecord file; raise DataError if its checksum is wrong."""
    stored = _read_bytes(path, offset, size + 4)
    if crc.masked(stored[:size]) != int.from_bytes(stored[size:], "little"):
        raise DataError("its checksum is wrong, so its bytes are damaged: get the file again")
    return stored[:size]


def _from_example(record: bytes) -> Row:
    """Return the columns of a serialized tf.train.Example: numbers, texts, bytes, or lists of these."""
    row = {}
    for name, feature in tf_example.parse(record).items():
        plain = [_text(value) if isinstance(value, bytes) else value for value in feature]
        row[COLUMNS.get(name, name)] = plain[0] if len(plain) == 1 else plain
    return row


def _text(content: bytes) -> str | bytes:
    """Return bytes as text, unless they are a picture or not UTF-8."""
    if is_picture(content):
        return content
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _from_member(ending: str, content: bytes) -> Row:
    """Return the columns of a member of a .tar."""
    column = COLUMNS.get(ending, ending)
    if column == "image":
        return {column: content}
    text = files.decode(content, f"its .{ending}") if ending in ("cls", "txt", "json", "text", "caption") else content
    if ending == "cls":
        text = text.strip()
        return {column: int(text) if isinstance(text, str) and re.fullmatch(r"-?\d+", text) else text}
    if ending == "json":
        parsed = values.parse(str(text), "its .json")
        if not isinstance(parsed, Mapping):
            raise DataError(f"its .json is {json.dumps(parsed)[:60]}; expected an object with columns")
        return dict(parsed)
    return {column: text}
