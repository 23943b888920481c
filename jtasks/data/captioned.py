"""Pictures with captions: COCO's JSON, LAVIS's lists, tables, and folders of pictures with captions.txt."""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jtasks.config import Config
from jtasks.data import arrow, caption_files, files, picture_files, pictures, table_files, tables
from jtasks.data.caption_files import Captioned
from jtasks.data.examples import Resize
from jtasks.data.images import split_rows
from jtasks.data.picture_rows import Rows
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import Field

FIELDS = {
    "data.train": Field(str, None, ""),  # a file (see `caption_files.read`), a folder or a table; "": the usual names
    "data.valid": Field(str, None, ""),  # "": the file beside train's, else the fraction `valid_fraction` of train
    "data.test": Field(str, None, ""),  # "": the file beside train's, if there is one
    "data.pictures": Field(str, None, ""),  # a folder or .tar of the pictures; "": beside the file, see picture_files
    "data.valid_fraction": Field(float, "[0, 1)", 0.1),
    "data.size": Field(int, "[1, 2e9]"),  # scale and crop pictures to this width and height; None: unchanged
}

WORDS = {"train": ("train",), "valid": ("valid", "val", "validation", "dev"), "test": ("test",)}
SUFFIXES = ("json", "jsonl", "csv", "tsv", "txt")
# Names of a split's file in a folder, and names of a file for all splits.
OWN = (
    *(f"captions_{{}}.{suffix}" for suffix in SUFFIXES),
    *(f"annotations/captions_{{}}{year}.json" for year in (2014, 2017)),
    *(f"captions_{{}}{year}.json" for year in (2014, 2017)),
    *(f"{folder}{data}_{{}}.json" for data in ("coco_karpathy", "flickr30k") for folder in ("annotations/", "")),
    *(f"{{}}/captions.{suffix}" for suffix in SUFFIXES),
    *(f"{{}}/metadata.{suffix}" for suffix in ("jsonl", "csv")),
)
WHOLE = (
    *(f"captions.{suffix}" for suffix in SUFFIXES),
    *("metadata.jsonl", "metadata.csv", "dataset_coco.json", "dataset_flickr30k.json", "dataset_flickr8k.json"),
)

Source = pathlib.Path | arrow.Table


def read(split: str, config: Config) -> Rows | None:
    """Return the pictures of one split in the order of their file, each with all of its captions.

    Without a file of its own, valid is the fraction `config.data.valid_fraction` of train that config.seed chooses.

    Returns:
      Rows with `captions`, a tuple of texts, empty in a file of test pictures; `image_id`, a number or a text; and
      `file`, the picture's name. Train has only pictures with captions. None: there is no such split.

    Raises:
      ConfigError: config.data names a file or folder that does not exist, or there is no file for train.
      DataError: a file is wrong, or a picture is missing; names file and line or entry.
    """
    source, captioned = _read(split, config)
    if not captioned:
        return None
    entries = [{"captions": row.captions, "image_id": row.image_id, "file": row.file} for row in captioned]
    root, resize = files.data_folder(config.data.dir), config.model.get("resize")
    name = str(source) if isinstance(source, pathlib.Path) else source.name
    if isinstance(source, pathlib.Path):
        wanted = [(row.file, row.where) for row in captioned]
        decode: Any = picture_files.locate(wanted, config.data.pictures, source.parent, root).decode
    else:
        decode = functools.partial(_decode_cell, arrow.cells(source, (_picture_column(source),), root))
    return Rows(name, entries, decode, Resize(*resize) if resize else config.data.size)


def texts(config: Config) -> Iterator[str]:
    """Yield the captions of the train split, without its pictures."""
    for row in _read("train", config)[1]:
        yield from row.captions


