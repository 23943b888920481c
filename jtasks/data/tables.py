"""Tables of text: TSV, CSV and JSONL files, and text data sets of TFDS, as rows of named fields."""

import csv
import difflib
import io
import json
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from jtasks.data import files, tfds
from jtasks.errors import ConfigError, DataError

Row = dict[str, Any]


def rows(name: str, split: str, fields: Sequence[str], *, folder: str | None = None, source: str = "") -> list[Row]:
    """The wanted fields of each row of one split.

    Args:
      name: a .tsv, .csv or .jsonl file; or `tfds:NAME`, whose own train, validation or test split is read, with
        `#SPLIT` behind the name for another, such as `tfds:glue/mnli#validation_matched`.
      split: `train`, `valid` or `test`.
      fields: names of columns. Where all are numbers, the file has no header and they count its columns from 0.
      folder: config.data.dir.
      source: where the file can be had, for the message when it is absent.

    Returns:
      Rows in the file's order: text for TSV and CSV, what JSON says for JSONL. Empty lines are skipped.

    Raises:
      ConfigError: the file's kind is unknown, or there is no such column.
      DataError: the file is absent, or a row is not as the others.
    """
    if name.startswith("tfds:"):
        table = _tfds(name.removeprefix("tfds:"), split, folder)
    else:
        text, kind = read(name, f"config.data.{split}", folder=folder, source=source), pathlib.PurePath(name).suffix
        readers = {".jsonl": _json_lines, ".tsv": _delimited, ".csv": _delimited}
        if kind not in readers:
            raise ConfigError(f"config.data.{split}={name!r} must be a .tsv, .csv or .jsonl file, or tfds:NAME")
        table = readers[kind](text, name, all(field.isdecimal() for field in fields))
    return [_picked(row, fields, f"{name}, {where}") for where, row in table]


def read(name: str, field: str, *, folder: str | None = None, source: str = "") -> str:
    """The text of a file that a config names: as given, in the folder of data, or in a zip archive there.

    `SST-2/train.tsv` is thus also found in `SST-2.zip`.

    Raises:
      DataError: it is nowhere, or no text in UTF-8.
    """
    root = files.data_folder(folder)
    places = [pathlib.Path(name).expanduser(), root / name]
    path = next((place for place in places if place.is_file()), None)
    archive = root / f"{pathlib.PurePath(name).parts[0]}.zip"
    try:
        if path is None and archive.is_file():
            with zipfile.ZipFile(archive) as members:
                return members.read(name).decode("utf-8-sig")
        if path is not None:
            return files.read(path).decode("utf-8-sig")
    except (UnicodeDecodeError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path or archive}: {error}; expected {name} as text in UTF-8") from error
    raise DataError(
        f"no file {name!r} ({field})\n  looked for: {', '.join(map(str, [*places, archive]))}\n"
        f"  what to do: {f'get it from {source}, ' if source else ''}put it there, or set config.data.dir or"
        " $JTASKS_DATA to the folder that holds it"
    )


def _delimited(text: str, name: str, bare: bool) -> Iterator[tuple[str, Row]]:
    """Rows of TSV, where quotes mean nothing (as in GLUE), or of CSV, where they do."""
    tabs = name.endswith(".tsv")
    quoting = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    lines = csv.reader(io.StringIO(text, newline=""), **quoting)  # type: ignore[arg-type]
    header: list[str] | None = None
    for values in lines:
        if not any(values):
            continue
        if header is None:
            header = [str(i) for i in range(len(values))] if bare else values
            if not bare:
                continue
        if len(values) != len(header):
            raise DataError(f"{name}, line {lines.line_num}: {len(values)} columns, expected {len(header)}: {header}")
        yield f"line {lines.line_num}", dict(zip(header, values, strict=True))


def _json_lines(text: str, name: str, bare: bool) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{name}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number} is no JSON object but {type(row).__name__}")
        yield f"line {number}", row


def _tfds(name: str, split: str, folder: str | None) -> Iterator[tuple[str, Row]]:
    name, _, other = name.partition("#")
    root = files.data_folder(folder)
    builder = tfds.prepared(name, [root] if folder else [root, None], features=())
    source = tfds.source(name, builder, other or tfds.SPLITS[split])
    if source is None:
        splits = ", ".join(builder.info.splits)
        raise DataError(f"tfds:{name} has the splits {splits}; config.data.{split} names none of them")
    for index in range(len(source)):
        row = source[index]
        yield f"row {index}", {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}


def _picked(row: Row, fields: Sequence[str], where: str) -> Row:
    for field in fields:
        if field not in row:
            near = difflib.get_close_matches(field, row, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where}: no column {field!r}; there are {', '.join(map(repr, row))}{hint}")
    return {field: row[field] for field in fields}
