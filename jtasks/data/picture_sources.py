"""Sources of data about pictures by split: a file, a file in an archive, or a table; and where their pictures lie."""

import pathlib
import posixpath
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jtasks import storage
from jtasks.config import Config
from jtasks.data import arrow, files, picture_files, picture_tables, table_files, tables, tars
from jtasks.data.examples import Resize
from jtasks.data.images import split_rows
from jtasks.data.picture_rows import Entries, Rows
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import Field

FIELDS = {
    "data.train": Field(str, None, ""),  # a file, a folder, an archive or a table; "": the usual names
    "data.valid": Field(str, None, ""),  # "": the file beside train's, else the fraction `valid_fraction` of train
    "data.test": Field(str, None, ""),  # "": the file beside train's, if there is one
    "data.pictures": Field(str, None, ""),  # a folder or .tar of the pictures; "": beside the file, see picture_files
    "data.valid_fraction": Field(float, "[0, 1)", 0.1),  # of train's pictures, chosen by config.seed
    "data.size": Field(int, "[1, 2e9]"),  # scale and crop pictures to this width and height; None: unchanged
}

WORDS = {"train": ("train",), "valid": ("valid", "val", "validation", "dev"), "test": ("test",)}
SPLITS = {"train": ("train", "restval"), "valid": ("valid", "val", "validation"), "test": ("test",)}  # in one file


class Member(NamedTuple):
    """A file in a .tar archive."""

    archive: pathlib.Path  # uncompressed
    name: str
    given: pathlib.Path  # the archive before it was decompressed, for messages

    def __str__(self) -> str:
        return f"{self.name} in {self.given}"


class Names(NamedTuple):
    """Usual names of files in a folder or an archive, best first."""

    what: str  # the files hold, for messages
    own: Sequence[str]  # of one split, with {} for the name of the split
    whole: Sequence[str]  # for all splits
    archives: Sequence[str]  # of all of these files with their pictures
    folders: Sequence[str]  # of the data folder, where they may lie


class Record(Protocol):
    """One row of a file."""

    @property
    def file(self) -> str:
        """Name of the picture."""

    @property
    def where(self) -> str:
        """Place of the row, for messages."""

    @property
    def split(self) -> str:
        """Name of the split, in files that hold all splits."""


Source = pathlib.Path | Member | arrow.Table


def read(
    split: str, config: Config, names: Names, parse: Callable[[Source], Sequence[Any]]
) -> tuple[Source, Sequence[Any]]:
    """Return the source of a split and its records, none if there is no such split.

    Without a source of its own, valid has the fraction config.data.valid_fraction of train's pictures.

    Args:
      split: `train`, `valid` or `test`.
      config: config.data has the FIELDS above.
      names: names to look for where config.data names no file.
      parse: function from a source to its Records.

    Raises:
      ConfigError: config.data names a file or folder that does not exist, or there is no source for train.
    """
    own = _own(split, config, names)
    source = own or _own("train", config, names)
    assert source is not None  # _own returns one for train, or raises
    records = parse(source)
    if any(record.split for record in records):
        return source, [record for record in records if record.split in SPLITS[split]]
    if own is None and split == "test":
        return source, []
    if own is None or (split == "train" and _own("valid", config, names) is None):
        pictures = list(dict.fromkeys(record.file for record in records))
        rows = split_rows(len(pictures), split, config.seed, config.data.valid_fraction)
        chosen = {pictures[row] for row in rows}
        records = [record for record in records if record.file in chosen]
    return source, records


def content(source: pathlib.Path | Member, expected: str) -> bytes:
    """Read the bytes of a source; DataError if it is empty, which names what was expected."""
    if isinstance(source, Member):
        read = tars.read(str(source.archive), *tars.index(source.archive)[source.name])
    else:
        read = files.read(source)
    if not read.strip(b"\xef\xbb\xbf \t\r\n"):
        raise DataError(f"{source} is empty; expected {expected}")
    return read


