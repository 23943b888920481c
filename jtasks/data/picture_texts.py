"""One or two pictures, a text and a class: NLVR2 (Suhr et al. 2019), SNLI-VE (Xie et al. 2019), easy-VQA, own files.

A file is .json (a list of objects, as LAVIS has), .jsonl, .csv or .tsv, or a table. A row has

- the pictures: `images`, a list of one or two; or `image` and perhaps `image2`. In the official files, NLVR2's
  `identifier` and SNLI-VE's `Flickr30K_ID` stand for them.
- the text: `text`, `sentence`, `hypothesis`, `caption` or `question`; SNLI-VE's is `sentence2`.
- the class: `label`, or SNLI-VE's `gold_label`. A file for valid or test may lack it in all rows.
"""

import functools
import io
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jtasks.config import Config
from jtasks.data import arrow, caption_files, files, parsing, picture_sources, question_files, values
from jtasks.data.picture_rows import Rows
from jtasks.data.picture_sources import FIELDS, Member, Names, Source
from jtasks.data.questions import ARCHIVES
from jtasks.errors import DataError

__all__ = ["FIELDS", "read", "texts"]

SUFFIXES = ("json", "jsonl", "csv", "tsv")
OWN = (
    *(f"{folder}{data}_{{}}.json" for data in ("nlvr", "ve") for folder in ("annotations/", "")),  # LAVIS's
    *(f"snli_ve_{{}}.{suffix}" for suffix in ("jsonl", "json")),
    *(f"{folder}{{}}.{suffix}" for folder in ("", "data/") for suffix in SUFFIXES),
    "{}/questions.json",  # easy-VQA's
)
NAMES = Names("pictures with a text and a class", OWN, (), ARCHIVES, ("nlvr", "nlvr2", "snli_ve", "vqa", "easy_vqa"))
PICTURES = ("images", *caption_files.PICTURE_COLUMNS, "identifier", "Flickr30K_ID")
TEXTS = ("text", "sentence", "hypothesis", "caption", "question", "sentence2")
LABELS = ("gold_label", "label")
COLUMNS = f"{', '.join(PICTURES)}; {', '.join(TEXTS)}; {', '.join(LABELS)}"


class Row(NamedTuple):
    """One example: the names of its pictures, its text and its class, "" without one."""

    pictures: tuple[str, ...]
    text: str
    label: str
    where: str  # its place, for messages
    split: str = ""

    @property
    def file(self) -> str:
        """Return the first picture, which decides the split of an example if valid is a part of train."""
        return self.pictures[0]


class _Picture(NamedTuple):
    file: str
    where: str
    split: str = ""


def read(split: str, config: Config) -> Rows | None:
    """Return the examples of one split in the order of their file.

    Without a file of its own, valid is the fraction config.data.valid_fraction of train's (first) pictures.

    Returns:
      Rows with `image`, uint8 [pictures, h, w, 3]; `text`; `label`, the name of the class, "" without one; and `file`,
      the names of the pictures. None: there is no such split.

    Raises:
      ConfigError: config.data names a file or folder that does not exist, or there is no file for train.
      DataError: a file is wrong, or a picture is missing; names file and line or entry.
    """
    source, rows = _read(split, config)
    if not rows:
        return None
    entries = [{"file": row.pictures, "text": row.text, "label": row.label} for row in rows]
    wanted = [_Picture(picture, row.where) for row in rows for picture in row.pictures]
    return picture_sources.rows(source, entries, wanted, config)


def texts(config: Config) -> Iterator[str]:
    """Yield the texts of the train split, without the pictures."""
    yield from (row.text for row in _read("train", config)[1])


def labels(config: Config) -> set[str]:
    """Return the names of the classes in the train split, without the pictures."""
    return {row.label for row in _read("train", config)[1]}


def _read(split: str, config: Config) -> tuple[Source, Sequence[Row]]:
    source, rows = picture_sources.read(split, config, NAMES, _parse)
    if split == "train" and (bare := [row.where for row in rows if not row.label]):
        raise DataError(f"{bare[0]} has no class; expected one of each example of train ({', '.join(LABELS)})")
    return source, rows


