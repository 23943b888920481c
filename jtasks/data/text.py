"""Text in plain files and in tables: found by name or pattern, cut into documents, and split into train and valid."""

import glob
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jtasks import storage
from jtasks.data import arrow, files, parsing, table_files, values
from jtasks.data.images import split_rows
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import Field

DOCUMENTS = ("file", "blank", "line")

# Fields of config.data that select text, for a task's `defaults`.
FIELDS = {
    "data.files": Field(str, None, ""),  # names or patterns, separated by commas
    "data.valid_files": Field(str, None, ""),  # "": the fraction `valid_fraction` of the documents is held out
    "data.test_files": Field(str, None, ""),
    "data.valid_fraction": Field(float, "[0, 1)", 0.05),
}

# Where to download a file of this name: its other name, mirrors and hash.
_SOURCES = {
    "tinyshakespeare.txt": (
        "input.txt",
        ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
        "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}


class Source(NamedTuple):
    """Location of a split's text."""

    paths: list[pathlib.Path]
    part: str  # of these files: "train" or "valid"
    valid: float  # fraction of the files that is the valid part


def source(split: str, options: Any, folder: pathlib.Path) -> Source | None:
    """Return the text of a split according to `options` (config.data), or None if there is none.

    `options` has `files`, `valid_files` and `test_files`, each patterns for `locate` or a name for `arrow.find`, and
    `valid_fraction`: without files of its own, the valid split is that fraction of the train files.
    """
    own = {"train": options.files, "valid": options.valid_files, "test": options.test_files}[split]
    if split == "valid" and not own and options.valid_fraction:
        return Source(_find(options.files, "train", folder, "config.data.files"), "valid", options.valid_fraction)
    if split != "train" and not own:
        return None
    field = "config.data.files" if split == "train" else f"config.data.{split}_files"
    share = options.valid_fraction if split == "train" and not options.valid_files else 0.0
    return Source(_find(own, split, folder, field), "train", share)


def _find(names: str, split: str, folder: pathlib.Path, field: str) -> list[pathlib.Path]:
    """Find files as `locate` does, or the files of one split of a table in a folder or on the hub."""
    if not names or not table_files.is_folder(names, folder):
        return locate(names, folder, field)
    table = arrow.find(names, split, field, folder)
    if table is None:
        raise ConfigError(f"{field}={names!r} has no {split} split: name another one as {names}#SPLIT")
    return list(table.paths)


def locate(patterns: str, folder: pathlib.Path, field: str = "config.data.files") -> list[pathlib.Path]:
    r"""Find the files of comma-separated names or patterns (`*`, `?`, `[]`, `**`), sorted, each once.

    Each name is searched for as given, then in `folder` (the data folder) and in `folder`/text. If the whole text names
    an existing file, it is not a pattern and its commas do not separate; in a list, `\,` is a comma in a name.
    `tinyshakespeare.txt` is downloaded if it is nowhere.

    Raises:
      ConfigError: no name is given, or a name or pattern matches no file.
    """
    matched: list[pathlib.Path] = []
    whole = any(place.is_file() for place in _places(patterns, folder))
    parts = [patterns] if whole else [p.strip(" ").replace("\\,", ",") for p in re.split(r"(?<!\\),", patterns)]
    for pattern in filter(None, parts):
        for path in _matches(pattern, folder, field):
            if path not in matched:
                matched.append(path)
    if not matched:
        raise ConfigError(f"{field} is empty: give names of text files, or patterns such as books/*.txt")
    return matched


def _places(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
    return [storage.local(name), folder / name, folder / "text" / name]


def _matches(pattern: str, folder: pathlib.Path, field: str) -> list[pathlib.Path]:
    places = _places(pattern, folder)
    if paths := storage.match_files(pattern):
        return paths
    for place, base in zip(places, ("", folder, folder / "text"), strict=True):
        if place.is_file():
            return [place.resolve()]
        wanted = os.path.join(glob.escape(str(base)), os.path.expanduser(pattern))
        paths = sorted(pathlib.Path(name).resolve() for name in glob.glob(wanted, recursive=True))
        if paths := [path for path in paths if path.is_file()]:
            return paths
    if pattern in _SOURCES:
        name, mirrors, known_hash = _SOURCES[pattern]
        own = folder / pathlib.Path(pattern).stem
        path = own / name
        if not path.exists():
            path = files.fetch(name, known_hash, mirrors, own, [pattern, name], [folder, own])
        return [path]
    raise ConfigError(
        f"no file for {pattern!r} of {field}: looked for {', '.join(map(str, places))}\n  what to do: put it there,"
        f" name the files you have by --{field}, or set config.data.dir or $JTASKS_DATA to their folder"
    )


def documents(
    paths: Sequence[pathlib.Path], kind: str, split: str = "train", *, seed: int = 0, valid: float = 0.0
) -> Iterator[str]:
    """Yield the documents of one part of the text, in order.

    A byte order mark is skipped; quotes have no meaning. Whole files keep their line ends. Otherwise LF, CRLF or CR
    ends a line, and a blank line holds only ASCII blanks; U+0085, U+2028 and others are characters of the text.

    Whole files are cut: the last fraction `valid` of each file's characters is its valid part. Smaller documents stay
    whole; `seed` selects the valid ones.

    Args:
      paths: text files in UTF-8, or tables, whose rows are lines: Parquet, Arrow, shards, .csv, .tsv and .jsonl.
      kind: "file" (each file is a document), "blank" (blank lines separate documents) or "line" (each line is a
        document).
      split: "train" or "valid".
      seed: decides which documents become valid, and nothing else.
      valid: fraction that becomes valid, in [0, 1); 0: all is train.

    Raises:
      ConfigError: an argument has another value.
      DataError: a file is absent, not UTF-8 or holds a zero byte; names the line.
    """
    if kind not in DOCUMENTS:
        raise ConfigError(f"config.data.documents={kind!r} must be one of {', '.join(DOCUMENTS)}")
    if not 0 <= valid < 1:
        raise ConfigError(f"config.data.valid_fraction={valid} must be at least 0 and less than 1")
    if kind == "file":
        for path in paths:
            text = _read(path)
            end = int(len(text) * (1 - valid))
            if part := text[end:] if split == "valid" else text[:end]:
                yield part
        return
    kept = None
    if valid or split == "valid":
        count = sum(1 for _ in _documents(paths, kind))
        kept = set(split_rows(count, split, seed, valid).tolist()) if count else set()
    for index, document in enumerate(_documents(paths, kind)):
        if kept is None or index in kept:
            yield document


def _documents(paths: Sequence[pathlib.Path], kind: str) -> Iterator[str]:
    """Yield documents line by line, since files may be larger than memory; a row of a table is a line."""
    for path in paths:
        lines: list[str] = []
        for line in _lines(path):
            if not line.strip(values.BLANKS) or kind == "line":
                if kind == "line" and line.strip(values.BLANKS):
                    yield line
                elif lines:
                    yield "\n".join(lines)
                lines = []
            else:
                lines.append(line)
        if lines:
            yield "\n".join(lines)


def _has_rows(path: pathlib.Path) -> bool:
    return table_files.is_table_file(path) or path.suffix.lower() in parsing.KINDS


def _lines(path: pathlib.Path) -> Iterator[str]:
    if _has_rows(path):
        yield from _rows(path)
        return
    for number, line in enumerate(files.stream(path), 1):
        text = files.decode(line, str(path), number)
        yield from text.removesuffix("\n").removesuffix("\r").split("\r")


def _rows(path: pathlib.Path) -> Iterator[str]:
    """Yield the rows of a table: its column `text`, or its only column of text."""
    if not table_files.is_table_file(path):
        yield from _parsed_rows(path)
        return
    table = arrow.find(str(path), "train", "config.data.files", path.parent)
    assert table is not None  # a file has all splits
    columns = [name for name in table.columns if table.is_text(name)]
    column = "text" if "text" in columns else columns[0] if len(columns) == 1 else None
    if column is None:
        raise DataError(
            f"{path} has the columns {', '.join(table.columns)}; expected one of text, with the name 'text'"
        )
    for where, row in arrow.rows(table, (column,)):
        yield values.text(row[column], f"{path}, {where}, column {column!r}")


def _parsed_rows(path: pathlib.Path) -> Iterator[str]:
    """Yield the rows of a CSV, TSV or JSONL file, as `_rows` does."""
    kind, column = path.suffix.lower(), ""
    for number, row in parsing.parse(parsing.Lines(parsing.byte_lines(files.stream(path), kind), str(path)), kind):
        where = f"{path}, line {number}"
        if isinstance(row, DataError):
            raise row
        if not column:
            texts = [name for name, value in row.items() if isinstance(value, str)]
            column = "text" if "text" in texts else texts[0] if len(texts) == 1 else ""
        if not column:
            raise DataError(f"{where}: the columns are {', '.join(row)}; expected one of text, with the name 'text'")
        if column not in row:
            raise DataError(f"{where}: no column {column!r}; there are {', '.join(row)}")
        yield values.text(row[column], f"{where}, column {column!r}")


def _read(path: pathlib.Path) -> str:
    if _has_rows(path):
        return "\n".join(_rows(path))
    return files.decode(files.read(path), str(path))