def identity(source: pathlib.Path | Member) -> str:
    """Identify the content of a source, so that it is read once while it stays the same."""
    return files.identity([source.archive if isinstance(source, Member) else source])


def rows(source: Source, entries: Sequence[Entries], records: Sequence[Record], config: Config) -> Rows:
    """Return entries with their pictures, scaled as the config says; DataError if a record's picture is missing."""
    resize, size = config.model.get("resize"), config.data.size
    name = source.name if isinstance(source, arrow.Table) else str(source)
    decode = _decoder(source, records, config)
    return Rows(name, entries, decode, Resize(*resize) if resize else size)


def _decoder(source: Source, records: Sequence[Record], config: Config) -> Callable[[str], np.ndarray]:
    """Return a function from the name of a picture to uint8 [h, w, 3]."""
    root = files.data_folder(config.data.dir)
    if isinstance(source, arrow.Table):
        return picture_tables.decoder(source, root)
    beside = (source.archive, posixpath.dirname(source.name)) if isinstance(source, Member) else (source.parent, "")
    wanted = dict[str, str]()
    for record in records:
        wanted.setdefault(record.file, record.where)
    return picture_files.locate(list(wanted.items()), config.data.pictures, beside, root).decode


def _own(split: str, config: Config, names: Names) -> Source | None:
    """Return the source of a split, None if it has none of its own; train always has one."""
    data, root = config.data, files.data_folder(config.data.dir)
    name = data[split] or data.train
    if not name:
        places = [root, *(root / folder for folder in names.folders)]
        places += [
            path for path in (place / archive for place in places for archive in names.archives) if path.exists()
        ]
        inside = (_inside(place, split, names, root) for place in places)
        source = next((source for source in inside if source is not None), None)
        if source is None and split == "train":
            looked = [*(name.format("train") for name in names.own[:3]), *names.whole[:2], *names.archives]
            raise ConfigError(
                f"no {names.what} for config.data.train\n  looked for: {', '.join(looked)}, ...\n"
                f"  in: {', '.join(map(str, places))}\n  what to do: set config.data.train to a file or a folder, or"
                " config.data.dir to the folder that holds it"
            )
        return source
    place = next((path for path in (storage.local(name), root / name) if path.exists()), None)
    several = place if place is not None and (place.is_dir() or tars.is_archive(place)) else None
    if several is not None and any(_inside(several, other, names, root) for other in WORDS):
        return _inside(several, split, names, root) or (_inside(several, "train", names, root) if data[split] else None)
    if place is None or place.suffix.lower() in table_files.SUFFIXES or several is not None:
        if not table_files.is_table(name, root):
            raise ConfigError(f"no file or folder {name!r} (config.data.{split})\n  looked for it here and in {root}")
        if not data[split]:
            return arrow.find(name, split, f"config.data.{split}", root)
        return tables.require_table(name, split, str(root))
    return place if data[split] else _sibling(place, split)


def _inside(place: pathlib.Path, split: str, names: Names, root: pathlib.Path) -> pathlib.Path | Member | None:
    """Return the file of a split in a folder or an archive; for train also a file for all splits."""
    own = [name.format(word) for name in names.own for word in WORDS[split]]
    wanted = [*own, *(names.whole if split == "train" else ())]
    if not tars.is_archive(place):
        return files.find(wanted, [place])
    archive = tars.uncompressed(place, root)
    members = tars.index(archive)
    matching = (member for name in wanted for member in members if f"/{member}".endswith(f"/{name}"))
    return next((Member(archive, member, place) for member in matching), None)


def _sibling(train: pathlib.Path, split: str) -> pathlib.Path | None:
    """Return the file whose name, or whose folder's name, has another split's word where train's has `train`."""
    if "train" in train.name:
        named = [train.name.replace("train", word) for word in WORDS[split]]
        named += [name.replace("test2014", "test2015") for name in named]  # as VQA's files are called
        return files.find(named, [train.parent])
    if train.parent.name == "train":
        return files.find([f"{word}/{train.name}" for word in WORDS[split]], [train.parent.parent])
    return None
