"""Texts with the texts to make of them, such as translations and summaries: parallel files and tables."""

import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jtasks import storage
from jtasks.config import Config
from jtasks.data import files, parsing, table_files, tables, unlabeled, values
from jtasks.data.parsing import Row
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import Field, did_you_mean

# Fields of config.data of the tasks that read such pairs, for their `defaults`.
FIELDS = {
    "data.train": Field(str, None, ""),  # a table, or parallel files such as "train.en,train.ja"; "": none
    "data.valid": Field(str, None, ""),
    "data.test": Field(str, None, ""),
    "data.source": Field(str, None, ""),  # where to get these files, for messages
    "data.source_column": Field(str, None, ""),  # of a table; "": found by its usual name
    "data.target_column": Field(str, None, ""),
    "data.prefix": Field(str, None, ""),  # comes before each source, such as T5's "summarize: "
    "data.source_length": Field(int, "[2, 2e9]", 128),  # maximum number of a source's tokens, with its end
    "data.target_length": Field(int, "[2, 2e9]", 128),  # maximum number of a target's tokens, with its end
}

# The usual names of columns, best first.
SOURCES = ("source", "src", "document", "article", "dialogue", "input", "text")
TARGETS = ("target", "tgt", "summary", "highlights", "references", "output", "abstract")
NESTED = "translation"  # the column of {"en": ..., "ja": ...} in data sets of Hugging Face

_LANGUAGE = re.compile("[a-z]{2,3}([-_][A-Za-z]{2,4})?")

Column = tuple[str, ...]  # a name, or the names of a column and of an entry in its values


class Pair(NamedTuple):
    """A source text and its reference texts."""

    source: str
    references: tuple[str, ...]


def read(split: str, config: Config) -> Iterator[Pair] | None:
    r"""Return the pairs of one split in their order; one at a time is in memory. None: there is no such split.

    Any text may be empty. In parallel files LF or CRLF ends a line, and each line is a text; all other characters,
    such as CR, form feed and U+2028, are part of the text. In tables an empty line is no row.

    Args:
      split: `train`, `valid` or `test`. Train has one reference for each pair: a text with k references is k pairs.
      config: `config.data` has FIELDS. Its `train`, `valid` and `test` are each

        - names of parallel files, separated by commas (`\,` is a comma in a name): of the sources, of the targets,
          and perhaps of further references. Line n of each belongs to pair n.
        - a table as `tables.rows` reads it. The source may be a list of texts, which a space joins, such as sentences.
          The target may be a list too, whose texts are several references. Columns without a name in the config are
          found by their usual names, or are the only two whose names are codes of languages, the source first. These
          may also be entries of one column, as in `{"translation": {"en": ..., "ja": ...}}`.

    Raises:
      ConfigError: a file is absent or of unknown kind, or a column is missing.
      DataError: a file is empty or not UTF-8, parallel files differ in their number of lines, or a value is no text;
        names file and line.
    """
    name = config.data[split]
    if not name:
        return None
    paths = _parallel(name, split, config)
    pairs = _zip(paths) if paths else _rows(name, split, config)
    pairs = _require(pairs, name)
    return _separate(pairs) if split == "train" else pairs


def identity(split: str, config: Config) -> str:
    """Return a hash of the names, sizes and times of one split's files, and of how they are read; "" for no split."""
    data, name = config.data, config.data[split]
    if not name:
        return ""
    paths = _parallel(name, split, config) or tables.paths(name, split, folder=data.dir, source=data.source)
    return files.identity(paths, name, split, data.source_column, data.target_column)


def sources(inputs: Sequence[Any], config: Config) -> list[str]:
    """Return the sources of inputs without targets: each a text, or a dict with a column of the source.

    Raises:
      DataError: an input is neither.
    """
    expected = f"a text, or a dict with {config.data.source_column or 'source'!r}"
    return [_given(given, config, expected) for given in inputs]


def _parallel(name: str, split: str, config: Config) -> list[pathlib.Path]:
    """Return the paths of parallel files; [] if the name is a table's."""
    data, field = config.data, f"config.data.{split}"
    parts = [part.strip(" ").replace("\\,", ",") for part in re.split(r"(?<!\\),", name)]
    root = files.data_folder(data.dir)
    whole = [storage.local(name), root / name]
    remote = name.startswith("tfds:") or table_files.is_table(name, root)
    if remote or any(place.is_file() for place in whole) or len(parts) < 2:
        if not remote and pathlib.PurePath(name).suffix.lower() not in parsing.KINDS:
            raise ConfigError(
                f"{field}={name!r} must be two parallel files, such as train.en,train.ja, a .tsv, .csv, .jsonl or"
                " .parquet file, shards (.tar, .tfrecord, .array_record), hf:NAME or tfds:NAME"
            )
        return []
    if folders := [part for part in parts if storage.local(part).is_dir() or (root / part).is_dir()]:
        raise ConfigError(f"{field}={name!r}: {folders[0]!r} is not a file; expected files such as train.en,train.ja")
    located = [tables.locate(part, field, folder=data.dir, source=data.source) for part in parts]
    if archives := [str(path) for path, is_archive in located if is_archive]:
        raise ConfigError(f"{field}={name!r}: parallel files are not read from archives; unpack {archives[0]}")
    return [path for path, _ in located]


