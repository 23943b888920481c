"""Files of results with a row for each input: JSONL, CSV, TSV, Parquet, safetensors; written as the rows come."""

import base64
import contextlib
import csv
import io
import json
import math
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from jtasks.data.parsing import Row
from jtasks.errors import ClosedOutputError, ConfigError, DataError
from jtasks.run.records import to_json
from jtasks.writing import writer

Write = Callable[[Sequence[Row]], None]

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".safetensors")
ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
GROUP = 1000  # minimum number of rows of a row group of Parquet
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}  # names of safetensors


def join(index: int, fields: Mapping[str, Any], answer: Mapping[str, Any]) -> Row:
    """Return the row of an input: its index, its own fields and the answer; clashing fields go under "input".

    What people read comes before the answer's arrays.

    >>> join(3, {"text": "so good", "label": "neg"}, {"label": 1, "class": "pos"})
    {'index': 3, 'text': 'so good', 'input': {'label': 'neg'}, 'label': 1, 'class': 'pos'}
    """
    if "index" in answer:
        answer = {"output": answer}
    answer = dict(sorted(answer.items(), key=lambda item: _is_array(item[1])))
    clashing = {name: value for name, value in fields.items() if name == "index" or name in answer}
    others = {name: value for name, value in fields.items() if name not in clashing}
    if not clashing:
        return {"index": index, **others, **answer}
    if "input" in others:
        clashing["input"] = others.pop("input")
    name = next(name for name in ("input", "inputs", "input_fields") if name not in {**others, **answer})
    return {"index": index, **others, name: clashing, **answer}


def check_suffix(path: pathlib.Path, *, arrays: bool) -> None:
    """Raise ConfigError unless rows can be written to a file of this name; only arrays go to safetensors."""
    kinds = SUFFIXES if arrays else SUFFIXES[:-1]
    if path.suffix.lower() not in kinds or path.is_dir():
        kind = "is a folder" if path.is_dir() else "is of unknown kind"
        raise ConfigError(f"--output={path} {kind}: give a file that ends in {', '.join(kinds)}")


