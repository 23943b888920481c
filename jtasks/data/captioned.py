"""Pictures with captions: COCO's JSON, LAVIS's lists, tables, and folders of pictures with captions.txt."""

import functools
import pathlib
from collections.abc import Iterator, Sequence

from jtasks.config import Config
from jtasks.data import arrow, caption_files, picture_sources
from jtasks.data.caption_files import Captioned
from jtasks.data.picture_rows import Rows
from jtasks.data.picture_sources import FIELDS, Member, Names, Source
from jtasks.errors import DataError

__all__ = ["FIELDS", "read", "texts"]

SUFFIXES = ("json", "jsonl", "csv", "tsv", "txt")
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

NAMES = Names("pictures with captions", OWN, WHOLE, (), ())


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
    return picture_sources.rows(source, entries, captioned, config)


def texts(config: Config) -> Iterator[str]:
    """Yield the captions of the train split, without its pictures."""
    for row in _read("train", config)[1]:
        yield from row.captions


def _read(split: str, config: Config) -> tuple[Source, Sequence[Captioned]]:
    source, captioned = picture_sources.read(split, config, NAMES, _parse)
    if split == "train" and not (captioned := [row for row in captioned if row.captions]):
        raise DataError(f"{source} has no captions for the train split; expected pictures with captions")
    return source, captioned


def _parse(source: Source) -> Sequence[Captioned]:
    if isinstance(source, arrow.Table):
        return caption_files.from_table(source)
    return _parse_file(source, picture_sources.identity(source))


@functools.lru_cache(maxsize=4)
def _parse_file(source: pathlib.Path | Member, identity: str) -> Sequence[Captioned]:
    return caption_files.parse(str(source), picture_sources.content(source, NAMES.what))
