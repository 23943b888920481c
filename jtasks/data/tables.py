"""Tables of text as rows of named fields: TSV, CSV, JSONL, Parquet and Arrow files, data sets of TFDS and the hub."""

import pathlib
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jtasks import storage
from jtasks.data import arrow, files, parsing, table_files, tfds, values
from jtasks.data.parsing import Row
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import did_you_mean


def rows(
    name: str,
    split: str,
    fields: Mapping[str, values.Check],
    *,
    optional: Collection[str] = (),
    folder: str | None = None,
    source: str = "",
) -> list[Row]:
    """Read the wanted fields of each row of one split.

    Empty lines and a byte order mark are skipped; fields may have any size. Only line ends and the separator separate
    rows and columns: other blanks, such as U+00A0, U+0085 and U+2028, are ordinary characters.

    Args:
      name: a file in UTF-8, or `tfds:NAME`. TFDS's train, validation or test split is read, or another one with
        `#SPLIT` after the name, such as `tfds:glue/mnli#validation_matched`. The kinds of files:

        - .tsv (suffixes in any case): quotes have no meaning, as in GLUE. LF, CRLF or CR ends a row.
        - .csv: a field in double quotes may hold commas, line ends and doubled quotes; anything else after a closing
          quote is an error. LF, CRLF or CR ends a row.
        - .jsonl: one JSON object per line. LF or CRLF ends a line.
        - .parquet, .arrow, shards of records, a folder of them, or `hf:NAME` on the Hugging Face hub: see `arrow.find`.
          Classes that have names become these names.

      split: `train`, `valid` or `test`.
      fields: names of columns, and the check of each column's values, such as `values.content`. If all names are
        numbers, a TSV or CSV file has no header and the numbers count its columns from 0.
      optional: names of `fields` that a file may lack entirely; its rows then lack these entries.
      folder: config.data.dir.
      source: where to get the file, for the message if it is absent.

    Returns:
      At least one row, in the file's order.

    Raises:
      ConfigError: the file is absent or of unknown kind, or there is no such column.
      DataError: the file is empty, a row has another form than others, a column or key repeats, or a value fails its
        check; names file, line and column.
    """

    def choose(columns: Sequence[str]) -> Collection[str] | None:
        return None if set(fields) - set(columns) - set(optional) else fields  # the message about one lists all

    bare = all(field.isdecimal() for field in fields)
    table = scan(name, split, choose, bare=bare, folder=folder, source=source)
    picked: list[Row] = []
    for where, row in table:
        if not picked:
            fields = {field: check for field, check in fields.items() if field in row or field not in optional}
        if late := [field for field in optional if field in row and field not in fields]:
            raise DataError(f"{name}, {where}: there is a column {late[0]!r}, which the first row lacks")
        picked.append(_pick(row, fields, f"{name}, {where}", first=not picked))
    if not picked:
        raise DataError(f"{name} has no rows: expected some with the columns {', '.join(map(repr, fields))}")
    return picked


def scan(
    name: str,
    split: str,
    choose: Callable[[Sequence[str]], Collection[str] | None] = lambda columns: None,
    *,
    bare: bool = False,
    folder: str | None = None,
    source: str = "",
) -> Iterator[tuple[str, Row]]:
    """Yield the place and the fields of each row of one split, unchecked; it holds one row at a time in memory.

    Args:
      name: see `rows`, also for `split`, `folder` and `source`.
      choose: function from the columns of Parquet and Arrow files to those to read; None: all.
      bare: TSV and CSV have no header, and their columns are "0", "1", ...

    Raises:
      ConfigError: the file is absent or of unknown kind.
      DataError: a row is malformed.
    """
    if name.startswith("tfds:"):
        yield from _read_tfds(name.removeprefix("tfds:"), split, folder)
    elif table_files.is_table(name, files.data_folder(folder)):
        table = require_table(name, split, folder)
        yield from arrow.rows(table, choose(table.columns))
    else:
        kind = pathlib.PurePath(name).suffix.lower()
        if kind not in parsing.KINDS:
            raise ConfigError(
                f"config.data.{split}={name!r} must be a .tsv, .csv, .jsonl or .parquet file, shards (.tar,"
                " .tfrecord, .array_record), hf:NAME or tfds:NAME"
                + ("; unpack it first" if kind in (".gz", ".bz2", ".xz", ".zst", ".zip") else "")
            )
        lines = parsing.Lines(_lines(name, kind, f"config.data.{split}", folder, source), name)
        yield from _read_lines(lines, kind, bare)


def paths(name: str, split: str, *, folder: str | None = None, source: str = "") -> list[pathlib.Path]:
    """Return the files that hold one split, or the archive with it; see `rows`."""
    root = files.data_folder(folder)
    if name.startswith("tfds:"):
        builder = tfds.prepared_builder(
            name.removeprefix("tfds:").partition("#")[0], _tfds_folders(folder), features=()
        )
        return sorted(path for path in pathlib.Path(builder.data_dir).iterdir() if path.is_file())
    if table_files.is_table(name, root):
        return list(require_table(name, split, folder).paths)
    return [locate(name, f"config.data.{split}", folder=folder, source=source)[0]]