def place(output: pathlib.Path | None, folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return `output` if it ends like a file of rows, else the file `name` in that folder, by default `folder`."""
    if output is not None and output.suffix.lower() in SUFFIXES:
        check_suffix(output, arrays=name.endswith(".safetensors"))
        return output
    return (output or folder) / name


@contextlib.contextmanager
def open_rows(path: pathlib.Path | None) -> Iterator[Write]:
    """Open a file for rows; it gets its name at the end of the block, unless the block raises.

    Args:
      path: a file that `check_suffix` accepts; None: stdout, as JSONL. JSONL takes rows of any fields. The other
        formats have the columns of the first row. Safetensors has only the index and entries that are arrays.

    Returns:
      A context manager of a function that writes some rows. It raises DataError for a row that does not fit the
      format, and ClosedOutputError if stdout is a pipe that nobody reads.
    """
    if path is None:
        yield _print_rows
        return
    kinds = {".csv": _csv, ".tsv": _tsv, ".parquet": _parquet, ".safetensors": _safetensors}
    with writer(path) as file, kinds.get(path.suffix.lower(), _jsonl)(file) as write:
        yield write


def _print_rows(rows: Sequence[Row]) -> None:
    try:
        sys.stdout.buffer.writelines(map(_json_line, rows))
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        raise ClosedOutputError from error


@contextlib.contextmanager
def _jsonl(file: IO[bytes]) -> Iterator[Write]:
    yield lambda rows: file.writelines(map(_json_line, rows))


@contextlib.contextmanager
def _csv(file: IO[bytes]) -> Iterator[Write]:
    text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
    lines, columns = csv.writer(text, lineterminator="\n"), list[str]()

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            if not columns:
                columns.extend(row)
                lines.writerow(columns)
            lines.writerow(_cell(value) for value in _values(row, columns))

    try:
        yield write
    finally:
        text.detach()  # flushed, and not closed with the file


@contextlib.contextmanager
def _tsv(file: IO[bytes]) -> Iterator[Write]:
    columns = list[str]()

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            if not columns:
                columns.extend(row)
                file.write(_tab_line(columns, row))
            file.write(_tab_line(_values(row, columns), row))

    yield write


@contextlib.contextmanager
def _parquet(file: IO[bytes]) -> Iterator[Write]:
    import pyarrow
    from pyarrow import parquet

    waiting, columns = list[Row](), list[str]()
    schema: Any = None
    target: Any = None

    def flush() -> None:
        nonlocal schema, target
        if not waiting:
            return
        if not columns:
            columns.extend(waiting[0])
        values = zip(*[_values(row, columns) for row in waiting], strict=True)
        try:
            table = pyarrow.table(dict(zip(columns, map(_column, values), strict=True)), schema=schema)
            if schema is None:
                table = table.cast(_without_null_types(table.schema))
                schema, target = table.schema, parquet.ParquetWriter(file, table.schema)
        except (pyarrow.ArrowException, TypeError, ValueError) as error:
            raise DataError(
                f"rows {waiting[0]['index']} to {waiting[-1]['index']} do not fit Parquet, whose columns have one type"
                f" ({error}): write .jsonl"
            ) from error
        target.write_table(table)
        waiting.clear()

    def write(rows: Sequence[Row]) -> None:
        waiting.extend(rows)
        if len(waiting) >= GROUP:
            flush()

    yield write
    flush()
    if target is not None:
        target.close()


def _column(values: Sequence[Any]) -> Any:
    """Return a column as Arrow takes it; floats [d], as of embeddings, become lists of the fixed size d."""
    import pyarrow

    shapes = {value.shape if isinstance(value, np.ndarray) and value.dtype.kind == "f" else () for value in values}
    if len(shapes) > 1 or len(shape := shapes.pop()) != 1:
        return [_plain(value) if isinstance(value, np.ndarray | np.generic) else value for value in values]
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.concatenate(values)), *shape)


def _without_null_types(schema: Any) -> Any:
    """Return the schema with text for a column that is empty in all of the first rows."""
    import pyarrow

    kinds = [(field.name, pyarrow.string() if field.type == pyarrow.null() else field.type) for field in schema]
    return pyarrow.schema(kinds)


@contextlib.contextmanager
def _safetensors(file: IO[bytes]) -> Iterator[Write]:
    """Write `index` and the arrays of all rows, each as one tensor; the tensors lie in temporary files until then."""
    parts: dict[str, IO[bytes]] = {}
    layouts: dict[str, tuple[str, list[int]]] = {}
    folder = pathlib.Path(file.name).parent
    with contextlib.ExitStack() as stack:

        def write(rows: Sequence[Row]) -> None:
            for row in rows:
                arrays = {name: value for name, value in row.items() if isinstance(value, np.ndarray)}
                arrays["index"] = np.array(row["index"], np.int64)
                layout = {name: (array.dtype.name, list(array.shape)) for name, array in arrays.items()}
                if not layouts:
                    layouts.update(layout)
                    parts.update({name: stack.enter_context(tempfile.TemporaryFile(dir=folder)) for name in arrays})
                if layout != layouts:
                    raise DataError(f"row {row['index']} has the arrays {layout}, but the first row {layouts}")
                for name, array in arrays.items():
                    parts[name].write(array.tobytes())

        yield write
        header, end = dict[str, Any](), 0
        for name, (dtype, shape) in layouts.items():
            begin, end = end, end + parts[name].tell()
            size = np.dtype(dtype).itemsize * math.prod(shape)
            count = (end - begin) // size
            header[name] = {"dtype": DTYPES[dtype], "shape": [count, *shape], "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts.values():
            part.seek(0)
            shutil.copyfileobj(part, file, 1 << 20)


def _json_line(row: Row) -> bytes:
    """Return a row as JSON that people read: only surrogates and what some readers take for a line end are escaped."""
    text = to_json({name: _plain(value) for name, value in row.items()}, escape=False)
    return ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode() + b"\n"


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0


def _plain(value: Any) -> Any:
    """Return a value as JSON data: arrays as lists, and what JSON does not have, such as dates of Parquet, as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        pairs = np.iscomplexobj(value)  # which JSON does not have
        return (np.stack([value.real, value.imag], axis=-1) if pairs else value).tolist()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _values(row: Row, columns: Sequence[str]) -> list[Any]:
    """Return the values of a row by column; raise DataError for an entry that the first row lacks."""
    if more := [name for name in row if name not in columns]:
        raise DataError(f"row {row['index']} has {more[0]!r}, which the first row lacks: write .jsonl, without columns")
    return [row.get(name) for name in columns]


def _cell(value: Any) -> str:
    """Return a text as it is, nothing for None, nan and inf by their names, and other values as JSON."""
    plain = _plain(value)
    if isinstance(plain, float):
        return repr(plain)
    return "" if plain is None else plain if isinstance(plain, str) else to_json(plain)


def _tab_line(values: Sequence[Any], row: Row) -> bytes:
    cells = [_cell(value) for value in values]
    if any(character in cell for cell in cells for character in "\t\r\n"):
        raise DataError(f"row {row['index']} holds a tab or a line end, which TSV cannot: write .csv or .jsonl")
    return "\t".join(cells).encode(errors="backslashreplace") + b"\n"
