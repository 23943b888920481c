"""Inputs to predict on: rows of tables, lines of text and pictures, from files, folders and streams, one at a time."""

import itertools
import os
import pathlib
import stat
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from jtasks.data import arrow, parsing, pictures, table_files, unlabeled, values
from jtasks.errors import ConfigError, DataError

STDIN = "-"
FORMATS = ("jsonl", "csv", "tsv", "lines")  # choices of --input-format
SUFFIXES = {
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "lines",
    **dict.fromkeys(table_files.SUFFIXES, "table"),
}
PICTURES = (*unlabeled.PICTURES, "images", "image2")  # columns with paths of pictures
KNOWN = f"{', '.join(SUFFIXES)}, or a picture ({', '.join(sorted(pictures.SUFFIXES))})"

Value = dict[str, Any] | str | pathlib.Path  # a row, a line, the path of a picture


class Input(NamedTuple):
    """One input and its place, such as `reviews.csv, line 7`; the value of an unreadable input is the error."""

    place: str
    value: Value | DataError
    folder: str = ""  # of the file that has the row

    @property
    def given(self) -> Value | DataError:
        """Return the value for the task: a picture that a row names is looked for here, then beside its file."""
        if not self.folder or not isinstance(self.value, dict):
            return self.value
        return {name: self._locate(x) if name in PICTURES else x for name, x in self.value.items()}

    def _locate(self, name: Any) -> Any:
        if isinstance(name, list):
            return [self._locate(item) for item in name]
        if not isinstance(name, str) or not pictures.is_picture(os.path.basename(name)) or os.path.exists(name):
            return name
        beside = os.path.join(self.folder, name)
        return beside if os.path.exists(beside) else name

    @property
    def fields(self) -> dict[str, Any]:
        """Return the fields that go with the answer: the columns of a row; a line or a path as `input`."""
        if isinstance(self.value, dict):
            return self.value
        return {} if isinstance(self.value, DataError) else {"input": str(self.value)}


def read(source: str, kind: str | None = None, *, bare: bool = False) -> Iterator[Input]:
    """Return an iterator of the inputs of a file, a folder or a stream, in order; it holds one at a time in memory.

    Args:
      source: one of

        - `-`, which is stdin, or another pipe: `kind`, else JSONL if the first line starts with `{`, else lines
        - a .jsonl, .csv, .tsv, .parquet or .arrow file, whose rows are dicts; `data.tables.rows` describes the formats.
          A picture in a column of PICTURES lies here, or beside the file
        - a .txt file, whose lines are str; empty lines are skipped
        - a picture, or a folder of pictures at any depth, by sorted folders, then names: pathlib.Path

      kind: one of FORMATS, if the file's suffix does not give it.
      bare: CSV and TSV have no header, and their columns are "0", "1", ...

    Raises:
      ConfigError: the file is absent or of unknown kind; raised at once.
      DataError: there is no input, the header of a table is wrong, or the file cannot be read; raised by the iterator.
    """
    name = "stdin" if source == STDIN else source
    return _checked(_open(source, name, kind, bare), source, name)


def is_stream(source: str) -> bool:
    """Return whether inputs arrive one by one, from a terminal, a pipe or a socket, rather than lie in a file."""
    try:
        mode = (os.fstat(0) if source == STDIN else os.stat(source)).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _checked(inputs: Iterator[Input], source: str, name: str) -> Iterator[Input]:
    count = 0
    try:
        for count, item in enumerate(inputs, 1):  # noqa: B007
            yield item
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}; make it readable") from error
    if not count:
        expected = f"a picture ({', '.join(sorted(pictures.SUFFIXES))})" if os.path.isdir(source) else "a row or a line"
        raise DataError(f"{name} holds no input: expected at least {expected}")


def _open(source: str, name: str, kind: str | None, bare: bool) -> Iterator[Input]:
    if source != STDIN and not os.path.exists(source):
        raise ConfigError(f"--input={source}: there is no such file or folder; give one, or - for stdin")
    if source != STDIN and os.path.isdir(source):
        return _pictures(source)
    kind = kind or SUFFIXES.get(suffix := pathlib.PurePath(source).suffix.lower())
    if kind is None and suffix in pictures.SUFFIXES:
        return iter([_picture(source)])
    if kind is None and not is_stream(source) and source != STDIN:
        raise ConfigError(f"--input={source}: expected {KNOWN}; or give --input-format={'|'.join(FORMATS)}")
    if kind == "table":
        return _table(source)
    return _text(source, name, kind, bare)


def _text(source: str, name: str, kind: str | None, bare: bool) -> Iterator[Input]:
    """Yield the rows or lines of a text file or stream; `kind` None: the first line that is not empty decides."""
    if source == STDIN and sys.stdin is None:
        return
    folder = "" if source == STDIN else os.path.dirname(source)
    with open(0 if source == STDIN else source, "rb", closefd=source != STDIN) as file:
        head = list[bytes]()
        while kind is None:
            line = file.readline()
            head.append(line)
            if line.removeprefix(b"\xef\xbb\xbf").strip() or not line:
                kind = "jsonl" if line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else "lines"
        lines = parsing.Lines(parsing.byte_lines(itertools.chain(head, file), f".{kind}"), name)
        if kind == "lines":
            yield from _lines(lines)
        else:
            for number, row in parsing.parse(lines, f".{kind}", bare=bare):
                yield Input(f"{name}, line {number}", row, folder)


def _lines(lines: parsing.Lines) -> Iterator[Input]:
    while True:
        value: str | DataError
        try:
            value = next(lines).rstrip("\r\n")
        except StopIteration:
            return
        except DataError as error:
            value = error
        if isinstance(value, DataError) or value.strip(values.BLANKS):
            yield Input(f"{lines.name}, line {lines.number}", value)


def _table(source: str) -> Iterator[Input]:
    table = arrow.find(source, "test", "--input", pathlib.Path())
    if table is not None:
        yield from (Input(f"{source}, {where}", row) for where, row in arrow.rows(table))


def _pictures(folder: str) -> Iterator[Input]:
    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if pictures.is_picture(name):
                yield _picture(os.path.join(place, name))


def _picture(path: str) -> Input:
    if os.path.isfile(path):  # opening a pipe would wait forever
        return Input(path, pathlib.Path(path))
    return Input(path, DataError(f"{path} is not a regular file; expected a picture"))