def _zip(paths: Sequence[pathlib.Path]) -> Iterator[Pair]:
    """Yield the pairs of parallel files; raise DataError at the end if their numbers of lines differ."""
    counts = [0] * len(paths)
    for lines in itertools.zip_longest(*(_lines(path) for path in paths)):
        counts = [count + (line is not None) for count, line in zip(counts, lines, strict=True)]
        if len(set(counts)) == 1:
            yield Pair(lines[0], lines[1:])
    if len(set(counts)) > 1:
        listed = ", ".join(f"{path} has {count:,} lines" for path, count in zip(paths, counts, strict=True))
        raise DataError(f"{listed}: expected the same number of lines in each file: line n of each is pair n")


def _lines(path: pathlib.Path) -> Iterator[str]:
    for number, line in enumerate(files.stream(path), 1):
        yield files.decode(line, str(path), number).removesuffix("\n").removesuffix("\r")


class _Columns(NamedTuple):
    source: Column
    target: Column | None


def _rows(name: str, split: str, config: Config) -> Iterator[Pair]:
    """Yield the pairs of a table."""
    data, columns = config.data, None
    given = [column for column in (data.source_column, data.target_column) if column]
    bare = bool(given) and all(column.isdecimal() for column in given)
    rows = tables.scan(name, split, _choose(given), bare=bare, folder=data.dir, source=data.source)
    for place, row in rows:
        where = f"{name}, {place}"
        columns = columns or _columns(row, where, split, config)
        source = " ".join(_texts(_value(row, columns.source, where), _place(where, columns.source)))
        if columns.target is None:
            yield Pair(source, ())
            continue
        references = _texts(_value(row, columns.target, where), _place(where, columns.target))
        if split == "train" and not references:
            raise DataError(f"{_place(where, columns.target)} is an empty list; expected a text for training")
        yield Pair(source, references)


def _choose(given: Sequence[str]) -> Any:
    """Return the function that chooses the columns of a Parquet table to read, for `tables.scan`."""

    def choose(columns: Sequence[str]) -> Sequence[str] | None:
        wanted = given if len(given) == 2 else (*given, *SOURCES, *TARGETS)
        chosen = [column for column in columns if column in wanted]
        return chosen if len(chosen) > 1 and set(given) <= set(columns) else None

    return choose


def _columns(row: Row, where: str, split: str, config: Config) -> _Columns:
    """Choose the columns by the names in a table's first row; the target may lack in a split other than train."""
    data, names = config.data, _names(row)
    languages = _languages(names)
    source = _pick(names, data.source_column, (*SOURCES, *(name for name in languages if name != data.target_column)))
    target = _pick(names, data.target_column, (*TARGETS, *(name for name in languages if names[name] != source)))
    if not source or (not target and (split == "train" or data.target_column)):
        side = "source" if not source else "target"
        given = data[f"{side}_column"]
        hint = did_you_mean(given, names) if given else f"; name one by config.data.{side}_column"
        wanted = repr(given) if given else f"of the {side} under a usual name"
        raise ConfigError(f"{where}: no column {wanted}; there are {', '.join(map(repr, names))}{hint}")
    if source == target:
        raise ConfigError(f"{where}: the column {names and source[-1]!r} is both source and target; name two columns")
    return _Columns(source, target)


def _names(row: Mapping[str, Any]) -> dict[str, Column]:
    """Return the columns of a row by name, and the entries of those that hold dicts."""
    nested = {key: (name, key) for name, value in row.items() if isinstance(value, dict) for key in value}
    return nested | {name: (name,) for name, value in row.items() if not isinstance(value, dict)}


def _languages(names: Mapping[str, Column]) -> list[str]:
    """Return the names of two entries, else of two columns, that are language codes; [] if there are not just two."""
    codes = [name for name in names if _LANGUAGE.fullmatch(name) and name != "id"]
    nested = [name for name in codes if len(names[name]) > 1]
    return nested if len(nested) == 2 else codes if len(codes) == 2 else []


def _pick(names: Mapping[str, Column], given: str, usual: Sequence[str]) -> Column | None:
    return next((names[name] for name in ((given,) if given else usual) if name in names), None)


def _value(row: Mapping[str, Any], column: Column, where: str) -> Any:
    value: Any = row
    for name in column:
        if not isinstance(value, dict) or name not in value:
            raise DataError(f"{where}: no column {name!r}, which the first row has")
        value = value[name]
    return value


def _place(where: str, column: Column) -> str:
    return f"{where}, column {'.'.join(column)!r}"


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(values.text(item, f"{where}, item {index}") for index, item in enumerate(value))
    return (values.text(value, where),)


def _require(pairs: Iterator[Pair], name: str) -> Iterator[Pair]:
    """Raise DataError unless there is a pair."""
    first = next(pairs, None)
    if first is None:
        raise DataError(f"{name} has no pairs of texts; expected at least one")
    return itertools.chain([first], pairs)


def _separate(pairs: Iterator[Pair]) -> Iterator[Pair]:
    for pair in pairs:
        yield from (Pair(pair.source, (reference,)) for reference in pair.references)


def _given(given: Any, config: Config, expected: str) -> str:
    if isinstance(given, Mapping):
        names = _names(given)
        alone = [name for name in names if len(names) == 1 and _LANGUAGE.fullmatch(name)]
        usual = (*SOURCES, *_languages(names)[:1], *alone)
        column = _pick(names, config.data.source_column, usual) or _pick(names, "", SOURCES)
        if column is None:
            raise DataError(f"{unlabeled.describe(given)}; expected {expected}")
        return " ".join(_texts(_value(given, column, "the input"), _place("the input", column)))
    if not isinstance(given, str):
        raise DataError(f"{unlabeled.describe(given)}; expected {expected}")
    return values.text(given, "the text")