def _parse(source: Source) -> Sequence[Row]:
    if isinstance(source, arrow.Table):
        wanted = [name for name in (*TEXTS, *LABELS) if name in source.columns]
        numbered = ((where, row | {"image": where.removeprefix("row ")}) for where, row in arrow.rows(source, wanted))
        return _checked(_rows(numbered, source.name), source.name)
    return _parse_file(source, picture_sources.identity(source))


@functools.lru_cache(maxsize=4)
def _parse_file(source: pathlib.Path | Member, identity: str) -> Sequence[Row]:
    content, name = picture_sources.content(source, NAMES.what), str(source)
    kind = pathlib.PurePath(source.name).suffix.lower()
    if kind == ".json":
        text = files.decode(content, name)
        if text.lstrip().startswith("{"):  # NLVR2's official files are JSONL
            kind = ".jsonl"
        else:
            return _checked(_of_list(values.parse(text, name), name, content), name)
    if kind not in parsing.KINDS:
        raise DataError(f"{name}: expected {NAMES.what} in .json, .jsonl, .csv or .tsv")
    lines = parsing.Lines(parsing.byte_lines(io.BytesIO(content), kind), name)
    return _checked(_rows(parsing.good_rows(lines, kind), name), name)


def _checked(rows: Iterable[Row], name: str) -> list[Row]:
    """Return the rows; DataError if there are none, or if they differ in their number of pictures."""
    checked = list(rows)
    if not checked:
        raise DataError(f"{name} has no rows; expected {NAMES.what} ({COLUMNS})")
    count = len(checked[0].pictures)
    for row in checked:
        if len(row.pictures) != count:
            raise DataError(f"{row.where} has {len(row.pictures)} pictures, but the first row has {count}")
        if bool(row.label) != bool(checked[0].label):
            raise DataError(f"{row.where}: expected a class in all rows or in none")
    return checked


def _of_list(content: Any, name: str, raw: bytes) -> Iterator[Row]:
    if not isinstance(content, list):
        raise DataError(f"{name}: expected a list of objects, not {values.describe(content)}")
    if content and isinstance(content[0], list):  # easy-VQA: the answers are the classes
        for asked in question_files.parse(name, raw):
            yield Row((asked.file,), asked.question, asked.answers[0], asked.where)
        return
    for index, item in enumerate(content):
        if not isinstance(item, dict):
            raise DataError(f"{name}, item {index}: expected an object, not {values.describe(item)}")
        yield from _rows([(f"item {index}", item)], name)


def _rows(rows: Iterable[tuple[str, Mapping[str, Any]]], name: str) -> Iterator[Row]:
    for place, row in rows:
        where = f"{name}, {place}"
        picture, text, label = (
            next((column for column in usual if row.get(column) is not None), None)
            for usual in (PICTURES, TEXTS, LABELS)
        )
        if picture is None or text is None:
            names = ", ".join(map(repr, row)) or "nothing"
            raise DataError(f"{where} has {names}; expected a picture, a text and a class ({COLUMNS})")
        pictures = _pictures(picture, row, f"{where}, {picture!r}")
        if row.get("image2") is not None:
            pictures = (*pictures, values.content(row["image2"], f"{where}, 'image2'"))
        if len(pictures) not in (1, 2):
            raise DataError(f"{where} has {len(pictures)} pictures; expected one or two")
        told = "" if label is None else _label(row[label], f"{where}, {label!r}")
        yield Row(pictures, values.content(row[text], f"{where}, {text!r}"), told, where)


def _label(value: Any, where: str) -> str:
    """Return the name of a class; true and false of JSON are NLVR2's True and False."""
    return str(value) if isinstance(value, bool) else values.label(value, where)


def _pictures(column: str, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    value = row[column]
    if isinstance(value, list):
        return tuple(values.contents(value, where))
    if column == "Flickr30K_ID":
        return (f"{caption_files.identifier(value, where)}.jpg",)
    value = values.content(value, where)
    if column != "identifier":
        return (value,)
    stem, _, number = value.rpartition("-")  # train-10171-0-1: the second sentence about its two pictures
    if not (stem and number.isdecimal()):
        raise DataError(f"{where}: expected an identifier of NLVR2 such as 'train-10171-0-1', not {value!r}")
    return (f"{stem}-img0.png", f"{stem}-img1.png")
