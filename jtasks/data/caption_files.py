"""Files of captions: COCO's JSON, Karpathy's splits, LAVIS's JSON lists, tables, and captions.txt."""

import io
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jtasks.data import arrow, files, parsing, pictures, values
from jtasks.errors import DataError

# Names of columns, the first one of a file counts; `filepath` and `title` are OpenCLIP's.
PICTURE_COLUMNS = ("image", "file_name", "filename", "filepath", "image_path", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")
ID_COLUMNS = ("image_id",)  # not `id`, which numbers the captions in some tables

_SUFFIX = "|".join(sorted(suffix.removeprefix(".") for suffix in pictures.SUFFIXES))
_LINE = re.compile(rf"(.*?\.(?:{_SUFFIX}))(?:#\d+)?[ ]*[\t,][ ]*(.*)", re.IGNORECASE)
_QUOTED = re.compile(r'("(?:[^"]|"")*")[ ]*[\t,][ ]*(.*)')
_HEADER = re.compile(r"(image|file|file_?name)(_name)?\s*[\t,]\s*(captions?|text)", re.IGNORECASE)


class Captioned(NamedTuple):
    """One picture and its captions, () if the file has none."""

    file: str
    captions: tuple[str, ...]
    image_id: int | str
    where: str  # place of the entry that names the picture, for messages
    split: str = ""  # name of its split, in files that hold all splits


def parse(name: str, content: bytes) -> list[Captioned]:
    """Return the pictures of a file, each once, in the order of their first entries.

    Args:
      name: the file's name, for its kind and for messages.
      content: its text in UTF-8, perhaps with a byte order mark:

        - .json: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}` of COCO (Chen et al.
          2015); `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}` of Karpathy and Fei-Fei (2015); or a list
          `[{"image", "caption": text or list of texts, "image_id"}]` as LAVIS has.
        - .csv, .tsv, .jsonl: rows with a picture and a caption, or a list of captions, in columns named as above.
        - .txt and others: lines `FILE<TAB or comma>caption`; quotes around a caption or a file's name as in CSV,
          `FILE#0` as in Flickr8k.

    Raises:
      DataError: the file is not of these forms; a caption is empty or no text; an id occurs twice or is unknown. Names
        the file, and the line and column or the entry.
    """
    kind = pathlib.PurePath(name.partition(" in ")[0]).suffix.lower()
    if kind == ".json":
        captioned = _json(values.parse(files.decode(content, name), name), name)
    else:
        lines = parsing.Lines(parsing.byte_lines(io.BytesIO(content), kind), name)
        captioned = list(merge(_rows(lines, kind) if kind in parsing.KINDS else _lines(lines)))
    if not captioned:
        raise DataError(f"{name} has no pictures; expected some with captions")
    return captioned


def from_table(table: arrow.Table) -> list[Captioned]:
    """Return the pictures of a table; each row is one, and its number is the name of its picture."""
    caption = next((name for name in CAPTION_COLUMNS if name in table.columns), None)
    if caption is None:
        raise DataError(
            f"{table.name} has the columns {', '.join(table.columns)}; expected one of captions:"
            f" {', '.join(CAPTION_COLUMNS)}"
        )
    rows = ((f"{table.name}, {where}", row[caption]) for where, row in arrow.rows(table, (caption,)))
    return [
        Captioned(str(index), texts(value, f"{where}, column {caption!r}"), index, where)
        for index, (where, value) in enumerate(rows)
    ]


def merge(entries: Iterable[Captioned]) -> Iterator[Captioned]:
    """Yield each picture once, with the captions of all of its entries, in the order of the first ones.

    Raises:
      DataError: entries of one picture have different ids, or one id belongs to several pictures.
    """
    by_file: dict[str, list[Captioned]] = {}
    owners: dict[int | str, Captioned] = {}
    for entry in entries:
        owner = owners.setdefault(entry.image_id, entry)
        if owner.file != entry.file:
            raise DataError(
                f"{entry.where}: the id {entry.image_id!r} belongs to {owner.file!r} in {owner.where}; expected one id"
                f" for each picture"
            )
        by_file.setdefault(entry.file, []).append(entry)
    for first, *others in by_file.values():
        if odd := [entry for entry in others if (entry.image_id, entry.split) != (first.image_id, first.split)]:
            raise DataError(
                f"{odd[0].where}: the picture {first.file!r} has the id {odd[0].image_id!r}, but {first.image_id!r} in"
                f" {first.where}"
            )
        yield first._replace(captions=tuple(text for entry in (first, *others) for text in entry.captions))


def entry(row: Mapping[str, Any], where: str, columns: "Columns") -> Captioned:
    """Return the picture of a row of a table."""
    file = values.content(row[columns.picture], f"{where}, column {columns.picture!r}")
    captions = texts(row[columns.caption], f"{where}, column {columns.caption!r}")
    own = row.get(columns.own, file)
    return Captioned(file, captions, identifier(own, f"{where}, column {columns.own!r}"), where)


class Columns(NamedTuple):
    """Names of a table's columns."""

    picture: str
    caption: str
    own: str  # of the picture's id; "" if the file's name is its id


def columns(names: Iterable[str], where: str) -> Columns:
    """Choose the columns of a table by their names; DataError if one is missing."""
    names = list(names)
    chosen = [next((n for n in usual if n in names), "") for usual in (PICTURE_COLUMNS, CAPTION_COLUMNS, ID_COLUMNS)]
    if not chosen[0] or not chosen[1]:
        raise DataError(
            f"{where}: the columns are {', '.join(map(repr, names))}; expected one of pictures"
            f" ({', '.join(PICTURE_COLUMNS)}) and one of captions ({', '.join(CAPTION_COLUMNS)})"
        )
    return Columns(*chosen)


def texts(value: Any, where: str) -> tuple[str, ...]:
    """Return a text or a list of texts as a tuple; DataError for anything else."""
    return tuple(values.contents(value, where) if isinstance(value, list) else [values.content(value, where)])


def identifier(value: Any, where: str) -> int | str:
    """Return an id, a whole number or a text; DataError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: expected an id, a number or a text, not {values.describe(value)}")
    return value if isinstance(value, int) else values.content(value, where)


def _rows(lines: parsing.Lines, kind: str) -> Iterator[Captioned]:
    chosen = None
    for number, row in parsing.parse(lines, kind):
        if isinstance(row, DataError):
            raise row
        where = f"{lines.name}, line {number}"
        chosen = chosen or columns(row, where)
        if missing := [name for name in chosen[:2] if name not in row]:
            raise DataError(f"{where}: there is no {missing[0]!r}, which the first row has")
        yield entry(row, where, chosen)


def _lines(lines: parsing.Lines) -> Iterator[Captioned]:
    """Yield the picture of each line `FILE<TAB or comma>caption`; empty lines and a header are skipped."""
    for line in lines:
        text, where = line.rstrip("\r\n"), f"{lines.name}, line {lines.number}"
        if not text.strip(values.BLANKS) or (lines.number == 1 and _HEADER.match(text)):
            continue
        parts = _QUOTED.fullmatch(text) or _LINE.fullmatch(text)
        if parts is None:
            raise DataError(
                f"{where}: expected FILE<TAB or comma>caption, such as dog.jpg,a dog runs, not {text!r:.80}"
            )
        file, caption = map(_unquote, parts.groups())
        yield Captioned(file, texts(caption, f"{where}, the caption"), file, where)


def _unquote(text: str) -> str:
    """Return the content of a field in quotes as CSV has them; other texts stay as they are."""
    if not re.fullmatch(r'"(?:[^"]|"")*"', text):
        return text
    return text[1:-1].replace('""', '"')


def _json(content: Any, name: str) -> list[Captioned]:
    if isinstance(content, list):
        return list(merge(_list(content, name)))
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(
            f"{name}: expected COCO's {{'images': [...], 'annotations': [...]}}, or a list of {{'image', 'caption'}},"
            f" not {values.describe(content)}{' without images' if isinstance(content, dict) else ''}"
        )
    if any(isinstance(image, dict) and "sentences" in image for image in content["images"]):
        return list(merge(_karpathy(content["images"], name)))
    return _coco(content, name)


def _list(content: list[Any], name: str) -> Iterator[Captioned]:
    """Yield the entries of LAVIS's lists."""
    for index, item in enumerate(content):
        where = f"{name}, item {index}"
        file = values.content(values.entry(item, "image", str, where), f"{where}, 'image'")
        captions = texts(item["caption"], f"{where}, 'caption'") if "caption" in item else ()
        yield Captioned(file, captions, identifier(item.get("image_id", file), f"{where}, 'image_id'"), where)


def _karpathy(images: list[Any], name: str) -> Iterator[Captioned]:
    for index, image in enumerate(images):
        where = f"{name}, image {index}"
        file = values.content(values.entry(image, "filename", str, where), f"{where}, 'filename'")
        file = f"{image['filepath']}/{file}" if image.get("filepath") else file
        sentences = values.entry(image, "sentences", list, where)
        captions = tuple(
            values.content(values.entry(sentence, "raw", str, place), f"{place}, 'raw'")
            for place, sentence in ((f"{where}, sentence {i}", sentence) for i, sentence in enumerate(sentences))
        )
        own = identifier(image.get("cocoid", file), f"{where}, 'cocoid'")
        yield Captioned(file, captions, own, where, values.entry(image, "split", str, where))


def _coco(content: dict[str, Any], name: str) -> list[Captioned]:
    by_id: dict[int | str, tuple[str, str, list[str]]] = {}
    for index, image in enumerate(content["images"]):
        where = f"{name}, image {index}"
        file = values.content(values.entry(image, "file_name", str, where), f"{where}, 'file_name'")
        own = identifier(image.get("id"), f"{where}, 'id'")
        if own in by_id:
            raise DataError(f"{where}: the id {own!r} occurs twice; expected an id for each picture")
        by_id[own] = file, where, []
    for index, annotation in enumerate(content.get("annotations") or []):
        where = f"{name}, annotation {index}"
        text = values.content(values.entry(annotation, "caption", str, where), f"{where}, 'caption'")
        own = identifier(annotation.get("image_id"), f"{where}, 'image_id'")
        if own not in by_id:
            raise DataError(f"{where}: no picture has the id {own!r}; expected the id of one of the 'images'")
        by_id[own][2].append(text)
    return [Captioned(file, tuple(captions), own, where) for own, (file, where, captions) in by_id.items()]