def _read(split: str, config: Config) -> tuple[Source, Sequence[Captioned]]:
    """Return the source of a split and its pictures, none if there is no such split."""
    own = _own(split, config)
    source = own or _own("train", config)
    assert source is not None  # _own finds train or raises
    captioned = _records(source)
    if any(row.split for row in captioned):
        captioned = [row for row in captioned if row.split in caption_files.KARPATHY[split]]
    elif own is None and split == "test":
        captioned = []
    elif own is None or (split == "train" and _own("valid", config) is None):
        rows = split_rows(len(captioned), split, config.seed, config.data.valid_fraction)
        captioned = [captioned[row] for row in rows]
    if split == "train" and not (captioned := [row for row in captioned if row.captions]):
        raise DataError(f"{source} has no captions for the train split; expected pictures with captions")
    return source, captioned


def _own(split: str, config: Config) -> Source | None:
    """Return the file or table of a split, None if it has none of its own; train always has one."""
    data, root = config.data, files.data_folder(config.data.dir)
    name = data[split] or data.train
    if not name:
        source = _in_folder(root, split)
        if source is None and split == "train":
            raise ConfigError(
                "no pictures with captions for config.data.train\n"
                f"  looked for: captions_train.json, captions.txt, ...\n  in: {root}\n"
                "  what to do: set config.data.train to a file of captions or to a folder with captions.txt, or"
                " config.data.dir to the folder that holds them"
            )
        return source
    place = next((path for path in (pathlib.Path(name).expanduser(), root / name) if path.exists()), None)
    if place is None or place.suffix in table_files.SUFFIXES or (place.is_dir() and not _has_captions(place)):
        if not table_files.is_table(name, root):
            raise ConfigError(f"no file or folder {name!r} (config.data.{split})\n  looked for it here and in {root}")
        return tables.require_table(name, split, str(root)) if data[split] else arrow.find(name, split, "", root)
    if place.is_dir():
        source = _in_folder(place, split)
        if source is None and data[split]:
            return _in_folder(place, "train")
        return source
    return place if data[split] else _sibling(place, split)


def _in_folder(folder: pathlib.Path, split: str) -> pathlib.Path | None:
    """Return the file of a split in a folder; for train also a file for all splits."""
    own = [name.format(word) for name in OWN for word in WORDS[split]]
    return files.find([*own, *(WHOLE if split == "train" else ())], [folder])


def _has_captions(folder: pathlib.Path) -> bool:
    return any(_in_folder(folder, split) for split in WORDS)


def _sibling(train: pathlib.Path, split: str) -> pathlib.Path | None:
    """Return the file whose path has another split's name where train's has `train`: first in its name."""
    if "train" in train.name:
        return files.find([train.name.replace("train", word) for word in WORDS[split]], [train.parent])
    if train.parent.name == "train":
        return files.find([f"{word}/{train.name}" for word in WORDS[split]], [train.parent.parent])
    return None


def _records(source: Source) -> Sequence[Captioned]:
    if isinstance(source, pathlib.Path):
        return _read_file(source, files.identity([source]))
    chosen = next((name for name in caption_files.CAPTION_COLUMNS if name in source.columns), None)
    if chosen is None:
        raise DataError(
            f"{source.name} has the columns {', '.join(source.columns)}; expected one of captions:"
            f" {', '.join(caption_files.CAPTION_COLUMNS)}"
        )
    rows = arrow.rows(source, (chosen,))
    where = f"{source.name}, {{}}, column {chosen!r}"
    found = ((index, caption_files.texts(row[chosen], where.format(place))) for index, (place, row) in enumerate(rows))
    return [Captioned(str(index), captions, index, f"{source.name}, row {index}") for index, captions in found]


@functools.lru_cache(maxsize=4)
def _read_file(path: pathlib.Path, identity: str) -> Sequence[Captioned]:
    return caption_files.read(path)


def _picture_column(table: arrow.Table) -> str:
    columns = [column for column in table.columns if table.is_picture(column)]
    if not columns:
        raise DataError(f"{table.name} has the columns {', '.join(table.columns)}; expected one of pictures")
    return columns[0]


def _decode_cell(cells: arrow.Cells, row: str) -> np.ndarray:
    (picture,) = cells[int(row)]
    content = picture.get("bytes") if isinstance(picture, dict) else picture
    if not isinstance(content, bytes):
        raise DataError(f"row {row} holds no picture, but {picture!r:.80}; expected the bytes of a file of pictures")
    return pictures.decode_bytes(content, f"the picture in row {row}")
