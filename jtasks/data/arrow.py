"""Tables in Parquet and Arrow files: local ones, folders written by `datasets`, and data sets on the Hugging Face hub.

The only module that reads with pyarrow. Names of classes come from the features that `datasets` writes into the files.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jtasks.data import files, records, table_files, values
from jtasks.errors import ConfigError, DataError
from jtasks.writing import writer

Features = Mapping[str, Any]

ROWS = 1024  # of a table, read at once
ABSENT = "-1"  # the class of an example without label


class Table(NamedTuple):
    """The files of one split."""

    name: str  # for messages
    paths: tuple[pathlib.Path, ...]
    features: Features  # of each column, as `datasets` describes it; {} if the files do not say
    folder: pathlib.Path  # data folder, for what is made once of the files

    @property
    def shards(self) -> records.Records | None:
        """The rows, if the files are shards of records."""
        return records.Records(self.paths, self.folder) if records.is_shard(self.paths[0].name) else None

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order; of shards, those of the first record."""
        if self.shards is not None:
            return list(self.shards[0])
        names: list[str] = _schema(self.paths[0]).names
        return names

    def is_picture(self, column: str) -> bool:
        """Return whether a column holds pictures: by its feature or its type, in shards by its first value."""
        if self.shards is not None:
            return records.is_picture(self.shards[0][column])
        kind = _schema(self.paths[0]).field(column).type
        fields = {kind.field(i).name for i in range(kind.num_fields)}
        feature = self.features.get(column)
        return (isinstance(feature, dict) and feature.get("_type") == "Image") or {"bytes", "path"} <= fields

    def is_text(self, column: str) -> bool:
        """Return whether a column holds texts."""
        if self.shards is not None:
            return isinstance(self.shards[0][column], str)
        return str(_schema(self.paths[0]).field(column).type).removeprefix("large_") in ("string", "string_view")

    def classes(self, column: str) -> tuple[str, ...] | None:
        """Return the names of a column's classes, or of the classes in its lists; None if they have no names."""
        feature = _element(self.features.get(column))
        if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
            return None
        names = feature.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{self.name}: the classes of {column!r} are {names!r:.80}; expected a list of names")
        return tuple(names)


def find(name: str, split: str, field: str, folder: pathlib.Path, *, own: bool = False) -> Table | None:
    """Find the files of one split.

    Args:
      name: one of

        - a .parquet or .arrow file.
        - a folder that `datasets` wrote by `save_to_disk`, or a folder of Parquet files whose names, or whose folders'
          names, are those of the splits: train-00000-of-00002.parquet, CONFIG/validation/0000.parquet.
        - shards of records, see `records`: a file, a folder, or a pattern such as `shards/train-{000..127}.tar`. Their
          names, or their folder's name, say the split.
        - `hf:NAME[/CONFIG][@REVISION]`: such a local folder, or a data set on the hub.

        `#SPLIT` after a folder's name or a hub's names a split that is none of the three.
      split: `train`, `valid` or `test`.
      field: name of the field that has this value, for messages.
      folder: data folder, where relative paths are searched for too.
      own: whether shards that name no split are those of this one, not of train.

    Returns:
      None if a folder or data set has no such split.

    Raises:
      ConfigError: there is no such file, folder, data set or config, or no split of the given name.
      DataError: a file cannot be fetched or read.
    """
    paths = table_files.locate(name, split, field, folder, own=own)
    if not paths:
        return None
    shards = records.is_shard(paths[0].name)
    return Table(name, tuple(paths), {} if shards else _features(paths[0]), folder)


