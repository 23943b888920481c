"""Rows of CSV, TSV and JSONL, parsed line by line; a bad row is yielded as an error, so that readers can go on."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jtasks.data import files, values
from jtasks.errors import DataError

Row = dict[str, Any]

KINDS = (".csv", ".tsv", ".jsonl")


class Lines(Iterator[str]):
    """Lines of text with their number. A line that is not UTF-8 raises DataError; the next call reads the next line."""

    def __init__(self, lines: Iterable[str | bytes], name: str):
        self.lines, self.name, self.number = iter(lines), name, 0

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        return line if isinstance(line, str) else files.decode(line, self.name, self.number)

    def error(self, text: object) -> DataError:
        """Return an error at the line that was read last."""
        return DataError(f"{self.name}, line {self.number}: {text}")


def text_lines(text: str, kind: str) -> Iterable[str]:
    """Return the lines of a text, cut as `byte_lines` cuts a file."""
    return text.split("\n") if kind == ".jsonl" else io.StringIO(text, newline="")


def byte_lines(file: Iterable[bytes], kind: str) -> Iterator[bytes]:
    """Yield the lines of a file as they arrive. LF or CRLF ends a line, and CR does except in JSONL."""
    for line in file:
        if kind != ".jsonl" and b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
            yield from re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", line)
        else:
            yield line


def good_rows(lines: Lines, kind: str) -> Iterator[tuple[str, Row]]:
    """Yield ("line N", row) as `parse` does; raise the first error."""
    for number, row in parse(lines, kind):
        if isinstance(row, DataError):
            raise row
        yield f"line {number}", row


def parse(lines: Lines, kind: str, *, bare: bool = False) -> Iterator[tuple[int, Row | DataError]]:
    """Yield (number of its last line, row or error) for each row; blank lines are skipped.

    Args:
      lines: lines of a table.
      kind: one of KINDS; `tables.rows` describes them.
      bare: CSV and TSV have no header, and columns are named "0", "1", ...

    Raises:
      DataError: the header is unreadable, or names a column twice.
    """
    return _parse_json(lines) if kind == ".jsonl" else _parse_delimited(lines, kind, bare)


def _parse_delimited(lines: Lines, kind: str, bare: bool) -> Iterator[tuple[int, Row | DataError]]:
    quoting: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    csv.field_size_limit(files.LIMIT)  # of the whole process; 131,072 by default
    reader = csv.reader(lines, **quoting)
    header: list[str] | None = None
    while True:
        try:
            columns = next(reader)
        except StopIteration:
            return
        except (csv.Error, DataError) as failure:
            quotes = f"{failure}; expected quotes around whole fields"
            error = failure if isinstance(failure, DataError) else lines.error(quotes)
            if header is None:
                raise error from failure
            yield lines.number, error
            continue
        if not columns:
            continue
        if header is None:
            header = [str(i) for i in range(len(columns))] if bare else columns
            if doubled := [column for column in header if column and header.count(column) > 1]:
                raise lines.error(f"the column {doubled[0]!r} occurs twice")
            if not bare:
                continue
        if len(columns) == len(header):
            yield lines.number, dict(zip(header, columns, strict=True))
        else:
            yield lines.number, lines.error(f"{len(columns)} columns, expected {len(header)}: {header}")


def _parse_json(lines: Lines) -> Iterator[tuple[int, Row | DataError]]:
    while True:
        try:
            line = next(lines).removesuffix("\n")
            if not line.strip(values.BLANKS):
                continue
            row = values.parse(line, f"{lines.name}, line {lines.number}")
        except StopIteration:
            return
        except DataError as error:
            yield lines.number, error
            continue
        good = isinstance(row, dict)
        yield lines.number, row if good else lines.error(f"expected a JSON object, not {values.describe(row)}")