def class_names(name: str, split: str, column: str, *, folder: str | None = None) -> tuple[str, ...] | None:
    """Return the names of the classes in a column, in their order; None if the data does not say.

    Raises:
      ConfigError: the data is absent.
      DataError: it cannot be read.
    """
    root = files.data_folder(folder)
    if name.startswith("tfds:") or not table_files.is_table(name, root):
        return None
    table = arrow.find(name, split, f"config.data.{split}", root)
    return table and table.classes(column)


def read(name: str, field: str, *, folder: str | None = None, source: str = "") -> str:
    """Read the text of a file that a config names: as given, in the data folder, or in a zip archive there.

    `SST-2/train.tsv` is thus also found in `SST-2.zip`. A byte order mark is skipped.

    Raises:
      ConfigError: the file is nowhere.
      DataError: the file is not UTF-8 text; or the archive is damaged, encrypted, or holds more than 1 GiB.
    """
    path, is_archive = locate(name, field, folder=folder, source=source)
    if is_archive:
        return files.decode(_unzip(path, name), f"{path}: {name}")
    return files.decode(files.read(path), str(path))


def locate(name: str, field: str, *, folder: str | None = None, source: str = "") -> tuple[pathlib.Path, bool]:
    """Return the path of a file that a config names, and whether that is an archive that may hold it; see `read`."""
    root = files.data_folder(folder)
    places = [storage.local(name), root / name]
    archive = root / f"{next(iter(pathlib.PurePath(name).parts), '')}.zip"
    path = next((place for place in places if place.is_file()), None)
    if path is not None:
        return path, False
    if archive.is_file():
        return archive, True
    raise ConfigError(
        f"no file {name!r} ({field})\n  looked for: {', '.join(map(str, [*places, archive]))}\n"
        f"  what to do: {f'get it from {source}, ' if source else ''}put it there, or set config.data.dir or"
        " $JTASKS_DATA to the folder that holds it"
    )


def _lines(name: str, kind: str, field: str, folder: str | None, source: str) -> Iterable[str | bytes]:
    """Return the lines of a file that a config names; a file in an archive is read whole."""
    path, is_archive = locate(name, field, folder=folder, source=source)
    if is_archive:
        return parsing.text_lines(files.decode(_unzip(path, name), f"{path}: {name}"), kind)
    return parsing.byte_lines(files.stream(path), kind)


def _unzip(archive: pathlib.Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(archive) as members:
            size = members.getinfo(name).file_size  # also the most that `read` unpacks
            if size > files.LIMIT:
                raise DataError(f"{archive}: {name} unpacks to {size:,} bytes; if you trust it, unpack it by hand")
            return members.read(name)
    except DataError:
        raise
    except Exception as error:  # encrypted or damaged members fail in many ways
        raise DataError(f"{archive}: cannot read {name} ({error}); get the archive again or unpack it") from error


def _read_lines(lines: parsing.Lines, kind: str, bare: bool) -> Iterator[tuple[str, Row]]:
    for number, row in parsing.parse(lines, kind, bare=bare):
        if isinstance(row, DataError):
            raise row
        yield f"line {number}", row


def _read_tfds(name: str, split: str, folder: str | None) -> Iterator[tuple[str, Row]]:
    name, _, other = name.partition("#")
    builder = tfds.prepared_builder(name, _tfds_folders(folder), features=())
    source = tfds.source(name, builder, other or tfds.SPLITS[split])
    if source is None:
        splits = ", ".join(builder.info.splits)
        raise DataError(f"tfds:{name} has the splits {splits}; config.data.{split} names none of them")
    for index in range(len(source)):
        yield f"row {index}", {key: _plain(value, f"tfds:{name}, row {index}") for key, value in source[index].items()}


def _tfds_folders(folder: str | None) -> list[pathlib.Path | None]:
    root = files.data_folder(folder)
    return [root] if folder else [root, None]


def require_table(name: str, split: str, folder: str | None) -> arrow.Table:
    """Find the Parquet or Arrow files that config.data.SPLIT names; ConfigError if there is no such split."""
    table = arrow.find(name, split, f"config.data.{split}", files.data_folder(folder), own=True)
    if table is None:
        raise ConfigError(
            f"config.data.{split}={name!r} has no split {' or '.join(table_files.SPLITS[split])}: give another one as"
            f" {name}#SPLIT, or leave the field empty"
        )
    return table


def _plain(value: Any, where: str) -> Any:
    """Convert TFDS's bytes to text, and its arrays to numbers and lists."""
    if isinstance(value, bytes):
        return files.decode(value, where)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _pick(row: Row, fields: Mapping[str, values.Check], where: str, *, first: bool) -> Row:
    for field in fields:
        if field not in row:
            hint = did_you_mean(field, row)
            kind = ConfigError if first else DataError
            raise kind(f"{where}: no column {field!r}; there are {', '.join(map(repr, row))}{hint}")
    return {field: check(row[field], f"{where}, column {field!r}") for field, check in fields.items()}