def rows(table: Table, columns: Collection[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the entries of each row: numbers, texts, lists, dicts; classes by their names.

    Args:
      table: result of `find`.
      columns: the columns to read; the others are left out. None: all.

    Raises:
      DataError: a file is damaged, or a class has no name.
    """
    names = [name for name in table.columns if columns is None or name in columns]
    named = {name: classes for name in names if (classes := table.classes(name))}
    if table.shards is not None:
        shards = dataclasses.replace(table.shards, columns=tuple(names))
        yield from ((f"row {i}", shards[i]) for i in range(len(shards)))
        return
    index = 0
    for batch in _batches(table, names):
        entries = [batch.column(i).to_pylist() for i in range(len(names))]
        for row in zip(*entries, strict=True) if names else ():
            where = f"row {index}"
            made = dict(zip(names, row, strict=True))
            for name, classes in named.items():
                made[name] = _class_names(made[name], classes, f"{table.name}, {where}, column {name!r}")
            yield where, made
            index += 1


@dataclasses.dataclass(frozen=True)
class Cells:
    """Random access to columns of memory-mapped Arrow files; it pickles as the files' names."""

    paths: tuple[pathlib.Path, ...]
    names: tuple[str, ...]

    @functools.cached_property
    def columns(self) -> list[Any]:
        """The columns, as pyarrow's arrays in chunks."""
        import pyarrow

        tables = [_open_arrow(path).read_all().select(list(self.names)) for path in self.paths]
        whole = pyarrow.concat_tables(tables)
        return [whole.column(name) for name in self.names]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(column[index].as_py() for column in self.columns)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "names": self.names}


@dataclasses.dataclass(frozen=True)
class ShardCells:
    """Random access to columns of shards, like `Cells`."""

    shards: records.Records

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(self.shards[index].values())


def cells(table: Table, names: Sequence[str], folder: pathlib.Path) -> Cells | ShardCells:
    """Return random access to columns; Parquet is copied once into an Arrow file, stored beside the data.

    Raises:
      DataError: a file is damaged, or no folder can be written.
    """
    if table.shards is not None:
        return ShardCells(dataclasses.replace(table.shards, columns=tuple(names)))
    if not any(map(_is_parquet, table.paths)):
        return Cells(table.paths, tuple(names))
    identity = files.identity(table.paths, *names)
    places = files.places(folder, "prepared", f"table-{identity}.arrow")
    stored = next((place for place in places if place.is_file()), None)
    return Cells((stored or _copy(table, names, places),), tuple(names))


def _copy(table: Table, names: Sequence[str], places: Sequence[pathlib.Path]) -> pathlib.Path:
    import pyarrow

    schema = pyarrow.schema([_schema(table.paths[0]).field(name) for name in names])
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with writer(path) as file, pyarrow.ipc.new_stream(file, schema) as stream:
                for batch in _batches(table, names):
                    stream.write_batch(pyarrow.RecordBatch.from_arrays(batch.columns, schema=schema))
            return path
        except PermissionError as error:  # a read-only folder of shared data
            reason = error
    raise DataError(f"{table.name} can be copied neither beside the data nor into the user's cache folder: {reason}")


def _features(path: pathlib.Path) -> Features:
    """Read the features that `datasets` wrote into a file, or beside it; {} if there are none."""
    metadata = _schema(path).metadata or {}
    info: Any = {}
    if b"huggingface" in metadata:
        where = f"{path}, metadata 'huggingface'"
        info = values.parse(files.decode(metadata[b"huggingface"], where), where)
        info = info.get("info") if isinstance(info, dict) else None
    elif (path.parent / "dataset_info.json").is_file() and not _is_parquet(path):
        info = table_files.read_json(path.parent / "dataset_info.json")
    features = info.get("features") if isinstance(info, dict) else None
    return features if isinstance(features, dict) else {}


def _element(feature: Any) -> Any:
    """Return the feature of the elements of lists at any depth."""
    while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):
        feature = feature["feature"] if isinstance(feature, dict) else feature[0] if feature else None
    return feature


def _class_names(value: Any, classes: Sequence[str], where: str) -> Any:
    if isinstance(value, list):
        return [_class_names(item, classes, where) for item in value]
    if value is None or value == -1:
        return ABSENT
    if not isinstance(value, int) or not 0 <= value < len(classes):
        raise DataError(f"{where}: the class is {value!r}; expected 0 to {len(classes) - 1}")
    return classes[value]


def _is_parquet(path: pathlib.Path) -> bool:
    return path.suffix.lower() == ".parquet"


@contextlib.contextmanager
def _as_data_error(path: pathlib.Path) -> Iterator[None]:
    """Convert what pyarrow raises for a damaged file."""
    try:
        yield
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        if isinstance(error, ConfigError | DataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not a Parquet or Arrow file, or is damaged ({reason}): get it again") from error


def _schema(path: pathlib.Path) -> Any:
    import pyarrow.parquet

    with _as_data_error(path):
        if _is_parquet(path):
            schema = pyarrow.parquet.read_schema(path)
        else:
            with _open_arrow(path) as reader:
                schema = reader.schema
    if repeated := [name for name in schema.names if schema.names.count(name) > 1]:
        raise DataError(f"{path}: the column {repeated[0]!r} occurs twice")
    return schema


def _batches(table: Table, names: Sequence[str]) -> Iterator[Any]:
    """Yield the rows of some columns, several rows at a time."""
    import pyarrow.parquet

    first = _schema(table.paths[0])
    for path in table.paths:
        schema = _schema(path)
        if lacking := [name for name in names if name not in schema.names]:
            raise DataError(f"{path} has no column {lacking[0]!r}, which {table.paths[0].name} has")
        if odd := [name for name in names if schema.field(name).type != first.field(name).type]:
            kinds = f"{schema.field(odd[0]).type}, in {table.paths[0].name} {first.field(odd[0]).type}"
            raise DataError(f"{path}: the column {odd[0]!r} is {kinds}")
        with _as_data_error(path):
            if _is_parquet(path):
                with pyarrow.parquet.ParquetFile(path) as file:
                    for batch in file.iter_batches(ROWS, columns=list(names)):
                        yield batch.select(list(names))
            else:
                for batch in _open_arrow(path):
                    for start in range(0, batch.num_rows, ROWS):
                        yield batch.select(list(names)).slice(start, ROWS)


def _open_arrow(path: pathlib.Path) -> Any:
    """Open a memory-mapped Arrow file: a stream, as `datasets` writes it, or the format with an index."""
    import pyarrow

    source = pyarrow.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        source.seek(0)
        table = pyarrow.ipc.open_file(source).read_all()
        return pyarrow.RecordBatchReader.from_batches(table.schema, table.to_batches())
    source.seek(0)
    return pyarrow.ipc.open_stream(source)
